"""Sums and means over the normalized axes: masked, and across devices where asked."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float


@dataclasses.dataclass(frozen=True)
class Reduction:
  """Which entries one statistic is taken over.

  `sum` and `mean` keep the reduced axes at size 1. They expect arrays that `keep` has zeroed under
  the mask. It is the entries that are masked and not their squares: a square that overflows would
  put NaN in the gradient, as zero times infinity.
  """

  axes: tuple[int, ...]
  shape: tuple[int, ...]
  mask: Bool[Array, "..."] | None = None
  axis_name: str | None = None

  def keep(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Zero the entries that do not enter the statistics."""
    return x if self.mask is None else jnp.where(self.mask, x, jnp.zeros_like(x))

  def sum(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Sum over the axes, and over the devices that share them."""
    total = jnp.sum(x, self.axes, keepdims=True)
    return total if self.axis_name is None else jax.lax.psum(total, self.axis_name)

  def max(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the largest entry, as a constant: no gradient passes through it."""
    top = jnp.max(jax.lax.stop_gradient(x), self.axes, keepdims=True)
    return top if self.axis_name is None else jax.lax.pmax(top, self.axis_name)

  def mean(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Average over the kept entries; zero where none is kept."""
    if self.mask is None and self.axis_name is None:
      return jnp.mean(x, self.axes, keepdims=True)
    count = self.count(x.dtype)
    return self.sum(x) / jnp.maximum(count, jnp.ones_like(count))

  def count(self, dtype: jnp.dtype) -> Float[Array, "..."]:
    """Returns how many entries enter the statistics; those of all devices that share them."""
    if self.mask is None:
      local = jnp.full((1,) * len(self.shape), math.prod(self.shape[a] for a in self.axes), dtype)
    else:
      kept = jnp.broadcast_to(self.mask, self.shape)
      local = jnp.sum(kept, self.axes, keepdims=True, dtype=dtype)
    return local if self.axis_name is None else jax.lax.psum(local, self.axis_name)


def finite_or_zero(x: Float[Array, "..."], mask: Bool[Array, "..."] | None) -> Float[Array, "..."]:
  """Replace masked entries that are infinite or NaN by 0.

  They are normalized like all others, but enter no statistics. Without this the gradient of the
  statistics would be NaN, as a cotangent of zero times NaN, wherever padding is no number.
  """
  return x if mask is None else jnp.where(mask | jnp.isfinite(x), x, jnp.zeros_like(x))


def centered(
  x: Float[Array, "..."], reduction: Reduction
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
  """Returns `x` minus its mean, and its variance: see `moments`."""
  deviations, _, variance = moments(x, reduction)
  return deviations, variance


def moments(
  x: Float[Array, "..."], reduction: Reduction
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
  """Returns `x` minus its mean, the mean and the variance: see `shifted_moments`."""
  shift, mean, variance = shifted_moments(x, reduction)
  return x - shift - mean, shift + mean, variance


def shifted_moments(
  x: Float[Array, "..."], reduction: Reduction
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
  """Returns a shift near the mean of `x`, the mean of `x - shift`, and the variance, in one pass.

  The mean of large numbers is rounded to their spacing: of 10^4 + N(0, 1) in float32 it is off by
  up to 10^-3, and so would be the output. Subtracting it first leaves numbers of the size of the
  deviations, whose own mean corrects it. Neither result depends on the shift, so no gradient
  passes through it.
  """
  shift = _one_number(jax.lax.stop_gradient(reduction.mean(reduction.keep(x))))
  kept = reduction.keep(x - shift)
  mean = reduction.mean(kept)
  variance = reduction.mean(kept * kept) - mean * mean
  return shift, mean, jnp.maximum(variance, jnp.zeros_like(variance))


def _one_number(shift: Float[Array, "..."]) -> Float[Array, "..."]:
  """Returns `shift` with its last bit rounded away.

  A compiler that computes sum / n again in every loop that subtracts it may contract the two
  operations, and so subtract a rounded mean in one loop and an exact one in another. This rounding
  stands between them.
  """
  bits = jnp.finfo(shift.dtype)
  return jax.lax.reduce_precision(shift, exponent_bits=bits.nexp, mantissa_bits=bits.nmant - 1)


def power(x: Float[Array, "..."], p: float) -> Float[Array, "..."]:
  """Returns `x**p` for non-negative x, by multiplication where p is whole."""
  return x ** int(p) if float(p).is_integer() else x**p


def safe_root(x: Float[Array, "..."], p: float = 2.0) -> Float[Array, "..."]:
  """Returns `x**(1/p)` with gradient 0, and not infinity, at 0."""
  positive = x > 0
  safe = jnp.where(positive, x, jnp.ones_like(x))
  root = jnp.sqrt(safe) if p == 2 else safe ** (1 / p)
  return jnp.where(positive, root, jnp.zeros_like(x))


def mean_power(x: Float[Array, "..."], reduction: Reduction, p: float) -> Float[Array, "..."]:
  """Returns mean(|x|^p)^(1/p) of kept entries, without the powers of large numbers."""
  size = x * jnp.sign(x)  # |x| with gradient 0 at 0, where jnp.abs has 1
  top = reduction.max(size)
  top = jnp.where(top > 0, top, jnp.ones_like(top))
  return top * safe_root(reduction.mean(power(size / top, p)), p)


def add_powers(a: Float[Array, "..."], b: ArrayLike, p: float) -> Float[Array, "..."]:
  """Returns (a^p + b^p)^(1/p) of non-negative numbers, without the powers of large numbers."""
  b = jnp.asarray(b, a.dtype)
  top = jax.lax.stop_gradient(jnp.maximum(a, b))
  top = jnp.where(top > 0, top, jnp.ones_like(top))
  return top * safe_root(power(a / top, p) + power(b / top, p), p)
