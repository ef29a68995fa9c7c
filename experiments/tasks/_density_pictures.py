"""Pictures of a trained density: samples, interpolations, reconstructions."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import plots

_ROW = 8  # pictures in a row


def density_pictures(
  task: Any, flow: Any, directory: Path, temperatures: Sequence[float], count: int, seed: int
) -> list[Path]:
  """Write the pictures of a flow into a folder; see `Density.pictures`.

  Raises:
    ValueError: for a temperature below 0 or a count below 1.
  """
  if count < 1:
    raise ValueError(f"count must be at least 1, got {count}")
  if bad := [t for t in temperatures if not t >= 0]:
    raise ValueError(f"temperatures must be at least 0, got {bad}")
  key, show, files = jax.random.key(seed), {"num_levels": task.dataset.num_levels}, []

  columns = _ROW
  if task.num_classes:
    columns = task.num_classes  # one column for each class
    count = max(1, count // columns) * columns
  label = task.labels(count)
  draw = jax.jit(lambda flow, t: task.samples(flow, key, count, t, label))
  for temperature in temperatures:
    files.append(directory / f"samples_T{temperature:g}.png")
    images = np.asarray(draw(flow, jnp.float32(temperature)))
    plots.image_grid(images, files[-1], columns=columns, **show)

  files.append(directory / "interpolations.png")
  plots.image_grid(interpolations(task, flow, key), files[-1], columns=_ROW, **show)
  files.append(directory / "reconstructions.png")
  rows = reconstructions(task, flow, key)
  plots.image_grid(rows, files[-1], columns=len(rows) // 3, **show)
  return files


def interpolations(task: Any, flow: Any, key: Any, rows: int = 6) -> np.ndarray:
  """Return `rows` walks between held-out images, (rows * 8, h, w, c), along circles of latents.

  Where there are fewer than two images for each walk they come again.
  """
  images = task.dataset.test["image"]
  x = task.dequantize(jnp.asarray(images[np.arange(2 * rows) % len(images)]), key)
  latents = np.asarray(jax.jit(lambda flow, x: flow.bijector.forward(x)[0])(flow, x))
  walks = [spherical(latents[2 * i], latents[2 * i + 1], _ROW) for i in range(rows)]
  decode = jax.jit(lambda flow, z: task.quantize(flow.bijector.inverse(z)[0]))
  return np.asarray(decode(flow, jnp.asarray(np.concatenate(walks), x.dtype)))


def reconstructions(task: Any, flow: Any, key: Any) -> np.ndarray:
  """Return three rows of 8, or of all there are: images, round trips, those from latents times 0.7.

  The images are held out. The second row shows that the flow is invertible, the third what moving
  towards the mode does.
  """
  image = jnp.asarray(task.dataset.test["image"][:_ROW])

  def decode(flow, image):
    z, _ = flow.bijector.forward(task.dequantize(image, key))
    return [task.quantize(flow.bijector.inverse(scale * z)[0]) for scale in (1.0, 0.7)]

  return np.concatenate([np.asarray(rows) for rows in (image, *jax.jit(decode)(flow, image))])


def spherical(first: np.ndarray, last: np.ndarray, count: int) -> np.ndarray:
  """Return `count` points on the great circle from `first` to `last`, arrays of one shape.

  Latents of a normal lie near a sphere; straight lines between them would leave it.
  """
  cosine = np.vdot(first, last) / (np.linalg.norm(first) * np.linalg.norm(last))
  angle = math.acos(float(np.clip(cosine, -1.0, 1.0)))
  if angle < 1e-6:
    return np.stack([first] * count)
  weights = np.linspace(0.0, 1.0, count).reshape(-1, *(1,) * np.ndim(first))
  ends = np.sin((1 - weights) * angle) * first[None] + np.sin(weights * angle) * last[None]
  return ends / math.sin(angle)
