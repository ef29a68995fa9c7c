"""What every loader returns: two dictionaries of arrays in memory and what they mean."""

from typing import NamedTuple

import numpy as np


class Dataset(NamedTuple):
  """Images or rows of a table in memory, split into training and held-out examples.

  Attributes:
    train: "image" (n, h, w, c) uint8 and, where the set has classes, "label" (n,) int32; of a table
      "x" (n, d) float32 and, where its rows come in groups, "group" (n,) int32.
    test: the same keys, never trained on.
    num_levels: an image's values are 0, ..., num_levels - 1; a table is continuous and has 0.
    num_classes: labels are 0, ..., num_classes - 1; None without labels.
    description: one line for logs and pictures.
    columns: the names of a table's d columns; none of images.
  """

  train: dict[str, np.ndarray]
  test: dict[str, np.ndarray]
  num_levels: int
  num_classes: int | None
  description: str
  columns: tuple[str, ...] = ()

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape (h, w, c) of one image, or (d,) of one row."""
    return self.train["x" if self.columns else "image"].shape[1:]


def num_examples(arrays: dict[str, np.ndarray]) -> int:
  """Return how many examples a dictionary of equally long arrays holds."""
  return len(next(iter(arrays.values())))
