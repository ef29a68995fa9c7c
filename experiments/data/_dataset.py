"""What every loader returns: two dictionaries of arrays in memory and what they mean."""

from typing import NamedTuple

import numpy as np


class Dataset(NamedTuple):
  """Images in memory, split into training and held-out examples.

  Attributes:
    train: "image" (n, h, w, c) uint8 and, where the set has classes, "label" (n,) int32.
    test: the same keys, never trained on.
    num_levels: an image's values are 0, ..., num_levels - 1.
    num_classes: labels are 0, ..., num_classes - 1; None without labels.
    description: one line for logs and pictures.
  """

  train: dict[str, np.ndarray]
  test: dict[str, np.ndarray]
  num_levels: int
  num_classes: int | None
  description: str

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape (h, w, c) of one image."""
    return self.train["image"].shape[1:]
