"""What all splines of this folder share: their box, their bins, and what happens outside."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from normjax.flows._checks import is_concrete
from normjax.flows._widened import widened

_MAX_RAW = 1e4


class Box(NamedTuple):
  """The rectangle from (left, bottom) to (right, top) that a spline crosses."""

  left: float
  right: float
  bottom: float
  top: float

  def check(self) -> None:
    """Raise ValueError unless the box has an inside and an end."""
    horizontal = -math.inf < self.left < self.right < math.inf
    if not (horizontal and -math.inf < self.bottom < self.top < math.inf):
      raise ValueError(
        f"left and bottom must be below right and top, all finite, got the box {tuple(self)}"
      )


def in_box(
  name: str,
  value: Float[Array, "*batch"],
  evaluate: Callable[[Array], tuple[Array, Array]],
  box: Box,
  *,
  tails: bool,
  closed: bool = True,
) -> tuple[Array, Array]:
  """Return `evaluate(value)` inside of the box, and what its neighbourhood says elsewhere.

  `name` is "x" for a spline and "y" for its inverse. With tails the map goes on by lines of slope 1
  from the corners; else a point outside is an error or, under tracing, NaN. The edge belongs to the
  box if it is `closed`, which matters to second derivatives. `evaluate` sees
  points of the box only, so that all gradients are finite.
  """
  if not jnp.issubdtype(value.dtype, jnp.floating):
    raise ValueError(f"{name} must be floating, got {value.dtype}")
  low, high, start, end = box if name == "x" else (*box[2:], *box[:2])
  wide = widened(value)
  inside = (wide > low) & (wide < high)
  if closed:
    inside = inside | (wide == low) | (wide == high)
  out, log_abs_det = evaluate(jnp.where(inside, wide, low))
  if tails:
    beyond = jnp.where(wide > high, wide + (end - high), wide + (start - low))
    out = jnp.where(inside, out, beyond)
    log_abs_det = jnp.where(inside, log_abs_det, jnp.where(jnp.isnan(wide), wide, 0))
  else:
    if is_concrete(value) and np.any((np.asarray(wide) < low) | (np.asarray(wide) > high)):
      raise ValueError(f"{name} must lie in [{low}, {high}] unless the spline has linear tails")
    out, log_abs_det = (jnp.where(inside, v, jnp.nan) for v in (out, log_abs_det))
  return out.astype(value.dtype), log_abs_det


def bin_edges(
  raw: Float[Array, "*batch k"], low: float, high: float, minimum: float
) -> Float[Array, "*batch k1"]:
  """Return the K + 1 knots of one axis; the first and the last are the box, exactly."""
  return edges_of(bin_shares(raw, minimum), low, high)


def bin_shares(raw: Float[Array, "..."], minimum: float, axis: int = -1) -> Float[Array, "..."]:
  """Return the shares of the box that the bins on `axis` have, at least `minimum` each."""
  # Where raw is a product, compilers subtract the largest from it before it is rounded: beyond some
  # 1e9 what is left of the largest may be any number, and its exponential infinite.
  raw = jnp.clip(raw, -_MAX_RAW, _MAX_RAW)
  return minimum + (1 - minimum * raw.shape[axis]) * jax.nn.softmax(raw, axis=axis)


def edges_of(shares: Float[Array, "*batch k"], low: float, high: float) -> Array:
  """Return the knots between bins of these shares of the axis."""
  inner = low + (high - low) * jnp.cumsum(shares, axis=-1)[..., :-1]
  end = lambda v: jnp.full((*shares.shape[:-1], 1), v, shares.dtype)
  return jnp.concatenate([end(low), inner, end(high)], axis=-1)


def bin_taker(
  value: Float[Array, "*batch"], edges: Float[Array, "*batch k1"]
) -> Callable[[Array], Array]:
  """Return a function that picks from (*batch, K) the entry of the bin that holds `value`."""
  # Inner knots at or below the value; so the last bin holds its right end, and NaN some bin.
  index = jnp.sum(value[..., None] >= edges[..., 1:-1], axis=-1)
  here = index[..., None] == jnp.arange(edges.shape[-1] - 1).reshape((1,) * index.ndim + (-1,))
  return lambda v: jnp.sum(jnp.where(here, v, 0), axis=-1)


def check_minimum(label: str, minimum: float, num_bins: int) -> None:
  """Raise ValueError unless `num_bins` bins can all have this share of an axis."""
  if not 0 <= minimum * num_bins <= 1:
    raise ValueError(f"{label} must be in [0, 1 / K] with K = {num_bins}, got {minimum}")


def check_raw(label: str, raw: Array, value: Array, counts: tuple[int, ...] = ()) -> int:
  """Return the last axis of `raw` (*value.shape, K >= 1), one of `counts` if there are any."""
  good = raw.ndim == value.ndim + 1 and raw.shape[:-1] == value.shape
  if not good or raw.shape[-1] < 1 or (counts and raw.shape[-1] not in counts):
    last = " or ".join(map(str, counts)) or "K >= 1"
    raise ValueError(f"{label} must have shape (*{value.shape}, {last}), got {raw.shape}")
  return raw.shape[-1]
