"""Normalization of two regions apart, the core of Region Normalization.

https://arxiv.org/abs/1911.10375. The authors fill the rest of the image with the region's mean,
batch-normalize and multiply by sqrt(S / n); written out, that divides by sqrt(var + epsilon * n /
S), so that a tiny region is damped. Statistics are those of the whole batch as in the code, or of
each example as in the paper (`stats_axes`). An empty region adds exactly zero.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Shaped

from normjax.norms._arguments import (
  as_images,
  broadcasts_explicitly,
  check_epsilon,
  entries,
  floating_dtype,
  statistics_dtype,
)
from normjax.norms._statistics import Reduction

StatsAxes = Literal["batch", "instance"]


def region_normalize(
  x: Float[Array, "b h w c"],
  label: Shaped[Array, "b h w #c"],
  *,
  epsilon: float = 1e-5,
  stats_axes: StatsAxes = "batch",
  soft: bool = False,
  axis_name: str | None = None,
  dtype: DTypeLike | None = None,
) -> Float[Array, "b h w c"]:
  """Normalize foreground and background of images apart, each with its own statistics.

  y = sum over R in {label, 1 - label} of R * (x - mean_R) / sqrt(var_R + epsilon * n / S), where S
  = sum(R) of n positions, mean_R = sum(R * x) / S and var_R = sum(R * (x - mean_R)^2) / S per
  channel, with x (b, h, w, c) -> y of the same shape.

  Args:
    x: floating input.
    label: 1 or True in the foreground; (b, h, w, 1) or (b, h, w, c), or sizes 1 in it. No gradient
      passes through it.
    epsilon: added to the variance, times n / S.
    stats_axes: "batch" for statistics over batch and space, "instance" for those of each example.
    soft: whether labels between 0 and 1 are meant, as weights.
    axis_name: mapped axis over which a batch is sharded, for stats_axes="batch".
    dtype: dtype of the output; the default is that of x.

  Returns:
    The normalized array.

  Raises:
    ValueError: if x is not floating (b, h, w, c), the label does not fit, or (outside `jit`) has
      entries outside [0, 1], or between them without `soft`; if epsilon < 0, stats_axes is unknown,
      or axis_name comes with stats_axes="instance".

  Reference:
    Yu et al., "Region Normalization for Image Inpainting", 2020, arXiv 1911.10375.

  Example:
    >>> x, hole = jnp.array([1.0, 3.0, 10.0, 30.0]), jnp.array([True, True, False, False])
    >>> print(region_normalize(x.reshape(1, 4, 1, 1), hole.reshape(1, 4, 1, 1)).ravel().round(3))
    [-1.  1. -1.  1.]
  """
  x = as_images(x)
  check_epsilon(epsilon)
  reduction = region_reduction(x.shape, stats_axes, axis_name)
  wide = x.astype(statistics_dtype(x))
  label = as_region(label, x.shape, wide.dtype, soft)
  n = reduction.count(wide.dtype)
  y = _one_region(wide, label, n, reduction, epsilon)
  y = y + _one_region(wide, 1 - label, n, reduction, epsilon)
  return y.astype(floating_dtype(x.dtype if dtype is None else dtype, "dtype"))


def _one_region(
  x: Float[Array, "b h w c"],
  region: Float[Array, "b h w #c"],
  n: Float[Array, "..."],
  reduction: Reduction,
  epsilon: float,
) -> Float[Array, "b h w c"]:
  size = reduction.sum(region)
  filled = size > 0
  size = jnp.where(filled, size, jnp.ones_like(size))
  mean = lambda v: reduction.sum(region * v) / size
  inside = lambda v: jnp.where(region > 0, v, jnp.zeros_like(v))  # also drops NaN and infinity
  shift = jax.lax.stop_gradient(mean(inside(x)))
  d = inside(x - shift)
  correction = mean(d)  # what the mean of large numbers is off by: see `moments`
  variance = mean(d * d) - correction * correction
  variance = jnp.maximum(variance, jnp.zeros_like(variance)) + epsilon * n / size
  variance = jnp.where(filled, variance, jnp.ones_like(variance))
  return region * inside((d - correction) * jax.lax.rsqrt(variance))


def check_stats_axes(stats_axes: str, axis_name: str | None) -> None:
  """Raise unless `stats_axes` is known, and names the batch if that is sharded by name."""
  if stats_axes not in ("batch", "instance"):
    raise ValueError(f"stats_axes must be 'batch' or 'instance', got {stats_axes!r}")
  if axis_name is not None and stats_axes == "instance":
    raise ValueError(f"axis_name must be None with stats_axes='instance', got {axis_name!r}")


def region_reduction(
  shape: tuple[int, ...], stats_axes: StatsAxes, axis_name: str | None
) -> Reduction:
  """Returns the reduction over the axes that share statistics."""
  check_stats_axes(stats_axes, axis_name)
  return Reduction((0, 1, 2) if stats_axes == "batch" else (1, 2), shape, None, axis_name)


def as_region(
  label: ArrayLike, shape: tuple[int, ...], dtype: jnp.dtype, soft: bool, name: str = "label"
) -> Float[Array, "b h w #c"]:
  """Returns a region as weights (b, h, w, 1 or c) without a gradient, or raises."""
  label = jnp.asarray(label)
  if not broadcasts_explicitly(label.shape, shape):
    raise ValueError(
      f"{name} must have 4 axes, each of size 1 or as in {shape}, got shape {label.shape}"
    )
  values = entries(label)
  if values is not None and values.dtype != bool:
    if not np.all((values >= 0) & (values <= 1)):
      raise ValueError(f"{name} must lie in [0, 1], got entries outside of it")
    if not soft and not np.all((values == 0) | (values == 1)):
      raise ValueError(f"{name} must be 0 or 1, got entries between them: soft=True allows them")
  label = jax.lax.stop_gradient(label.astype(dtype))
  return jnp.broadcast_to(label, (*shape[:3], label.shape[-1]))
