"""Coloured shapes drawn from a seed: something to train on anywhere, at any size."""

import numpy as np

from experiments.data._dataset import Dataset

_NUM_CLASSES = 4


def generated(size: int = 16, num_train: int = 256, num_test: int = 64, seed: int = 0) -> Dataset:
  """Draw colour images with one of four shapes each: disc, square, ring or stripes.

  Args:
    size: side in pixels.
    num_train: how many training images.
    num_test: how many held-out ones.
    seed: of all random choices; equal arguments draw equal images.

  Raises:
    ValueError: if a count is below 1, or `size` below 2.
  """
  for name, count, least in (
    ("size", size, 2),
    ("num_train", num_train, 1),
    ("num_test", num_test, 1),
  ):
    if count < least:
      raise ValueError(f"{name} must be at least {least}, got {count}")
  rng = np.random.default_rng(seed)
  train, test = (_draw(rng, number, size) for number in (num_train, num_test))
  description = f"generated shapes, {size}x{size}x3, 256 levels, {num_train}/{num_test}"
  return Dataset(train, test, 256, _NUM_CLASSES, description)


def _draw(rng: np.random.Generator, n: int, size: int) -> dict[str, np.ndarray]:
  label = rng.integers(_NUM_CLASSES, size=n).astype(np.int32)
  corners = rng.uniform(0, 200, (2, n, 1, 1, 3))
  colour = rng.uniform(50, 255, (n, 1, 1, 3))
  center = rng.uniform(0.3, 0.7, (2, n, 1, 1))
  radius = rng.uniform(0.15, 0.4, (n, 1, 1))
  grid = (np.arange(size) + 0.5) / size
  dy, dx = grid[:, None] - center[0], grid - center[1]  # (n, size, size), after broadcasting
  distance = np.hypot(dy, dx)
  shapes = np.stack(
    [
      distance < radius,
      np.maximum(abs(dy), abs(dx)) < radius,
      abs(distance - radius) < radius / 3,
      np.sin((dy + dx) * (3 * np.pi) / radius) > 0,
    ]
  )  # (classes, n, size, size)
  inside = shapes[label, np.arange(n)][..., None]
  ramp = grid[:, None, None]
  background = corners[0] * (1 - ramp) + corners[1] * ramp  # (n, size, 1, 3)
  image = np.where(inside, colour, background) + rng.normal(0, 4, (n, size, size, 3))
  return {"image": np.clip(image, 0, 255).astype(np.uint8), "label": label}
