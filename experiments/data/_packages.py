"""Debian packages as a source of data: downloaded and unpacked, never installed."""

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

_MAGIC = b"!<arch>\n"
_HEADER = 60


def available() -> bool:
  """Return whether this machine has Debian's package tools."""
  return all(shutil.which(tool) for tool in ("apt-get", "dpkg-deb"))


def fetch_packages(packages: tuple[str, ...], folder: Path) -> None:
  """Download packages with apt-get and unpack them in `folder`; needs no root.

  Where the machine's lists of packages are missing or old, new ones are read into `folder`; the
  machine's own stay as they are.

  Raises:
    ConnectionError: if apt-get can't have them, or dpkg-deb can't read them; the message holds the
      last line that they print.
  """
  try:
    _apt_get(["download", *packages], folder)
  except ConnectionError:
    for private in ("lists/partial", "cache/archives/partial"):
      (folder / private).mkdir(parents=True)
    here = folder.resolve()
    own = ["-o", f"Dir::State::Lists={here}/lists", "-o", f"Dir::Cache={here}/cache"]
    _apt_get([*own, "update"], folder)
    _apt_get([*own, "download", *packages], folder)
  for deb in folder.glob("*.deb"):
    # Also knows the compressions of distributions derived from Debian, which `unpack` lacks.
    _run(["dpkg-deb", "--extract", deb.name, "."], folder)


def _apt_get(arguments: list[str], folder: Path) -> None:
  # The sandbox user of a root's apt-get can't write into root's folders, and warns of it.
  _run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", *arguments], folder)


def _run(command: list[str], folder: Path) -> None:
  done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
  if done.returncode:
    words = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
    raise ConnectionError(f"{' '.join(command)} fails: {words[-1]}")


def unpack(deb: Path, folder: Path) -> None:
  """Unpack a Debian package in `folder` without Debian's tools.

  Raises:
    ValueError: if the file is no Debian package, or one with a compression that Python lacks.
  """
  data = deb.read_bytes()
  if not data.startswith(_MAGIC):
    raise ValueError(f"{deb} is not a Debian package: it starts with {data[:8]!r}")
  # An ar archive: after the magic, members of a 60-byte header and a body padded to even length.
  start = len(_MAGIC)
  while start < len(data):
    header = data[start : start + _HEADER]
    name, size = header[:16].decode().rstrip(" /"), int(header[48:58])
    start += _HEADER
    if name.startswith("data.tar"):
      try:
        with tarfile.open(fileobj=io.BytesIO(data[start : start + size])) as tar:
          tar.extractall(folder, filter="data")
      except tarfile.TarError as error:
        raise ValueError(f"{deb}: can't read {name}: {error}") from error
      return
    start += size + size % 2
  raise ValueError(f"{deb} is not a Debian package: it has no data.tar")
