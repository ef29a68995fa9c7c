"""Handwritten digits that come with scikit-learn: the set that is always there."""

import numpy as np
from sklearn.datasets import load_digits

from experiments.data._dataset import Dataset

_NUM_TEST = 360


def digits() -> Dataset:
  """Load 1797 digits of 8x8 pixels with 17 levels, split at random (always alike) 1437 to 360."""
  bunch = load_digits()
  order = np.random.default_rng(0).permutation(len(bunch.images))
  image = bunch.images[order, :, :, None].astype(np.uint8)
  label = bunch.target[order].astype(np.int32)
  return Dataset(
    train={"image": image[_NUM_TEST:], "label": label[_NUM_TEST:]},
    test={"image": image[:_NUM_TEST], "label": label[:_NUM_TEST]},
    num_levels=17,
    num_classes=10,
    description="scikit-learn digits, 8x8, 17 levels, random split 1437/360",
  )
