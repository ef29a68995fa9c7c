"""Monotone piecewise cubic splines (arXiv 1906.02145), by Steffen's method.

What differs from the authors' code: the inverse is the root of an increasing function, to the last
digits and with the implicit function's derivatives, where theirs has formulas for one and for three
real roots, and drops a cubic term that is small; the slopes at the ends keep off zero; and log_det
knows the sides of the box, which theirs takes for 1.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from normjax.flows._invert_monotone import invert_monotone
from normjax.flows._spline_box import (
  Box,
  bin_edges,
  bin_taker,
  check_minimum,
  check_raw,
  in_box,
)

_LEAST_END = 1e-3  # the slope at an end, as a share of the largest that is allowed


def cubic_spline(
  x: Float[Array, "*batch"],
  raw_widths: Float[Array, "*batch k"],
  raw_heights: Float[Array, "*batch k"],
  raw_ends: Float[Array, "*batch 2"],
  *,
  left: float = 0.0,
  right: float = 1.0,
  bottom: float = 0.0,
  top: float = 1.0,
  min_width: float = 1e-3,
  min_height: float = 1e-3,
  tails: bool = False,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """Map every entry by its own increasing spline of K cubics with continuous slopes.

  w = min_width + (1 - K min_width) softmax(raw_widths), times right - left; heights likewise;
  delta = h / w; slopes at inner knots d_k = min(2 delta_k-1, 2 delta_k, (w_k delta_k-1 + w_k-1
  delta_k) / (w_k-1 + w_k)); at the ends 3 delta (1e-3 + 0.998 sigmoid(raw_ends)); in bin k with
  t = (x - x_k) / w_k, p = d_k / delta_k, q = d_k+1 / delta_k:
  y = y_k + h_k (p t + (3 - 2 p - q) t^2 + (p + q - 2) t^3)

  Args:
    x: any shape.
    raw_widths: (*x.shape, K).
    raw_heights: (*x.shape, K).
    raw_ends: (*x.shape, 2), the slopes at both ends.
    left: where the first bin starts.
    right: where the last bin ends.
    bottom: the value at `left`.
    top: the value at `right`.
    min_width: least width of a bin as a share of the box.
    min_height: least height of a bin as a share of the box.
    tails: whether lines of slope 1 go on from the corners of the box; there the slope jumps.

  Returns:
    `(y, log_abs_det)`, both of x's shape; log_abs_det = log dy/dx is float32 or wider. Outside of
    a box without tails both are NaN under tracing.

  Raises:
    ValueError: if x is not floating, shapes disagree, a minimum does not fit K bins, the box is
      empty, or x leaves a box without tails.

  Reference:
    Durkan, Bekasov, Murray, Papamakarios, "Cubic-spline flows", 2019, arXiv 1906.02145.

  Example:
    >>> x, zeros = jnp.array([0.25, 0.5]), jnp.zeros((2, 4))
    >>> y, _ = cubic_spline(x, zeros, zeros, jnp.log(jnp.full((2, 2), 0.5)))
    >>> bool(jnp.allclose(y, x, atol=1e-6))
    True
  """
  box = Box(left, right, bottom, top)
  return _run("x", x, raw_widths, raw_heights, raw_ends, box, min_width, min_height, tails)


def cubic_spline_inverse(
  y: Float[Array, "*batch"],
  raw_widths: Float[Array, "*batch k"],
  raw_heights: Float[Array, "*batch k"],
  raw_ends: Float[Array, "*batch 2"],
  *,
  left: float = 0.0,
  right: float = 1.0,
  bottom: float = 0.0,
  top: float = 1.0,
  min_width: float = 1e-3,
  min_height: float = 1e-3,
  tails: bool = False,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """Undo `cubic_spline` by the one root in [0, 1] of the bin's cubic.

  x = x_k + w_k t,  p t + (3 - 2 p - q) t^2 + (p + q - 2) t^3 = (y - y_k) / h_k

  Args:
    y: any shape.
    raw_widths: (*y.shape, K).
    raw_heights: (*y.shape, K).
    raw_ends: (*y.shape, 2).
    left: where the first bin starts.
    right: where the last bin ends.
    bottom: the value at `left`.
    top: the value at `right`.
    min_width: least width of a bin as a share of the box.
    min_height: least height of a bin as a share of the box.
    tails: as for `cubic_spline`.

  Returns:
    `(x, log_abs_det)`, both of y's shape; log_abs_det = log dx/dy.

  Raises:
    ValueError: as `cubic_spline` does.

  Reference:
    Durkan, Bekasov, Murray, Papamakarios, "Cubic-spline flows", 2019, arXiv 1906.02145.

  Example:
    >>> raws = jnp.ones((1, 4)), jnp.arange(4.0)[None], jnp.ones((1, 2))
    >>> x, _ = cubic_spline_inverse(cubic_spline(jnp.array([0.3]), *raws)[0], *raws)
    >>> round(float(x[0]), 4)
    0.3
  """
  box = Box(left, right, bottom, top)
  return _run("y", y, raw_widths, raw_heights, raw_ends, box, min_width, min_height, tails)


def _run(name, value, raw_widths, raw_heights, raw_ends, box, min_width, min_height, tails):
  num_bins = check_raw("raw_widths", raw_widths, value)
  check_raw("raw_heights", raw_heights, value, (num_bins,))
  check_raw("raw_ends", raw_ends, value, (2,))
  box.check()
  check_minimum("min_width", min_width, num_bins)
  check_minimum("min_height", min_height, num_bins)
  dtype = jnp.promote_types(value.dtype, jnp.float32)
  raw_widths, raw_heights, raw_ends = (r.astype(dtype) for r in (raw_widths, raw_heights, raw_ends))
  x_edges = bin_edges(raw_widths, box.left, box.right, min_width)
  y_edges = bin_edges(raw_heights, box.bottom, box.top, min_height)
  widths, heights = jnp.diff(x_edges), jnp.diff(y_edges)
  slopes = _slopes(widths, heights / widths, raw_ends)

  def evaluate(v):
    take = bin_taker(v, x_edges if name == "x" else y_edges)
    x0, y0, w, h = (take(a) for a in (x_edges[..., :-1], y_edges[..., :-1], widths, heights))
    p, q = take(slopes[..., :-1]) * w / h, take(slopes[..., 1:]) * w / h
    a, b = p + q - 2, 3 - 2 * p - q
    cubic = lambda t: ((a * t + b) * t + p) * t
    if name == "x":
      t = (v - x0) / w
    else:
      eta = (v - y0) / h
      t = invert_monotone(cubic, eta, lower=0, upper=1)
    # p (1 - t)^2 + ... as a sum of what does not cancel at the ends: Bernstein's form of 3 a t^2 +
    # 2 b t + p, whose middle coefficient p + b is 3 - p - q.
    slope = p * (1 - t) ** 2 + 2 * (3 - p - q) * t * (1 - t) + q * t**2
    log_slope = jnp.log(jnp.maximum(slope, jnp.finfo(dtype).tiny)) + jnp.log(h) - jnp.log(w)
    return (y0 + h * cubic(t), log_slope) if name == "x" else (x0 + w * t, -log_slope)

  return in_box(name, value, evaluate, box, tails=tails)


def _slopes(widths, delta, raw_ends):
  """Return the K + 1 slopes at the knots: Steffen's inside, trained ones at the ends."""
  before, after = delta[..., :-1], delta[..., 1:]
  wide, wide_after = widths[..., :-1], widths[..., 1:]
  middle = (wide_after * before + wide * after) / (wide + wide_after)
  inner = jnp.minimum(2 * jnp.minimum(before, after), middle)
  ends = 3 * (_LEAST_END + (1 - 2 * _LEAST_END) * jax.nn.sigmoid(raw_ends))
  first, last = ends[..., :1] * delta[..., :1], ends[..., 1:] * delta[..., -1:]
  return jnp.concatenate([first, inner, last], axis=-1)
