"""The two-bin spline of robust conditional flows (arXiv 2212.04319).

What differs from the authors' code: points outside of the box are replaced before the spline is
evaluated, so that their gradients are finite; the discriminant is bounded instead of asserted; and
the raw slope is cut to [-10, 10], since its exponential overflows.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from normjax.flows._checks import check_above_zero
from normjax.flows._rational_quadratic import Knots, spline_forward, spline_inverse
from normjax.flows._spline_box import Box, edges_of, in_box

_MAX_LOG_SLOPE = 10.0


def modified_spline(
  x: Float[Array, "*batch"],
  raw_width: Float[Array, "*batch"],
  raw_height: Float[Array, "*batch"],
  raw_derivative: Float[Array, "*batch"],
  *,
  bound: float = 0.5,
  box: tuple[float, float, float, float] | None = None,
  minimum: float = 1e-3,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """Map every entry by a monotone spline of two bins that is the identity outside [-bound, bound].

  w_1 = sigmoid(raw_width) (1 - 2 m) + m, w_2 = 1 - w_1, as shares of the box; heights likewise;
  slopes 1, exp(raw_derivative) (1 - m) + m, 1;  y as in `rational_quadratic_spline`

  Whatever the parameters, |y - x| and |x - y| of the inverse are below 2 bound: a condition that
  the network has never seen cannot make samples explode, as it can with an affine map.

  Args:
    x: any shape.
    raw_width: x's shape; the width of the first bin.
    raw_height: x's shape; its height.
    raw_derivative: x's shape; the log slope at the knot in the middle, cut to [-10, 10].
    bound: half the side of the box.
    box: (left, right, bottom, top) instead of that square: outside, lines of slope 1 go on from
      its corners.
    minimum: m, the least share of a bin and the least slope.

  Returns:
    `(y, log_abs_det)`, both of x's shape; log_abs_det = log dy/dx is float32 or wider.

  Raises:
    ValueError: if shapes differ, `bound` is not above 0 and finite, the box has no inside, or
      `minimum` is not inside (0, 1/2).

  Reference:
    Hong, Park, Chun, "On the robustness of normalizing flows for inverse problems in imaging",
    2022, arXiv 2212.04319.

  Example:
    >>> zeros = jnp.zeros((3,))
    >>> modified_spline(jnp.array([-2.0, 0.25, 0.5]), zeros, zeros, zeros)[0]
    Array([-2.  ,  0.25,  0.5 ], dtype=float32)
  """
  return _run(spline_forward, "x", x, (raw_width, raw_height, raw_derivative), bound, box, minimum)


def modified_spline_inverse(
  y: Float[Array, "*batch"],
  raw_width: Float[Array, "*batch"],
  raw_height: Float[Array, "*batch"],
  raw_derivative: Float[Array, "*batch"],
  *,
  bound: float = 0.5,
  box: tuple[float, float, float, float] | None = None,
  minimum: float = 1e-3,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """Undo `modified_spline` in closed form.

  x = modified_spline^-1(y), as in `rational_quadratic_spline_inverse`

  Args:
    y: any shape.
    raw_width: y's shape; the width of the first bin.
    raw_height: y's shape; its height.
    raw_derivative: y's shape; the log slope at the knot in the middle.
    bound: half the side of the box.
    box: as for `modified_spline`.
    minimum: the least share of a bin and the least slope.

  Returns:
    `(x, log_abs_det)`, both of y's shape; log_abs_det = log dx/dy.

  Raises:
    ValueError: as `modified_spline` does.

  Reference:
    Hong, Park, Chun, "On the robustness of normalizing flows for inverse problems in imaging",
    2022, arXiv 2212.04319.

  Example:
    >>> ones = jnp.ones((1,))
    >>> y, _ = modified_spline(0.25 * ones, ones, -ones, ones)
    >>> round(float(modified_spline_inverse(y, ones, -ones, ones)[0][0]), 4)
    0.25
  """
  return _run(spline_inverse, "y", y, (raw_width, raw_height, raw_derivative), bound, box, minimum)


def _run(spline, name, value, raws, bound, box, minimum):
  labels = ("raw_width", "raw_height", "raw_derivative")
  for label, raw in zip(labels, raws, strict=True):
    if raw.shape != value.shape:
      raise ValueError(f"{label} must have shape {value.shape} of {name}, got {raw.shape}")
  check_above_zero(bound=bound)
  box = Box(-bound, bound, -bound, bound) if box is None else Box(*box)
  box.check()
  if not 0 < minimum < 0.5:
    raise ValueError(f"minimum must be inside (0, 1/2), got {minimum}")
  dtype = jnp.promote_types(value.dtype, jnp.float32)
  raw_width, raw_height, raw_derivative = (raw.astype(dtype) for raw in raws)

  def edges(raw, low, high):
    share = jax.nn.sigmoid(raw) * (1 - 2 * minimum) + minimum
    return edges_of(jnp.stack([share, 1 - share], axis=-1), low, high)

  log_slope = jnp.clip(raw_derivative, -_MAX_LOG_SLOPE, _MAX_LOG_SLOPE)
  slope = jnp.exp(log_slope) * (1 - minimum) + minimum
  one = jnp.ones_like(slope)
  slopes = jnp.stack([one, slope, one], axis=-1)
  knots = Knots(edges(raw_width, *box[:2]), edges(raw_height, *box[2:]), slopes)
  return in_box(name, value, lambda v: spline(v, knots), box, tails=True, closed=False)
