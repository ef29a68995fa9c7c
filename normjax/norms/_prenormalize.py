"""Lp normalization in low precision: scale a row before its powers are summed.

The sum of squares of a float16 row overflows at 65504, long before the row does. A normalized row
does not change when the row is multiplied by a positive number, so any positive number may be put
in front; this file chooses it so that the sum of p-th powers is as large as it can be without ever
passing the largest finite number M, whatever the row ("Conformer-Based Speech Recognition On
Extreme Edge-Computing Devices", https://arxiv.org/abs/2312.10359).

Divide the row c of length n by its mean absolute deviation ("mad") or its largest magnitude
("max"), then multiply by the gain. Which gain is safe follows from the worst row. A convex function
such as sum |c_i|^p is largest at a corner of the set of rows that the divisor allows:

    divisor   rows                corner                     sum of powers
    mad       of zero mean        (n/2, -n/2, 0, ..., 0)     2 (n/2)^p
    max       of zero mean        half +1, half -1           n for even n, n - 1 for odd n
    mad       any                 (n, 0, ..., 0)             n^p
    max       any                 all +-1                    n

What differs from the paper and from a plain evaluation of it:

* Rows are scaled by powers of two before and after centering, which is exact, so that centering
  cannot overflow and nothing is lost of rows of subnormal numbers.
* Centering happens twice. The mean of a nearly constant float16 row rounds to a neighbour of its
  entries; what is left has a mean as large as itself, and its powers can be twice as large as the
  bound allows.
* The gain is lowered by four roundings, so that no rounding lifts the sum over M.
* Each row's divisor is one number. It is computed in float32, together with epsilon, which has
  to grow by the p-th power of the factor. The epsilon of a tiny row would pass the float16 range.
* The result does not depend on the factor, so no gradient passes through it. The derivative of the
  normalized row is computed from the row and its norm in float32: a gradient with respect to the
  scaled row would overflow where that with respect to x does not.
"""

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from normjax.norms._arguments import (
  as_floating,
  check_power,
  floating_dtype,
  normalized_axes,
  statistics_dtype,
)
from normjax.norms._statistics import add_powers, power, safe_root

Prenormalizer = Literal["mad", "max"]

# Formats that reach further need not be used to the end, where rounding could pass it.
_LARGE_ENOUGH = 2.0**64


def prenormalizer_gain(
  n: int,
  *,
  p: float = 2.0,
  prenormalizer: Prenormalizer = "mad",
  center: bool = True,
  limit: float = 65504.0,
) -> float:
  """Return the largest safe gain of the pre-normalizer for rows of length `n`.

  The largest k with sum_i |k c_i / N(c)|^p <= limit for every row c, where N is the mean (mad) or
  the largest (max) magnitude: k = (limit / worst)^(1/p) with `worst` the sum of the worst row. For
  centered rows and "mad" that is k = (2/n) (limit/2)^(1/p).

  Args:
    n: number of entries of a row, at least 2.
    p: power of the norm, at least 1.
    prenormalizer: "mad" (tighter for p = 2) or "max" (tighter for p >= 3).
    center: whether rows have zero mean.
    limit: largest finite number of the accumulator; the default is that of float16.

  Returns:
    The gain, a Python float.

  Raises:
    ValueError: if n < 2, p < 1, limit <= 0 or the pre-normalizer is unknown.

  Reference:
    Xu et al., "Conformer-Based Speech Recognition On Extreme Edge-Computing Devices", 2023,
    arXiv 2312.10359 (the pre-normalizer; the bounds are derived in this module).

  Example:
    >>> round(prenormalizer_gain(512), 4)
    0.7069
  """
  check_power(p)
  if n < 2:
    raise ValueError(f"n must be >= 2: a pre-normalized row of {n} entries has no scale")
  if not limit > 0:
    raise ValueError(f"limit must be > 0, got {limit}")
  if prenormalizer == "mad":
    return (2 / n) * (limit / 2) ** (1 / p) if center else limit ** (1 / p) / n
  if prenormalizer == "max":
    worst = n - 1 if center and n % 2 else n
    return (limit / worst) ** (1 / p)
  raise ValueError(f"prenormalizer must be 'mad' or 'max', got {prenormalizer!r}")


def mad_prenormalize(
  x: ArrayLike,
  *,
  axis: int | Sequence[int] = -1,
  p: float = 2.0,
  prenormalizer: Prenormalizer = "mad",
  center: bool = True,
  compute_dtype: DTypeLike = jnp.float16,
  limit: float | None = None,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
  """Scale rows so that their sums of p-th powers are safe in `compute_dtype`.

  z = k c / N(c) with c = x - mean(x) and N(c) = mean|c|, in such an order that nothing overflows
  or vanishes on the way: x (..., n) -> z (..., n), with n k^p <= sum |z|^p <= limit.

  Args:
    x: floating input of any magnitude.
    axis: the axes of one row.
    p: power of the norm that is to be computed, at least 1.
    prenormalizer: "mad", or "max" for N(c) = max|c|.
    center: subtract the mean first; False for norms that do not.
    compute_dtype: the low precision in which everything of the size of x is computed.
    limit: what sums must not exceed; the default is the largest number of `compute_dtype`, and
      2^64 if that is less.

  Returns:
    `(z, factor)`: z in `compute_dtype`, and the float32 (or wider) factor of shape (..., 1) with
    z = factor * c. Where c is zero, so is z. No gradient passes through the factor.

  Raises:
    ValueError: if a row has fewer than 2 entries or more than `compute_dtype` can count; if p < 1,
      or so large that powers vanish; if x or a dtype is not floating.

  Reference:
    Xu et al., "Conformer-Based Speech Recognition On Extreme Edge-Computing Devices", 2023,
    arXiv 2312.10359.

  Example:
    >>> x = jnp.array([[30000.0, -30000.0, 1.0, -1.0]], jnp.float16)
    >>> bool(jnp.isinf(jnp.sum(x**2)))
    True
    >>> z, factor = mad_prenormalize(x)
    >>> bool(jnp.isfinite(jnp.sum(z**2)))
    True
  """
  x = as_floating(x)
  axes = normalized_axes(axis, x.shape)
  z, unit, gain = _scaled(x, axes, p, prenormalizer, center, compute_dtype, limit)
  return z, gain * unit


def _scaled(x, axes, p, prenormalizer, center, compute_dtype, limit):
  """Returns (z, unit, gain) with z = gain * unit * c, where unit * c has size 1."""
  compute_dtype = floating_dtype(compute_dtype, "compute_dtype")
  n = math.prod(x.shape[a] for a in axes)
  info = jnp.finfo(compute_dtype)
  if n > float(info.max):
    raise ValueError(f"axis holds {n} entries, more than compute_dtype={compute_dtype} can count")
  limit = min(float(info.max), _LARGE_ENOUGH) if limit is None else limit
  gain = prenormalizer_gain(n, p=p, prenormalizer=prenormalizer, center=center, limit=limit)
  gain *= 1 - 4 * float(info.eps)
  if gain**p < float(info.tiny):
    raise ValueError(
      f"p={p} is too large for prenormalizer={prenormalizer!r} and rows of {n} entries: their "
      f"powers vanish in {compute_dtype}; use prenormalizer='max' or a wider compute_dtype"
    )

  def mean(v):
    return jnp.sum(v / n, axes, keepdims=True)

  # With magnitudes below 1/2 no deviation from the mean exceeds 1; with the largest deviation in
  # [1, 2) none of its size is lost.
  c, first = _scale_by_power_of_two(x, axes, -1)
  c = c.astype(compute_dtype)
  c = c - mean(c) if center else c
  c, second = _scale_by_power_of_two(c, axes, 1)
  c = c - mean(c) if center else c
  size = mean(jnp.abs(c)) if prenormalizer == "mad" else jnp.max(jnp.abs(c), axes, keepdims=True)
  size = jax.lax.stop_gradient(size)
  wide = statistics_dtype(c)
  size = jnp.where(size > 0, size, jnp.ones_like(size)).astype(wide)
  z = c * (gain / size).astype(compute_dtype)
  return z, first.astype(wide) * second.astype(wide) / size, gain


def _scale_by_power_of_two(x, axes, exponent):
  """Scale rows exactly so that max|x| < 2^exponent <= 2 max|x|; return the factor as well."""
  _, top = jnp.frexp(jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axes, keepdims=True))
  # In two steps: the power that scales a subnormal row is too large for float16.
  one, shift = jnp.ones_like(top, x.dtype), exponent - top
  first, second = jnp.ldexp(one, shift // 2), jnp.ldexp(one, (shift + 1) // 2)
  wide = statistics_dtype(x)
  return x * first * second, first.astype(wide) * second.astype(wide)


def check_prenormalize(**excluded: object) -> None:
  """Raise if an argument is given whose statistics the bounds do not cover."""
  for name, value in excluded.items():
    if value is not None:
      raise ValueError(f"prenormalize covers whole rows only: {name} must be None, got {value}")


def prenormalized(
  x: Float[Array, "..."],
  axes: tuple[int, ...],
  *,
  p: float = 2.0,
  center: bool = True,
  epsilon: float,
  prenormalizer: bool | Prenormalizer,
  compute_dtype: DTypeLike | None,
  outside: bool = False,
) -> Float[Array, "..."]:
  """Returns c / (mean|c|^p + epsilon)^(1/p), or c / (mean^(1/p) + epsilon) if `outside`."""
  name: Prenormalizer = "mad" if isinstance(prenormalizer, bool) else prenormalizer
  compute_dtype = jnp.float16 if compute_dtype is None else compute_dtype
  n = math.prod(x.shape[a] for a in axes)

  def evaluate(x):
    z, unit, gain = _scaled(x, axes, p, name, center, compute_dtype, None)
    powers = jnp.sum(power(jnp.abs(z), p), axes, keepdims=True).astype(unit.dtype)
    # Sizes of unit * c, which are at least 1 unless c = 0, and so far from the end of any range.
    size = safe_root(powers / n, p) / gain
    shift = (epsilon if outside else epsilon ** (1 / p)) * unit
    norm = size + shift if outside else add_powers(size, shift, p)
    norm = jnp.where(norm > 0, norm, jnp.ones_like(norm))
    # Clipped for rows of c = 0, whose norm is epsilon alone.
    inverse = jnp.minimum(1 / (gain * norm), float(jnp.finfo(z.dtype).max))
    return z * inverse.astype(z.dtype), norm / unit, jnp.where(size > 0, norm / size, 0)

  @jax.custom_jvp
  def normalize(x):
    return evaluate(x)[0]

  @normalize.defjvp
  def _(primals, tangents):
    # dy = (dc - y dN) / N with the norm N of c and dN = mean(sign(v) |v|^(p-1) dc), v = c over its
    # p-mean: as the row itself needs no power of x, so in float32 nothing overflows.
    (x,), (dx,) = primals, tangents
    _, norm, ratio = evaluate(x)
    y = normalize(x).astype(norm.dtype)
    dc = dx.astype(norm.dtype)
    dc = dc - jnp.mean(dc, axes, keepdims=True) if center else dc
    v = y * ratio if outside else y
    weight = jnp.sign(v) * power(jnp.abs(v), p - 1)
    dy = (dc - y * jnp.mean(weight * dc, axes, keepdims=True)) / norm
    return normalize(x), dy.astype(compute_dtype)

  return normalize(x)
