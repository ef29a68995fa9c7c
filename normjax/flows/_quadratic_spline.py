"""Piecewise quadratic splines (arXiv 1808.03856): the density is linear between knots.

What differs from nflows: with linear tails the slopes at both ends are exactly 1 (there the widths
of the end bins are halved twice, and the slopes are not); log_det knows the sides of the box, which
nflows takes for 1; and the root of the inverse is in the form that loses no digits.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from normjax.flows._spline_box import (
  Box,
  bin_shares,
  bin_taker,
  check_minimum,
  check_raw,
  edges_of,
  in_box,
)

_LEAST_RAW = 1e-3  # of a height before it is divided by the area


def quadratic_spline(
  x: Float[Array, "*batch"],
  raw_widths: Float[Array, "*batch k"],
  raw_heights: Float[Array, "*batch m"],
  *,
  left: float = 0.0,
  right: float = 1.0,
  bottom: float = 0.0,
  top: float = 1.0,
  min_width: float = 1e-3,
  min_height: float = 1e-3,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """Map every entry by its own increasing spline of K parabolas with continuous slopes.

  w = min_width + (1 - K min_width) softmax(raw_widths); slopes at the knots, before the box is
  stretched, s = min_height + (1 - min_height) v / area, v = softplus(raw_heights) + 1e-3,
  area = sum_k w_k (v_k + v_k+1) / 2; in bin k with t = (x - x_k) / w_k:
  y = y_k + w_k (s_k t + (s_k+1 - s_k) t^2 / 2)

  The number of heights says what happens outside. K + 1: the spline lives on [left, right]. K - 1:
  these belong to the inner knots, the slopes at both ends are exactly 1, and lines of slope 1 go on
  from the corners of the box (linear tails).

  Args:
    x: any shape.
    raw_widths: (*x.shape, K).
    raw_heights: (*x.shape, K + 1) or (*x.shape, K - 1).
    left: where the first bin starts.
    right: where the last bin ends.
    bottom: the value at `left`.
    top: the value at `right`.
    min_width: least width of a bin as a share of the box.
    min_height: least slope at a knot.

  Returns:
    `(y, log_abs_det)`, both of x's shape; log_abs_det = log dy/dx is float32 or wider. Outside of
    a box without tails both are NaN under tracing.

  Raises:
    ValueError: if shapes disagree, the minimum width does not fit K bins, the least slope is not in
      [0, 1], the box is empty or, under linear tails, no square, K is 1 there, or x leaves a box
      without tails.

  Reference:
    Müller, McWilliams, Rousselle, Gross, Novák, "Neural importance sampling", 2018,
    arXiv 1808.03856.

  Example:
    >>> x = jnp.array([0.25, 0.5])
    >>> y, _ = quadratic_spline(x, jnp.zeros((2, 4)), jnp.zeros((2, 5)))
    >>> bool(jnp.allclose(y, x, atol=1e-6))
    True
  """
  box = Box(left, right, bottom, top)
  return _run("x", x, raw_widths, raw_heights, box, min_width, min_height)


def quadratic_spline_inverse(
  y: Float[Array, "*batch"],
  raw_widths: Float[Array, "*batch k"],
  raw_heights: Float[Array, "*batch m"],
  *,
  left: float = 0.0,
  right: float = 1.0,
  bottom: float = 0.0,
  top: float = 1.0,
  min_width: float = 1e-3,
  min_height: float = 1e-3,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """Undo `quadratic_spline` in closed form.

  x = x_k + w_k t,  t = 2 c / (s_k + sqrt(s_k^2 + 2 (s_k+1 - s_k) c)),  c = (y - y_k) / w_k

  Args:
    y: any shape.
    raw_widths: (*y.shape, K).
    raw_heights: (*y.shape, K + 1) or (*y.shape, K - 1).
    left: where the first bin starts.
    right: where the last bin ends.
    bottom: the value at `left`.
    top: the value at `right`.
    min_width: least width of a bin as a share of the box.
    min_height: least slope at a knot.

  Returns:
    `(x, log_abs_det)`, both of y's shape; log_abs_det = log dx/dy.

  Raises:
    ValueError: as `quadratic_spline` does.

  Reference:
    Müller, McWilliams, Rousselle, Gross, Novák, "Neural importance sampling", 2018,
    arXiv 1808.03856.

  Example:
    >>> raws = jnp.ones((1, 4)), jnp.arange(5.0)[None]
    >>> x, _ = quadratic_spline_inverse(quadratic_spline(jnp.array([0.3]), *raws)[0], *raws)
    >>> round(float(x[0]), 4)
    0.3
  """
  box = Box(left, right, bottom, top)
  return _run("y", y, raw_widths, raw_heights, box, min_width, min_height)


def _run(name, value, raw_widths, raw_heights, box, min_width, min_height):
  num_bins = check_raw("raw_widths", raw_widths, value)
  count = check_raw("raw_heights", raw_heights, value, (num_bins + 1, num_bins - 1))
  tails = count == num_bins - 1
  box.check()
  across, up = box.right - box.left, box.top - box.bottom
  if tails and abs(across - up) > 1e-6 * up:
    raise ValueError(f"top - bottom must be right - left under linear tails, got {tuple(box)}")
  check_minimum("min_width", min_width, num_bins)
  if not 0 <= min_height <= 1:
    raise ValueError(f"min_height must be in [0, 1], got {min_height}")
  dtype = jnp.promote_types(value.dtype, jnp.float32)
  widths = bin_shares(raw_widths.astype(dtype), min_width)
  slopes = jax.nn.softplus(raw_heights.astype(dtype)) + _LEAST_RAW
  if tails:
    # The ends have the slope 1 after division by the area: they are the area.
    inner = jnp.sum(slopes * (widths[..., :-1] + widths[..., 1:]) / 2, axis=-1, keepdims=True)
    end = inner / (1 - (widths[..., :1] + widths[..., -1:]) / 2)
    slopes = jnp.concatenate([end, slopes, end], axis=-1)
  mean = (slopes[..., :-1] + slopes[..., 1:]) / 2
  slopes = slopes / jnp.sum(mean * widths, axis=-1, keepdims=True)
  slopes = min_height + (1 - min_height) * slopes
  x_edges = edges_of(widths, 0, 1)
  y_edges = edges_of(widths * (slopes[..., :-1] + slopes[..., 1:]) / 2, 0, 1)
  log_aspect = jnp.log(jnp.asarray(up / across, dtype))

  def evaluate(v):
    v = (v - box.left) / across if name == "x" else (v - box.bottom) / up
    take = bin_taker(v, x_edges if name == "x" else y_edges)
    x0, y0, w = (take(a) for a in (x_edges[..., :-1], y_edges[..., :-1], widths))
    s0 = take(slopes[..., :-1])
    step = take(jnp.diff(slopes))
    if name == "x":
      t = (v - x0) / w
      y = y0 + w * (s0 + step * t / 2) * t
      return box.bottom + up * y, jnp.log(s0 + step * t) + log_aspect
    c = (v - y0) / w
    slope = jnp.sqrt(jnp.maximum(s0**2 + 2 * step * c, jnp.finfo(dtype).tiny))
    x = x0 + w * 2 * c / (s0 + slope)
    return box.left + across * x, -jnp.log(slope) - log_aspect

  return in_box(name, value, evaluate, box, tails=tails)
