import gzip
import hashlib
import http.server
import io
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments.data import _download, _packages, _store, fetch
from experiments.data._store import Address, StoredSet

ROOT = Path(__file__).resolve().parents[2]
BODY = np.random.default_rng(0).bytes(1_000_000)


def digest(data):
  return hashlib.sha256(data).hexdigest()


class Server(http.server.ThreadingHTTPServer):
  """Serves `files`; cuts the first answers after `cuts` bytes each, and logs every Range."""

  def __init__(self):
    super().__init__(("127.0.0.1", 0), Handler)
    self.files, self.cuts, self.ranges, self.has_ranges = {"/body": BODY}, [], [], True

  def url(self, path="/body"):
    return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    asked = self.headers.get("Range")
    self.server.ranges.append(asked)
    if self.path not in self.server.files:
      return self.send_error(404, "Not Found")
    body = self.server.files[self.path]
    start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
    if not self.server.has_ranges:
      start = 0
    if start and start >= len(body):
      self.send_response(416)
      self.send_header("Content-Range", f"bytes */{len(body)}")
      self.send_header("Content-Length", "0")
      return self.end_headers()
    self.send_response(206 if start else 200)
    if start:
      self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
    self.send_header("Content-Length", str(len(body) - start))
    self.end_headers()
    cut = self.server.cuts.pop(0) if self.server.cuts else len(body)
    self.wfile.write(body[start : start + cut])

  def log_message(self, *_):
    pass


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setattr(_download, "_PAUSE_SECONDS", 0.0)
  with Server() as made:
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()


def ignore(done, total):
  pass


def test_download_goes_on_where_the_connection_was_cut(server, tmp_path):
  server.cuts, reports = [300_000, 0, 1], []
  path = tmp_path / "body"
  _download.download(Address(server.url(), digest(BODY)), path, lambda *x: reports.append(x))
  assert path.read_bytes() == BODY
  assert server.ranges == [None, "bytes=300000-", "bytes=300000-", "bytes=300001-"]
  assert [file.name for file in tmp_path.iterdir()] == ["body"]
  assert reports[-1] == (len(BODY), len(BODY))
  assert {total for _, total in reports} == {len(BODY)}


def test_download_goes_on_in_another_call(server, tmp_path):
  server.cuts = [1000, 0, 0, 0]
  path, address = tmp_path / "body", Address(server.url(), digest(BODY))
  with pytest.raises(ConnectionError, match="/body fails: the connection was cut"):
    _download.download(address, path, ignore)
  assert not path.exists()
  assert (tmp_path / "body.part").read_bytes() == BODY[:1000]
  _download.download(address, path, ignore)
  assert server.ranges[-1] == "bytes=1000-"
  assert path.read_bytes() == BODY


def test_download_from_a_server_without_ranges_starts_again(server, tmp_path):
  server.has_ranges, server.cuts = False, [1000]
  path = tmp_path / "body"
  _download.download(Address(server.url(), digest(BODY)), path, ignore)
  assert server.ranges == [None, "bytes=1000-"]
  assert path.read_bytes() == BODY


@pytest.mark.parametrize("extra", [b"", b"more than the server has"])
def test_download_when_all_was_received_before(server, tmp_path, extra):
  (tmp_path / "body.part").write_bytes(BODY + extra)
  _download.download(Address(server.url(), digest(BODY)), tmp_path / "body", ignore)
  assert (tmp_path / "body").read_bytes() == BODY
  assert len(server.ranges) == (2 if extra else 1)


def test_download_of_other_bytes_is_refused_and_forgotten(server, tmp_path):
  expected = digest(b"something else")
  with pytest.raises(ValueError, match=f"/body has sha256 {digest(BODY)}, expected {expected}"):
    _download.download(Address(server.url(), expected), tmp_path / "body", ignore)
  assert not list(tmp_path.iterdir())


def test_download_names_what_the_server_says(server, tmp_path):
  with pytest.raises(ConnectionError, match="/nothing answers 404 Not Found"):
    _download.download(Address(server.url("/nothing"), ""), tmp_path / "body", ignore)
  assert len(server.ranges) == 1


def test_download_without_a_server(monkeypatch, tmp_path):
  monkeypatch.setattr(_download, "_PAUSE_SECONDS", 0.0)
  with Server() as closed:
    url = closed.url()
  with pytest.raises(ConnectionError, match=f"{url} fails: .*refused"):
    _download.download(Address(url, ""), tmp_path / "body", ignore)


def tar_of(**files):
  """Pack files as in the data member of a Debian package, in a folder of their own."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
    for name, data in files.items():
      member = tarfile.TarInfo(f"./usr/share/{name.replace('_', '.')}")
      member.size = len(data)
      tar.addfile(member, io.BytesIO(data))
  return buffer.getvalue()


def deb_of(data, name="data.tar.xz"):
  """Make the bytes of a Debian package; the odd lengths need padding."""
  deb = b"!<arch>\n"
  for member, body in (("debian-binary", b"2.0\n"), ("control.tar", b"odd"), (name, data)):
    deb += f"{member:<16}{0:<12}{0:<6}{0:<6}{0o644:<8o}{len(body):<10}`\n".encode()
    deb += body + b"\n" * (len(body) % 2)
  return deb


def test_unpack_reads_debian_packages(tmp_path):
  (tmp_path / "x.deb").write_bytes(deb_of(tar_of(a_txt=b"one", b_txt=b"two")))
  _packages.unpack(tmp_path / "x.deb", tmp_path / "out")
  assert (tmp_path / "out/usr/share/a.txt").read_bytes() == b"one"
  assert (tmp_path / "out/usr/share/b.txt").read_bytes() == b"two"


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs Debian's tools")
def test_unpack_does_as_debian_does(tmp_path):
  control = tmp_path / "tree/DEBIAN/control"
  control.parent.mkdir(parents=True)
  control.write_text(
    "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: n <n@example.org>\nDescription: x\n"
  )
  (tmp_path / "tree/usr").mkdir()
  (tmp_path / "tree/usr/file").write_bytes(BODY[:999])
  build = ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", "tree", "x.deb"]
  subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
  _packages.unpack(tmp_path / "x.deb", tmp_path / "out")
  assert (tmp_path / "out/usr/file").read_bytes() == BODY[:999]
  assert not (tmp_path / "out/DEBIAN").exists()


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"<html>no such page</html>", "is not a Debian package: it starts with b'<html>no'"),
    (deb_of(b"", name="other"), "is not a Debian package: it has no data.tar"),
    (deb_of(b"rubbish"), "x.deb: can't read data.tar.xz"),
  ],
)
def test_unpack_refuses_other_files(tmp_path, data, message):
  (tmp_path / "x.deb").write_bytes(data)
  with pytest.raises(ValueError, match=message):
    _packages.unpack(tmp_path / "x.deb", tmp_path)


def script(path, text):
  path.write_text(f"#!/bin/sh\n{text}\n")
  path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def tools(monkeypatch, tmp_path):
  """An apt-get that needs its lists read first, and a dpkg-deb that copies."""
  folder = tmp_path / "bin"
  folder.mkdir()
  script(
    folder / "apt-get",
    'echo "$@" >> "$LOG"\n'
    'case "$*" in\n'
    "  *update*) touch lists/read ;;\n"
    '  *) test -e lists/read || { echo "E: No package p" >&2; exit 100; }; cp "$DEBS"/* . ;;\n'
    "esac",
  )
  script(folder / "dpkg-deb", 'test "$1" = --extract && mkdir -p "$3/usr" && cp "$2" "$3/usr/got"')
  monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
  monkeypatch.setenv("LOG", str(tmp_path / "log"))
  monkeypatch.setenv("DEBS", str(tmp_path / "debs"))
  (tmp_path / "debs").mkdir()
  return tmp_path


def test_packages_read_lists_of_their_own(tools):
  (tools / "debs/p_1_all.deb").write_bytes(b"content")
  (tools / "staging").mkdir()
  _packages.fetch_packages(("p", "q"), tools / "staging")
  assert (tools / "staging/usr/got").read_bytes() == b"content"
  first, update, again = (tools / "log").read_text().splitlines()
  assert first.endswith(" download p q")
  assert "Dir" not in first
  own = f"-o Dir::State::Lists={tools}/staging/lists -o Dir::Cache={tools}/staging/cache"
  assert update.endswith(f"{own} update")
  assert again.endswith(f"{own} download p q")


def test_packages_that_do_not_exist(tools, monkeypatch):
  script(tools / "bin/apt-get", 'echo "W: hm" >&2; echo "E: No package p" >&2; exit 100')
  with pytest.raises(ConnectionError, match="apt-get .*update fails: E: No package p"):
    _packages.fetch_packages(("p",), tools)


@pytest.mark.parametrize("missing", ["apt-get", "dpkg-deb"])
def test_packages_need_both_tools(tools, monkeypatch, missing):
  monkeypatch.setenv("PATH", str(tools / "bin"))
  assert _packages.available()
  (tools / "bin" / missing).unlink()
  assert not _packages.available()


FILES = {"plain.jpg": b"a photo", "numbers": b"uncompressed"}


@pytest.fixture
def small(monkeypatch, tmp_path, server):
  """A set of two files at two addresses, one of them in a package, and no Debian."""
  packed = gzip.compress(FILES["numbers"])
  deb = deb_of(tar_of(plain_jpg=FILES["plain.jpg"]))
  server.files = {"/numbers.gz": packed, "/p_1.deb": deb}
  made = StoredSet(
    files={name: digest(data) for name, data in FILES.items()},
    packages=("p",),
    addresses=(
      Address(server.url("/numbers.gz"), digest(packed)),
      Address(server.url("/p_1.deb"), digest(deb)),
    ),
    description="two files [MIT]",
  )
  monkeypatch.setitem(_store.SETS, "small", made)
  monkeypatch.setenv("NORMJAX_DATA", str(tmp_path / "data"))
  monkeypatch.setattr(_packages, "available", lambda: False)
  return tmp_path / "data/small"


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def left_over(folder):
  """What else lies beside the set, without the room for downloads."""
  return sorted(
    str(path.relative_to(folder.parent))
    for path in folder.parent.rglob("*")
    if path.parts[len(folder.parent.parts)] not in (folder.name, ".downloads")
  )


def test_fetch_from_addresses(small, server):
  text = io.StringIO()
  assert fetch.fetch("small", Console(file=text, width=200)) == small
  assert contents(small) == FILES
  assert left_over(small) == []
  assert not list((small.parent / ".downloads").iterdir())
  assert _store.require("small") == small
  assert "numbers.gz" in text.getvalue()
  assert f"small: now in {small}, verified" in text.getvalue()


def test_fetch_again_does_nothing(small, server):
  fetch.fetch("small")
  asked, text = len(server.ranges), io.StringIO()
  before = [path.stat().st_mtime_ns for path in small.iterdir()]
  fetch.fetch("small", Console(file=text, width=200))
  assert len(server.ranges) == asked
  assert [path.stat().st_mtime_ns for path in small.iterdir()] == before
  assert f"small: already in {small}, verified" in text.getvalue()


@pytest.mark.parametrize("damage", ["change", "remove"])
def test_fetch_repairs(small, damage):
  fetch.fetch("small")
  if damage == "change":
    (small / "numbers").write_bytes(b"uncomprexxed")
    found = f"numbers is damaged: its sha256 is {digest(b'uncomprexxed')}, expected"
  else:
    (small / "numbers").unlink()
    found = "numbers is missing"
  with pytest.raises(ValueError, match=f"small is not in {small}: {found}") as error:
    _store.require("small")
  assert str(error.value).endswith(". Get it with: python -m experiments.data.fetch small")
  fetch.fetch("small")
  assert contents(small) == FILES
  assert left_over(small) == []


def test_fetch_goes_on_with_what_was_received(small, server):
  server.cuts = [5, 0, 0, 0]
  with pytest.raises(ValueError, match="can't get small: .*numbers.gz fails: .* cut"):
    fetch.fetch("small")
  assert not small.exists()
  fetch.fetch("small")
  assert server.ranges == [None, *["bytes=5-"] * 4, None]
  assert contents(small) == FILES


def test_fetch_prefers_packages(small, server, monkeypatch):
  def fetch_packages(packages, folder):
    assert packages == ("p",)
    (folder / "usr/share").mkdir(parents=True)
    (folder / "usr/share/plain.jpg").write_bytes(FILES["plain.jpg"])
    (folder / "usr/numbers.gz").write_bytes(gzip.compress(FILES["numbers"], 1))

  monkeypatch.setattr(_packages, "available", lambda: True)
  monkeypatch.setattr(_packages, "fetch_packages", fetch_packages)
  fetch.fetch("small")
  assert contents(small) == FILES
  assert server.ranges == []
  assert left_over(small) == []


@pytest.mark.parametrize("wrong", [b"other bytes", None, "truncated"])
def test_fetch_goes_to_the_addresses_when_packages_are_wrong(small, server, monkeypatch, wrong):
  def fetch_packages(packages, folder):
    if wrong is None:
      raise ConnectionError("apt-get fails: E: No package p")
    (folder / "plain.jpg").write_bytes(FILES["plain.jpg"] if wrong == "truncated" else wrong)
    packed = gzip.compress(FILES["numbers"])
    (folder / "numbers.gz").write_bytes(packed[:-9] if wrong == "truncated" else packed)

  monkeypatch.setattr(_packages, "available", lambda: True)
  monkeypatch.setattr(_packages, "fetch_packages", fetch_packages)
  text = io.StringIO()
  fetch.fetch("small", Console(file=text, width=200))
  said = {
    None: "small: apt-get fails: E: No package p",
    "truncated": "small: numbers.gz is damaged: ",
    b"other bytes": "small: plain.jpg is damaged: its sha256 is",
  }
  assert said[wrong] in text.getvalue()
  assert contents(small) == FILES


def test_fetch_says_what_every_source_answered(small, server, monkeypatch):
  def fetch_packages(packages, folder):
    raise ConnectionError("apt-get fails: E: No package p")

  monkeypatch.setattr(_packages, "available", lambda: True)
  monkeypatch.setattr(_packages, "fetch_packages", fetch_packages)
  small.mkdir(parents=True)
  (small / "numbers").write_bytes(b"from before")
  server.files["/p_1.deb"] = b"changed"
  with pytest.raises(ValueError, match="E: No package p; http.*p_1.deb has sha256"):
    fetch.fetch("small")
  # A failure leaves what was there as it was.
  assert contents(small) == {"numbers": b"from before"}
  assert left_over(small) == []


def test_unknown_names():
  with pytest.raises(ValueError, match="got 'fashion_mnst'; did you mean fashion_mnist?"):
    fetch.fetch("fashion_mnst")


def test_root(monkeypatch):
  monkeypatch.setenv("NORMJAX_DATA", "~/here")
  assert _store.root() == Path.home() / "here"
  monkeypatch.delenv("NORMJAX_DATA")
  assert _store.root() == Path.home() / ".cache/normjax"


def test_every_set_is_complete():
  for stored in _store.SETS.values():
    # Debian's packages are not everywhere, pip is.
    assert stored.python_package or (stored.packages and stored.addresses)
    assert stored.files
    pins = stored.python_package.sha256 if stored.python_package else ()
    pins += tuple(address.sha256 for address in stored.addresses)
    for text in [*stored.files.values(), *pins]:
      assert len(bytes.fromhex(text)) == 32


def test_command(tmp_path):
  def run(*arguments):
    command = [sys.executable, "-m", "experiments.data.fetch", *arguments]
    environment = os.environ | {"NORMJAX_DATA": str(tmp_path)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

  listed = run("--list")
  assert listed.returncode == 0, listed.stderr
  assert "fashion_mnist (get it with this command): 70,000 grey" in listed.stdout
  wrong = run("fashion_mnst")
  assert wrong.returncode == 1
  assert wrong.stderr.strip().endswith("did you mean fashion_mnist?")
  assert "Traceback" not in wrong.stderr
