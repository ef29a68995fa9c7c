"""Fashion-M: Fashion-MNIST on natural colour patches, the set for small colour classifiers.

The recipe of MNIST-M: each picture of clothes, padded to 32x32, is taken from a colour patch pixel
by pixel as |patch - picture|. Held-out pictures lie on patches of held-out photos.

Reference:
  Ganin et al., "Domain-Adversarial Training of Neural Networks", 2016, arXiv 1505.07818.
"""

import numpy as np

from experiments.data._dataset import Dataset
from experiments.data._fashion_mnist import fashion_mnist
from experiments.data._natural_patches import natural_patches

_PAD = 2
_SIZE = 28 + 2 * _PAD


def fashion_m(
  num_train: int | None = None, num_test: int | None = None, photos: str = "all", seed: int = 0
) -> Dataset:
  """Blend 60,000 + 10,000 pictures of clothes in 10 classes into 32x32 colour patches.

  Args:
    num_train: how many training images, from the first on; None for all.
    num_test: how many held-out ones, likewise.
    photos: whose patches, see `natural_patches`; "bundled" leaves only fashion_mnist to fetch.
    seed: chooses the patch of each picture; equal arguments give equal images.

  Raises:
    ValueError: if a number is out of range, or a set has not been fetched.
  """
  clothes = fashion_mnist()
  parts = {
    "num_train": (num_train, clothes.train),
    "num_test": (num_test, clothes.test),
  }
  for name, (count, part) in parts.items():
    if count is not None and not 1 <= count <= len(part["image"]):
      raise ValueError(f"{name} must be from 1 to {len(part['image'])} or None, got {count}")
  patches = natural_patches(photos, size=_SIZE)
  rng = np.random.default_rng(seed)
  train = _blend(clothes.train, num_train, patches.train["image"], rng)
  test = _blend(clothes.test, num_test, patches.test["image"], rng)
  sizes = f"{len(train['image'])}/{len(test['image'])}"
  description = f"Fashion-M, {_SIZE}x{_SIZE}x3, 256 levels, {photos} photos, {sizes}"
  return Dataset(train, test, 256, 10, description)


def _blend(
  clothes: dict[str, np.ndarray],
  count: int | None,
  patches: np.ndarray,
  rng: np.random.Generator,
) -> dict[str, np.ndarray]:
  # Patches are drawn for the whole part, so that a smaller set is the beginning of the larger one.
  chosen = rng.integers(len(patches), size=len(clothes["image"]))[:count]
  picture = np.pad(clothes["image"][:count], ((0, 0), (_PAD, _PAD), (_PAD, _PAD), (0, 0)))
  patch = patches[chosen]
  # |a - b| of bytes, without leaving bytes.
  image = np.maximum(patch, picture) - np.minimum(patch, picture)
  return {"image": image, "label": clothes["label"][:count]}
