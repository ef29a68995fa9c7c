"""Piecewise linear splines (arXiv 1808.03856): distribution functions of histograms.

What differs from the paper: the least height of a bin, which keeps the inverse in bounds.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from normjax.flows._spline_box import (
  Box,
  bin_edges,
  bin_taker,
  check_minimum,
  check_raw,
  edges_of,
  in_box,
)


def linear_spline(
  x: Float[Array, "*batch"],
  raw_heights: Float[Array, "*batch k"],
  *,
  left: float = 0.0,
  right: float = 1.0,
  bottom: float = 0.0,
  top: float = 1.0,
  min_height: float = 1e-3,
  tails: bool = False,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """Map every entry by its own increasing chain of K straight lines over bins of one width.

  h = min_height + (1 - K min_height) softmax(raw_heights), times top - bottom; in bin k:
  y = y_k + h_k t,  t = (x - x_k) / w,  w = (right - left) / K

  Args:
    x: any shape.
    raw_heights: (*x.shape, K).
    left: where the first bin starts.
    right: where the last bin ends.
    bottom: the value at `left`.
    top: the value at `right`.
    min_height: least height of a bin as a share of the box.
    tails: whether lines of slope 1 go on from the corners of the box.

  Returns:
    `(y, log_abs_det)`, both of x's shape; log_abs_det = log dy/dx is float32 or wider. Outside of
    a box without tails both are NaN under tracing.

  Raises:
    ValueError: if x is not floating, shapes disagree, the minimum does not fit K bins, the box is
      empty, or x leaves a box without tails.

  Reference:
    Müller, McWilliams, Rousselle, Gross, Novák, "Neural importance sampling", 2018,
    arXiv 1808.03856.

  Example:
    >>> heights = jnp.log(jnp.array([[1.0, 3.0]]))
    >>> y, log_abs_det = linear_spline(jnp.array([0.5]), heights, min_height=0.0)
    >>> round(float(y[0]), 4), round(float(jnp.exp(log_abs_det[0])), 4)
    (0.25, 1.5)
  """
  return _run("x", x, raw_heights, Box(left, right, bottom, top), min_height, tails)


def linear_spline_inverse(
  y: Float[Array, "*batch"],
  raw_heights: Float[Array, "*batch k"],
  *,
  left: float = 0.0,
  right: float = 1.0,
  bottom: float = 0.0,
  top: float = 1.0,
  min_height: float = 1e-3,
  tails: bool = False,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """Undo `linear_spline`.

  x = x_k + w (y - y_k) / h_k

  Args:
    y: any shape.
    raw_heights: (*y.shape, K).
    left: where the first bin starts.
    right: where the last bin ends.
    bottom: the value at `left`.
    top: the value at `right`.
    min_height: least height of a bin as a share of the box.
    tails: as for `linear_spline`.

  Returns:
    `(x, log_abs_det)`, both of y's shape; log_abs_det = log dx/dy.

  Raises:
    ValueError: as `linear_spline` does.

  Reference:
    Müller, McWilliams, Rousselle, Gross, Novák, "Neural importance sampling", 2018,
    arXiv 1808.03856.

  Example:
    >>> heights = jnp.log(jnp.array([[1.0, 3.0]]))
    >>> x, _ = linear_spline_inverse(jnp.array([0.25]), heights, min_height=0.0)
    >>> round(float(x[0]), 4)
    0.5
  """
  return _run("y", y, raw_heights, Box(left, right, bottom, top), min_height, tails)


def _run(name, value, raw_heights, box, min_height, tails):
  num_bins = check_raw("raw_heights", raw_heights, value)
  box.check()
  check_minimum("min_height", min_height, num_bins)
  raw = raw_heights.astype(jnp.promote_types(value.dtype, jnp.float32))
  x_edges = edges_of(jnp.full_like(raw, 1 / num_bins), box.left, box.right)
  y_edges = bin_edges(raw, box.bottom, box.top, min_height)
  edges, others = (x_edges, y_edges) if name == "x" else (y_edges, x_edges)

  def evaluate(v):
    take = bin_taker(v, edges)
    span, other_span = take(jnp.diff(edges)), take(jnp.diff(others))
    out = take(others[..., :-1]) + (v - take(edges[..., :-1])) / span * other_span
    return out, jnp.log(other_span) - jnp.log(span)

  return in_box(name, value, evaluate, box, tails=tails)
