"""Monotone rational-quadratic splines ("Neural Spline Flows", arXiv 1906.04032).

What differs from the authors' implementation: with linear tails the slopes at the ends are exactly
1 also under `identity_init` (theirs are 1.295, so that zeros are no identity); the inverse is
checked against bottom and top; points outside a bounded box are an error or, under tracing, NaN;
raw slopes are cut at 1e4, beyond which float32 has no digits left.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from normjax.flows._checks import is_concrete
from normjax.flows._rational_quadratic import Bin, bin_forward, bin_inverse

_MAX_RAW_SLOPE = 1e4


def rational_quadratic_spline(
  x: Float[Array, "*batch"],
  raw_widths: Float[Array, "*batch k"],
  raw_heights: Float[Array, "*batch k"],
  raw_derivatives: Float[Array, "*batch m"],
  *,
  left: float = 0.0,
  right: float = 1.0,
  bottom: float = 0.0,
  top: float = 1.0,
  min_width: float = 1e-3,
  min_height: float = 1e-3,
  min_derivative: float = 1e-3,
  identity_init: bool = False,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """Map every entry by its own monotone spline of K rational-quadratic bins.

  w = min_width + (1 - K min_width) softmax(raw_widths), times right - left; heights likewise;
  d = min_derivative + softplus(beta raw_derivatives) / beta;  in bin k, with delta = h / w,
  t = (x - x_k) / w, q = t (1 - t):
  y = y_k + h (delta t^2 + d_k q) / (delta + (d_k + d_k+1 - 2 delta) q)

  The number of derivatives says what happens outside. K + 1: the spline lives on [left, right].
  K - 1: these are the inner slopes, those at both ends are exactly 1, and the map is the identity
  outside of the box (linear tails).

  Args:
    x: any shape.
    raw_widths: (*x.shape, K).
    raw_heights: (*x.shape, K).
    raw_derivatives: (*x.shape, K + 1) or (*x.shape, K - 1).
    left: where the first bin starts.
    right: where the last bin ends.
    bottom: the value at `left`.
    top: the value at `right`.
    min_width: least width of a bin as a share of the box.
    min_height: least height of a bin as a share of the box.
    min_derivative: least slope at a knot.
    identity_init: beta = log 2 / (1 - min_derivative) instead of 1, so that zeros give slope 1.

  Returns:
    `(y, log_abs_det)`, both of x's shape; log_abs_det = log dy/dx is float32 or wider. Outside of
    a bounded box both are NaN under tracing.

  Raises:
    ValueError: if shapes disagree, a minimum does not fit K bins, the box is empty, linear tails
      are asked for and the box is no square on the diagonal, or x leaves a bounded box.

  Reference:
    Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows", 2019, arXiv 1906.04032.

  Example:
    >>> x, zeros = jnp.array([0.25, 0.5]), jnp.zeros((2, 4))
    >>> y, log_abs_det = rational_quadratic_spline(
    ...   x, zeros, zeros, jnp.zeros((2, 5)), identity_init=True
    ... )
    >>> bool(jnp.allclose(y, x, atol=1e-6) and jnp.allclose(log_abs_det, 0, atol=1e-6))
    True
  """
  raws = raw_widths, raw_heights, raw_derivatives
  minima = min_width, min_height, min_derivative
  return _run(bin_forward, "x", x, raws, (left, right, bottom, top), minima, identity_init)


def rational_quadratic_spline_inverse(
  y: Float[Array, "*batch"],
  raw_widths: Float[Array, "*batch k"],
  raw_heights: Float[Array, "*batch k"],
  raw_derivatives: Float[Array, "*batch m"],
  *,
  left: float = 0.0,
  right: float = 1.0,
  bottom: float = 0.0,
  top: float = 1.0,
  min_width: float = 1e-3,
  min_height: float = 1e-3,
  min_derivative: float = 1e-3,
  identity_init: bool = False,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """Undo `rational_quadratic_spline` in closed form.

  t = 2 c / (-b - sqrt(b^2 - 4 a c)),  x = x_k + w t,  s = d_k + d_k+1 - 2 delta,
  a = (y - y_k) s + h (delta - d_k),  b = h d_k - (y - y_k) s,  c = -delta (y - y_k)

  Args:
    y: any shape.
    raw_widths: (*y.shape, K).
    raw_heights: (*y.shape, K).
    raw_derivatives: (*y.shape, K + 1) or (*y.shape, K - 1).
    left: where the first bin starts.
    right: where the last bin ends.
    bottom: the value at `left`.
    top: the value at `right`.
    min_width: least width of a bin as a share of the box.
    min_height: least height of a bin as a share of the box.
    min_derivative: least slope at a knot.
    identity_init: as for `rational_quadratic_spline`.

  Returns:
    `(x, log_abs_det)`, both of y's shape; log_abs_det = log dx/dy.

  Raises:
    ValueError: as `rational_quadratic_spline` does.

  Reference:
    Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows", 2019, arXiv 1906.04032.

  Example:
    >>> raws = jnp.ones((1, 4)), jnp.arange(4.0)[None], jnp.zeros((1, 3))
    >>> box = dict(left=-3.0, right=3.0, bottom=-3.0, top=3.0)
    >>> y, _ = rational_quadratic_spline(jnp.array([0.5]), *raws, **box)
    >>> x, _ = rational_quadratic_spline_inverse(y, *raws, **box)
    >>> round(float(x[0]), 4)
    0.5
  """
  raws = raw_widths, raw_heights, raw_derivatives
  minima = min_width, min_height, min_derivative
  return _run(bin_inverse, "y", y, raws, (left, right, bottom, top), minima, identity_init)


def _run(spline, name, value, raws, box, minima, identity_init):
  num_bins = _check(name, value, raws, box, minima)
  tails = raws[2].shape[-1] == num_bins - 1
  left, right, bottom, top = box
  low, high = (left, right) if name == "x" else (bottom, top)
  dtype = jnp.promote_types(value.dtype, jnp.float32)
  wide = value.astype(dtype)
  raw_widths, raw_heights, raw_derivatives = (raw.astype(dtype) for raw in raws)
  beta = math.log(2) / (1 - minima[2]) if identity_init else 1.0
  widths = minima[0] + (1 - minima[0] * num_bins) * jax.nn.softmax(raw_widths, axis=-1)
  heights = minima[1] + (1 - minima[1] * num_bins) * jax.nn.softmax(raw_heights, axis=-1)
  inside = (wide >= low) & (wide <= high)
  # A point in the box takes the place of those outside: their gradients must be finite too.
  safe = jnp.where(inside, wide, low)
  index = _index(safe, widths if name == "x" else heights, low, high)
  slopes = _slopes(index, raw_derivatives, num_bins, minima[2], beta)
  horizontal, vertical = _part(index, widths, left, right), _part(index, heights, bottom, top)
  out, log_abs_det = spline(wide, safe, Bin(*horizontal, *vertical, *slopes), inside)
  if not tails:
    if is_concrete(value) and np.any((np.asarray(wide) < low) | (np.asarray(wide) > high)):
      raise ValueError(f"{name} must lie in [{low}, {high}] unless there are K - 1 derivatives")
    out, log_abs_det = (jnp.where(inside, v, jnp.nan) for v in (out, log_abs_det))
  else:
    log_abs_det = jnp.where(jnp.isnan(wide), wide, log_abs_det)
  return out.astype(value.dtype), log_abs_det


def _index(value, shares, low, high):
  """Return the number of the bin that holds the value, (*batch, 1)."""
  # A product with a triangle of ones: on CPU a cumulative sum takes longer than all the rest.
  inner = jax.lax.stop_gradient(shares)[..., :-1]
  triangle = jnp.triu(jnp.ones((inner.shape[-1], inner.shape[-1]), inner.dtype))
  ends = low + (high - low) * jnp.matmul(inner, triangle, precision=jax.lax.Precision.HIGHEST)
  # Inner knots at or below the value; so the last bin holds its right end, and NaN some bin.
  return jnp.sum(value[..., None] >= ends, axis=-1, keepdims=True)


def _part(index, shares, low, high):
  """Return where the bin starts on one axis and its size; the last one ends at `high`, exactly."""
  scale, bins = high - low, _range(index, shares.shape[-1])
  start = low + scale * jnp.sum(jnp.where(bins < index, shares, 0), axis=-1)
  size = scale * jnp.sum(jnp.where(bins == index, shares, 0), axis=-1)
  return start, jnp.where(index[..., 0] == shares.shape[-1] - 1, high - start, size)


def _slopes(index, raw, num_bins, least, beta):
  """Return the slopes at both ends of the bin; of linear tails, whose ends are 1, K - 1 are raw."""
  tails = raw.shape[-1] == num_bins - 1
  knots = _range(index, raw.shape[-1]) + tails

  def slope(knot):
    chosen = jnp.sum(jnp.where(knots == knot, raw, 0), axis=-1)
    inner = least + jax.nn.softplus(beta * jnp.minimum(chosen, _MAX_RAW_SLOPE)) / beta
    end = (knot == 0) | (knot == num_bins)
    return jnp.where(end[..., 0], 1, inner) if tails else inner

  return slope(index), slope(index + 1)


def _range(index, count):
  return jnp.arange(count).reshape((1,) * (index.ndim - 1) + (count,))


def _check(name, value, raws, box, minima) -> int:
  left, right, bottom, top = box
  widths, heights, derivatives = (raw.shape for raw in raws)
  if len(widths) != value.ndim + 1 or widths[:-1] != value.shape or widths[-1] < 1:
    raise ValueError(f"raw_widths must have shape (*{value.shape}, K >= 1), got {widths}")
  num_bins = widths[-1]
  if heights != widths:
    raise ValueError(f"raw_heights must have the shape of raw_widths {widths}, got {heights}")
  if derivatives not in [(*value.shape, num_bins + 1), (*value.shape, num_bins - 1)]:
    raise ValueError(
      f"raw_derivatives must have {num_bins + 1} entries (bounded) or {num_bins - 1} (linear "
      f"tails) for each of {value.shape}, got shape {derivatives}"
    )
  if not (left < right and bottom < top):
    raise ValueError(f"left and bottom must be below right and top, got the box {box}")
  if derivatives[-1] == num_bins - 1 and (left != bottom or right != top):
    raise ValueError(f"bottom, top must equal left, right under linear tails, got the box {box}")
  for label, minimum in (("min_width", minima[0]), ("min_height", minima[1])):
    if not 0 <= minimum * num_bins <= 1:
      raise ValueError(f"{label} must be in [0, 1 / K] with K = {num_bins}, got {minimum}")
  if not 0 <= minima[2] < 1:
    raise ValueError(f"min_derivative must be in [0, 1), got {minima[2]}")
  return num_bins
