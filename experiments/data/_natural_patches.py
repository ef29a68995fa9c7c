"""Small overlapping patches of colour photos, in two parts that share no photo.

Neighbouring patches overlap, so a split by patch would leak: whole photos are held out, always the
same ones. Seven photos come with scikit-image and scikit-learn; the other 31 pictures are desktop
wallpapers, fetched once. Four of those (Fossa, Infinite-Sea, Painting-Colors, umang) are drawn by
computer and stay in the training part. This is little variety next to CIFAR or ImageNet: compare
numbers on this set with each other only.
"""

from collections.abc import Iterable

import numpy as np
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_images

from experiments.data._dataset import Dataset
from experiments.data._store import SETS, require

_HELD_OUT = frozenset(
  {
    "chelsea",
    "china",
    "Dragonfly_by_Bolly",
    "friends_by_Aitzol_Berasategi",
    "Kleiber_by_Lukas_Baubkus",
    "Picture_0B_by_freespace",
    "sunset_by_Aitzol_Berasategi",
    "YellowFlower",
  }
)


def natural_patches(
  photos: str = "all", size: int = 32, long_side: int = 400, stride: int = 8, min_std: float = 10.0
) -> Dataset:
  """Cut square colour patches from 38 photos, 30 for training and 8 held out.

  Args:
    photos: "all", or "bundled" for the 7 photos (5 and 2) that need no fetching.
    size: side of a patch.
    long_side: photos are shrunk until their longer side has this many pixels.
    stride: distance of neighbouring patches.
    min_std: patches whose standard deviation over pixels, averaged over channels, is lower are left
      out: flat sky has nothing to model.

  Raises:
    ValueError: if an argument is out of range, or the photos have not been fetched.
  """
  if photos not in ("all", "bundled"):
    raise ValueError(f'photos must be "all" or "bundled", got {photos!r}')
  if not 0 < size <= long_side:
    raise ValueError(f"size must be from 1 to long_side = {long_side}, got {size}")
  if stride < 1:
    raise ValueError(f"stride must be at least 1, got {stride}")
  named = _bundled() | (_fetched(long_side) if photos == "all" else {})
  train, test = (
    {
      "image": cut(
        (shrink(photo, long_side) for name, photo in named.items() if (name in _HELD_OUT) == held),
        size,
        stride,
        min_std,
      )
    }
    for held in (False, True)
  )
  if not (len(train["image"]) and len(test["image"])):
    raise ValueError(f"min_std {min_std} leaves no patch to train on or to hold out")
  sizes = f"{len(train['image'])}/{len(test['image'])}"
  description = f"natural patches, {size}x{size}x3, 256 levels, {photos} photos, {sizes} by photo"
  return Dataset(train, test, 256, None, description)


def _bundled() -> dict[str, Image.Image]:
  china, flower = load_sample_images().images
  arrays = {
    "astronaut": data.astronaut(),
    "chelsea": data.chelsea(),
    "china": china,
    "coffee": data.coffee(),
    "flower": flower,
    "motorcycle": data.stereo_motorcycle()[0],
    "rocket": data.rocket(),
  }
  return {name: Image.fromarray(array) for name, array in arrays.items()}


def _fetched(long_side: int) -> dict[str, Image.Image]:
  folder = require("natural_patches")
  photos = {}
  for file in SETS["natural_patches"].files:
    photo = Image.open(folder / file)
    # JPEG decodes to a half, a quarter or an eighth at a fraction of the time; twice the size that
    # is wanted leaves the resampling to `shrink`.
    photo.draft("RGB", (2 * long_side, 2 * long_side))
    photos[file.removesuffix(".jpg")] = photo.convert("RGB")
  return photos


def shrink(photo: Image.Image, long_side: int) -> np.ndarray:
  """Return a photo as (h, w, 3) with the longer side at most `long_side`."""
  factor = long_side / max(photo.size)
  if factor < 1:
    width, height = (round(length * factor) for length in photo.size)
    photo = photo.resize((width, height), Image.Resampling.LANCZOS)
  return np.asarray(photo)


def cut(photos: Iterable[np.ndarray], size: int, stride: int, min_std: float) -> np.ndarray:
  """Cut photos (h, w, c) into patches (n, size, size, c), leaving out the flat ones."""
  kept = []
  for photo in photos:
    if min(photo.shape[:2]) < size:
      raise ValueError(f"size must be at most {min(photo.shape[:2])}, a photo's side, got {size}")
    windows = np.lib.stride_tricks.sliding_window_view(photo, (size, size), axis=(0, 1))
    windows = windows[::stride, ::stride]  # (i, j, c, size, size)
    std = windows.std(axis=(-2, -1), dtype=np.float32).mean(axis=-1)  # (i, j)
    kept.append(windows[std >= min_std].transpose(0, 2, 3, 1))
  return np.ascontiguousarray(np.concatenate(kept))
