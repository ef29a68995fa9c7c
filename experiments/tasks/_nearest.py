"""How far samples are from the nearest training images."""

import math

import numpy as np

_CHUNK = 2048  # images compared with at a time: their float copies stay small


def nearest(x: np.ndarray, images: np.ndarray) -> np.ndarray:
  """Return distances (n,) of x (n, ...) to the nearest of images (m, ...), divided by sqrt(D).

  distance_i = min_j |x_i - image_j| / sqrt(D),  D entries each: the root mean square over pixels.
  """
  x = x.reshape(len(x), -1).astype(np.float64)
  least = np.full(len(x), np.inf)
  for start in range(0, len(images), _CHUNK):
    part = images[start : start + _CHUNK].reshape(-1, x.shape[1]).astype(np.float64)
    squared = np.sum(x**2, 1)[:, None] - 2 * x @ part.T + np.sum(part**2, 1)
    least = np.minimum(least, squared.min(axis=1))
  return np.sqrt(np.maximum(least, 0) / math.prod(x.shape[1:]))
