"""Pictures of conditional norms: layouts beside what was drawn from them, and colour transfers."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib import colormaps

from experiments import plots
from experiments.data import Dataset
from normjax import norms

_THREES = 4  # in a row of the picture
_PHOTOS = 6  # contents, and as many styles


def layout_threes(
  layout: np.ndarray, drawn: np.ndarray, original: np.ndarray, num_labels: int, path: Path
) -> Path:
  """Write layouts (n, h, w), drawn and original images (n, h, w, c) on [0, 1] side by side."""
  # Label 0 is black; the classes have colours all over the map.
  palette = colormaps["hsv"](np.linspace(0, 1, num_labels))[:, :3]
  palette[0] = 0
  shown = [palette[layout], *(np.broadcast_to(x, (*x.shape[:3], 3)) for x in (drawn, original))]
  threes = np.stack(shown, 1).reshape(-1, *layout.shape[1:], 3)
  return plots.image_grid(_levels(threes), path, columns=3 * _THREES)


def colour_transfers(photos: Dataset, path: Path) -> Path:
  """Write a grid: contents down, styles across, and each content in the colours of each style.

  AdaIN right on the three colour channels: each gets mean and standard deviation from the style.
  Shapes stay where they are; there is no network that would carry textures over.

  Args:
    photos: colour images; contents are held-out ones, styles come from the training part.
    path: the PNG.

  Returns:
    The path.
  """
  content, style = (_apart(part["image"]) for part in (photos.test, photos.train))
  n, m, shape = len(content), len(style), content.shape[1:]
  contents, styles = np.repeat(content, m, 0), np.tile(style, (n, 1, 1, 1))
  pairs = norms.adaptive_instance_norm(jnp.asarray(contents), jnp.asarray(styles))
  grid = np.ones((n + 1, m + 1, *shape), np.float32)
  grid[0, 1:], grid[1:, 0] = style, content
  grid[1:, 1:] = np.asarray(pairs).reshape(n, m, *shape)
  return plots.image_grid(_levels(grid.reshape(-1, *shape)), path, columns=m + 1)


def _apart(images: np.ndarray) -> np.ndarray:
  """Return a few images on [0, 1], far apart in the set: neighbours come from one photo."""
  count = min(_PHOTOS, len(images))
  middle = (2 * np.arange(count) + 1) * len(images) // (2 * count)
  return images[middle].astype(np.float32) / 255


def _levels(x: np.ndarray) -> np.ndarray:
  return np.round(255 * np.clip(x, 0, 1)).astype(np.uint8)
