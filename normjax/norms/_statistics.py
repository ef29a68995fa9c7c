"""Sums and means over the normalized axes: masked, and across devices where asked."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

_MANY, _SHARE = 256, 16


@dataclasses.dataclass(frozen=True)
class Reduction:
  """Which entries one statistic is taken over.

  `sum` and `mean` keep the reduced axes at size 1. They expect arrays that `keep` has zeroed under
  the mask. It is the entries that are masked and not their squares: a square that overflows would
  put NaN in the gradient, as zero times infinity.

  `group_size` neighbouring channels, along the last axis, share their statistics: what `sum` and
  `mean` return has all channels, alike within a group.
  """

  axes: tuple[int, ...]
  shape: tuple[int, ...]
  mask: Bool[Array, "..."] | None = None
  axis_name: str | None = None
  group_size: int = 1

  @property
  def entries(self) -> int:
    """How many entries one statistic is taken over, without a mask and on one device."""
    return math.prod(self.shape[a] for a in self.axes) * self.group_size

  def keep(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Zero the entries that do not enter the statistics."""
    return x if self.mask is None else jnp.where(self.mask, x, jnp.zeros_like(x))

  def sum(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Sum over the axes, and over the devices that share them."""
    total = self.pooled(jnp.sum(x, self.axes, keepdims=True))
    return total if self.axis_name is None else jax.lax.psum(total, self.axis_name)

  def pooled(self, v: Float[Array, "... c"], combine: Callable = jnp.sum) -> Float[Array, "... c"]:
    """Returns sums of channels as sums of groups, for each channel."""
    if self.group_size == 1:
      return v
    split = v.reshape(*v.shape[:-1], -1, self.group_size)
    return jnp.broadcast_to(combine(split, -1, keepdims=True), split.shape).reshape(v.shape)

  def max(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the largest entry, as a constant: no gradient passes through it."""
    top = self.pooled(jnp.max(jax.lax.stop_gradient(x), self.axes, keepdims=True), jnp.max)
    return top if self.axis_name is None else jax.lax.pmax(top, self.axis_name)

  def mean(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Average over the kept entries; zero where none is kept."""
    if self.mask is None and self.axis_name is None:
      return self.pooled(jnp.mean(x, self.axes, keepdims=True), jnp.mean)
    count = self.count(x.dtype)
    return self.sum(x) / jnp.maximum(count, jnp.ones_like(count))

  def count(self, dtype: jnp.dtype) -> Float[Array, "..."]:
    """Returns how many entries enter the statistics; those of all devices that share them."""
    if self.mask is None:
      local = jnp.full((1,) * len(self.shape), self.entries, dtype)
    else:
      kept = jnp.broadcast_to(self.mask, self.shape)
      local = self.pooled(jnp.sum(kept, self.axes, keepdims=True, dtype=dtype))
    return local if self.axis_name is None else jax.lax.psum(local, self.axis_name)

  def sample(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns a sixteenth or more of the entries of every statistic, to estimate its mean.

    All of `x` where that costs little or where a part may hold nothing: of few entries, under a
    mask, across devices. The axis of examples is never cut: devices may share it.
    """
    partial = self.mask is not None or self.axis_name is not None
    if partial or not self.axes or self.axes[-1] == 0 or self.entries < _MANY:
      return x
    axis = self.axes[-1]
    return jax.lax.slice_in_dim(x, 0, -(-x.shape[axis] // _SHARE), axis=axis)


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
  x: Float[Array, "..."],
  reduction: Reduction,
  alone: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda f: f,
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
  """Returns a shift near the mean of `x`, the mean of `x - shift`, and the variance, in one pass.

  The mean of large numbers is rounded to their spacing: of 10^4 + N(0, 1) in float32 it is off by
  up to 10^-3, and so would be the output. Subtracting it first leaves numbers of the size of the
  deviations, whose own mean corrects it. Neither result depends on the shift, so no gradient
  passes through it.

  The shift is the mean of a sample of m of the n entries. Whatever they are, (shift - mean)^2 is
  at most (n / m - 1) * variance, as the deviations of the sample are some of all deviations: with
  m >= n / 16 the difference of squares below loses four bits at worst.

  `alone` may turn the functions of x, of the shift and of the moments, into passes of their own.
  """

  def near(x: Any) -> Any:
    return _one_number(jax.lax.stop_gradient(reduction.mean(reduction.sample(reduction.keep(x)))))

  def around(x: Any, shift: Any) -> Any:
    kept = reduction.keep(x - shift)
    mean = reduction.mean(kept)
    finite = jnp.minimum(mean * mean, jnp.finfo(mean.dtype).max)  # infinity less itself is NaN
    variance = reduction.mean(kept * kept) - finite
    return mean, jnp.maximum(variance, jnp.zeros_like(variance))

  shift = alone(near)(x)
  return shift, *alone(around)(x, shift)


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
