"""Your own images: any folder of pictures or of .npz arrays, or a single .npz.

ImageNet 64x64 as its authors publish it (batches of .npz with "data" (n, 3 * 64 * 64), channels
first) is read as it is: put the batches into folders `train` and `val`. All of it stays in memory,
15.7 GB for that set.
"""

import math
import zipfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from experiments.data._dataset import Dataset

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_HELD_OUT = ("val", "valid", "validation", "test")
_KEYS = ("image", "images", "data", "arr_0")


def image_folder(
  path: str, size: int = 64, channels: int = 3, test_fraction: float = 0.1
) -> Dataset:
  """Load pictures, scaled so that the shorter side is `size` and cropped to the central square.

  Args:
    path: a folder, searched with all folders in it, or an .npz. A folder that holds folders `train`
      and `val` (or `valid`, `validation`, `test`) is split so, and an .npz by arrays of those
      names; anything else is split at random, always alike.
    size: side of the images.
    channels: 3 for colour, 1 for grey.
    test_fraction: share of images to hold out where the folder has no split of its own.

  Raises:
    ValueError: if an argument is out of range, there is nothing to read at `path`, or a file can't
      be read.
  """
  source = Path(path).expanduser()
  if size < 1:
    raise ValueError(f"size must be at least 1, got {size}")
  if channels not in (1, 3):
    raise ValueError(f"channels must be 3 (colour) or 1 (grey), got {channels}")
  if not 0 < test_fraction < 1:
    raise ValueError(f"test_fraction must be between 0 and 1, got {test_fraction}")
  if not source.exists():
    raise ValueError(f"path must be a folder of images or an .npz, nothing is at {source}")
  parts = _own_split(source)
  if parts:
    train, test = (_stack(_read(part, key), size, channels, source) for part, key in parts)
  else:
    image = _stack(_read(source, None), size, channels, source)
    if len(image) < 2:
      raise ValueError(f"{source} holds 1 image: no training and held-out part can be made of it")
    num_test = min(max(1, round(len(image) * test_fraction)), len(image) - 1)
    order = np.random.default_rng(0).permutation(len(image))
    train, test = image[order[num_test:]], image[order[:num_test]]
  description = f"{source}, {size}x{size}x{channels}, 256 levels, {len(train)}/{len(test)}"
  return Dataset({"image": train}, {"image": test}, 256, None, description)


def _own_split(source: Path) -> list[tuple[Path, str | None]]:
  """Return where the training and the held-out images are, if the source says so."""
  if source.is_dir():
    names = {path.name for path in source.iterdir() if path.is_dir()}
  else:
    with _open_npz(source) as archive:
      names = set(archive.files)
  held_out = next((name for name in _HELD_OUT if name in names), None)
  if "train" not in names or not held_out:
    return []
  if source.is_dir():
    return [(source / "train", None), (source / held_out, None)]
  return [(source, "train"), (source, held_out)]


def _read(source: Path, key: str | None) -> Iterator[np.ndarray | Image.Image]:
  """Yield pictures, and arrays (n, h, w, c) of them, in the order of their paths."""
  for file in sorted(source.rglob("*")) if source.is_dir() else [source]:
    if file.suffix.lower() == ".npz":
      yield _read_npz(file, key)
    elif file.suffix.lower() in _SUFFIXES:
      yield _read_picture(file)


def _read_picture(file: Path) -> Image.Image:
  try:
    with Image.open(file) as picture:
      return ImageOps.exif_transpose(picture)
  except (OSError, SyntaxError) as error:  # Pillow calls some damages a SyntaxError.
    raise ValueError(f"can't read the image {file}: {error}") from error


def _open_npz(file: Path) -> np.lib.npyio.NpzFile:
  if not zipfile.is_zipfile(file):
    raise ValueError(f"{file} must be a folder of images or an .npz")
  return np.load(file)


def _read_npz(file: Path, key: str | None) -> np.ndarray:
  with _open_npz(file) as archive:
    key = key or next((name for name in _KEYS if name in archive.files), None)
    if key is None:
      raise ValueError(
        f"{file} must hold one of {', '.join(_KEYS)}, got {', '.join(archive.files)}"
      )
    array = archive[key]
  if array.ndim == 2:  # (n, 3 * side * side), channels first
    side = math.isqrt(array.shape[1] // 3)
    if 3 * side * side == array.shape[1]:
      array = array.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
  if array.ndim != 4 or array.shape[-1] not in (1, 3) or array.dtype != np.uint8:
    raise ValueError(
      f"{key} in {file} must be uint8 (n, h, w, 3) or (n, h, w, 1), got {array.dtype} {array.shape}"
    )
  return array


def _stack(
  parts: Iterator[np.ndarray | Image.Image], size: int, channels: int, source: Path
) -> np.ndarray:
  """Bring everything to one shape in one array, holding hardly more than one copy of it."""
  mode = "RGB" if channels == 3 else "L"
  shape = (size, size, channels)
  ready: deque[np.ndarray] = deque()
  for part in parts:
    pictures = [part] if isinstance(part, Image.Image) else part
    if isinstance(part, np.ndarray) and part.shape[1:] == shape:
      ready.append(part)
      continue
    for picture in pictures:
      if not isinstance(picture, Image.Image):
        picture = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
      fitted = ImageOps.fit(picture.convert(mode), (size, size), Image.Resampling.LANCZOS)
      ready.append(np.asarray(fitted).reshape(1, *shape))
  if not ready:
    raise ValueError(f"no images in {source}: looked for {', '.join(_SUFFIXES)} and .npz files")
  stacked = np.empty((sum(map(len, ready)), *shape), np.uint8)
  start = 0
  while ready:
    part = ready.popleft()
    stacked[start : start + len(part)] = part
    start += len(part)
  return stacked
