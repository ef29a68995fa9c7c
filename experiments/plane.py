"""The plane: meshes over it, and pictures of points and densities."""

from typing import Any

import numpy as np


def mesh(low: float, high: float, side: int) -> np.ndarray:
  """Return the centres (side^2, 2) of the cells of a square, rows from the top."""
  centres = low + (np.arange(side) + 0.5) * (high - low) / side
  x, y = np.meshgrid(centres, centres[::-1])
  return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)


def show_density(axes: Any, density: np.ndarray, half: float, top: float) -> None:
  """Draw a density (side, side) on a square of half width `half`; `top` is the brightest."""
  axes.imshow(density, extent=(-half, half, -half, half), cmap="magma", vmin=0, vmax=top)
  axes.set(xticks=[], yticks=[])


def show_points(axes: Any, points: np.ndarray, half: float) -> None:
  """Draw points (n, 2) on a square of half width `half`."""
  axes.scatter(*points[:3000].T, s=0.3, color="C0", linewidths=0)
  axes.set(xlim=(-half, half), ylim=(-half, half), aspect="equal", xticks=[], yticks=[])
