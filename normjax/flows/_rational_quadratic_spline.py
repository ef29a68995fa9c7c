"""Monotone rational-quadratic splines ("Neural Spline Flows", arXiv 1906.04032).

What differs from the authors' implementation: with linear tails the slopes at the ends are exactly
1 also under `identity_init` (theirs are 1.295, so that zeros are no identity); the inverse is
checked against bottom and top; points outside a bounded box are an error or, under tracing, NaN;
raw slopes are cut at 1e4, beyond which float32 has no digits left.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from normjax.flows._rational_quadratic import Bin, bin_forward, bin_inverse
from normjax.flows._spline_box import Box, bin_shares, check_minimum, check_raw, in_box

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

  The number of derivatives says what happens at the ends. K + 1: the spline lives on [left, right].
  K: so it does, and both ends have the same slope (circular, for angles). K - 1: these are the
  inner slopes, those at both ends are exactly 1, and lines of slope 1 go on from the corners of the
  box (linear tails): the identity, if bottom and top are left and right.

  Args:
    x: any shape.
    raw_widths: (*x.shape, K).
    raw_heights: (*x.shape, K).
    raw_derivatives: (*x.shape, K + 1), (*x.shape, K) or (*x.shape, K - 1).
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
    ValueError: if shapes disagree, a minimum does not fit K bins, the box is empty, or x leaves a
      bounded box.

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
  box = Box(left, right, bottom, top)
  return _run(bin_forward, "x", x, raws, box, minima, identity_init)


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
    raw_derivatives: (*y.shape, K + 1), (*y.shape, K) or (*y.shape, K - 1).
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
  box = Box(left, right, bottom, top)
  return _run(bin_inverse, "y", y, raws, box, minima, identity_init)


def _run(spline, name, value, raws, box, minima, identity_init):
  num_bins = _check(name, value, raws, box, minima)
  dtype = jnp.promote_types(value.dtype, jnp.float32)
  # Bins come first, (k, n): sums over the last axis, a few numbers each, take longer on CPU.
  raws = tuple(raw.astype(dtype).reshape(value.size, raw.shape[-1]).T for raw in raws)
  raw_widths, raw_heights, raw_derivatives = raws
  beta = math.log(2) / (1 - minima[2]) if identity_init else 1.0
  widths, heights = bin_shares(raw_widths, minima[0], 0), bin_shares(raw_heights, minima[1], 0)
  axis = (widths, box.left, box.right) if name == "x" else (heights, box.bottom, box.top)

  def evaluate(v):
    flat = v.reshape(-1)
    index = _index(flat, *axis)
    horizontal = _part(index, widths, box.left, box.right)
    vertical = _part(index, heights, box.bottom, box.top)
    slopes = _slopes(index, raw_derivatives, num_bins, minima[2], beta)
    y, log_slope = spline(flat, Bin(*horizontal, *vertical, *slopes))
    return y.reshape(v.shape), log_slope.reshape(v.shape)

  return in_box(name, value, evaluate, box, tails=len(raw_derivatives) == num_bins - 1)


def _index(value, shares, low, high):
  """Return the number (n,) of the bin that holds the value."""
  # A product with a triangle of ones: on CPU a cumulative sum takes longer than all the rest.
  inner = jax.lax.stop_gradient(shares)[:-1]
  triangle = jnp.tril(jnp.ones((len(inner), len(inner)), inner.dtype))
  ends = low + (high - low) * jnp.matmul(triangle, inner, precision=jax.lax.Precision.HIGHEST)
  # Inner knots at or below the value; so the last bin holds its right end, and NaN some bin.
  return jnp.sum(value[None] >= ends, axis=0)


def _part(index, shares, low, high):
  """Return where the bin starts on one axis and its size; the last one ends at `high`, exactly."""
  scale, bins = high - low, jnp.arange(len(shares))[:, None]
  start = low + scale * jnp.sum(jnp.where(bins < index[None], shares, 0), axis=0)
  size = scale * jnp.sum(jnp.where(bins == index[None], shares, 0), axis=0)
  return start, jnp.where(index == len(shares) - 1, high - start, size)


def _slopes(index, raw, num_bins, least, beta):
  """Return the slopes at both ends of the bin that is the `index`-th."""
  # With linear tails the ends of the box have slope 1; on a circle they are the same knot.
  tails, circular = len(raw) == num_bins - 1, len(raw) == num_bins
  knots = jnp.arange(len(raw))[:, None] + tails

  def slope(knot):
    at = knot % num_bins if circular else knot
    chosen = jnp.sum(jnp.where(knots == at[None], raw, 0), axis=0)
    inner = least + jax.nn.softplus(beta * jnp.minimum(chosen, _MAX_RAW_SLOPE)) / beta
    return jnp.where((knot == 0) | (knot == num_bins), 1, inner) if tails else inner

  return slope(index), slope(index + 1)


def _check(name, value, raws, box, minima) -> int:
  num_bins = check_raw("raw_widths", raws[0], value)
  widths, heights, derivatives = (raw.shape for raw in raws)
  if heights != widths:
    raise ValueError(f"raw_heights must have the shape of raw_widths {widths}, got {heights}")
  if derivatives[:-1] != value.shape or abs(derivatives[-1] - num_bins) > 1:
    raise ValueError(
      f"raw_derivatives must have {num_bins + 1} entries (bounded), {num_bins} (circular) or "
      f"{num_bins - 1} (linear tails) for each of {value.shape}, got shape {derivatives}"
    )
  box.check()
  check_minimum("min_width", minima[0], num_bins)
  check_minimum("min_height", minima[1], num_bins)
  if not 0 <= minima[2] < 1:
    raise ValueError(f"min_derivative must be in [0, 1), got {minima[2]}")
  return num_bins
