"""Element-wise transforms of angles (arXiv 2002.02428): shifts, and splines of the circle.

What differs from the paper: an angle outside of [-bound, bound) is taken for the one inside that
points the same way, so that the map has a value for every number; its image is an angle inside.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from normjax._sizes import check_sizes
from normjax.flows._checks import check_above_zero
from normjax.flows._rational_quadratic_spline import (
  rational_quadratic_spline,
  rational_quadratic_spline_inverse,
)
from normjax.flows._transforms import Transform
from normjax.flows._widened import widened


class CircularShiftTransform(Transform):
  """Turns angles: y = x + t, wrapped into [-bound, bound), raw (*batch, 1) = t; volume stays.

  Args:
    bound: half the length of the circle.

  Raises:
    ValueError: if `bound` is not above 0 and finite.

  Reference:
    Rezende et al., "Normalizing flows on tori and spheres", 2020, arXiv 2002.02428.

  Example:
    >>> y, _ = CircularShiftTransform().forward(jnp.array([3.0]), jnp.array([[1.0]]))
    >>> round(float(y[0]), 3)  # 4 - 2 pi
    -2.283
  """

  num_parameters = 1

  def __init__(self, *, bound: float = math.pi):
    check_above_zero(bound=bound)
    self.bound = float(bound)

  def forward(self, x, raw):
    """Return `(x + t, 0)`, wrapped."""
    y = _wrap(widened(x) + widened(raw[..., 0]), self.bound)
    return y.astype(x.dtype), jnp.zeros_like(y)

  def inverse(self, y, raw):
    """Return `(y - t, 0)`, wrapped."""
    x = _wrap(widened(y) - widened(raw[..., 0]), self.bound)
    return x.astype(y.dtype), jnp.zeros_like(x)


class CircularRQSTransform(Transform):
  """Applies a rational-quadratic spline of the circle, then a shift.

  y = f(x) + t, wrapped into [-bound, bound), f(-bound) = -bound with one slope at both ends
  raw (*batch, 3 K + 1) = [widths | heights | derivatives | t] of `rational_quadratic_spline`

  Zeros give the identity.

  Args:
    num_bins: K, at least 1.
    bound: half the length of the circle.

  Raises:
    ValueError: if `num_bins` is below 1, or `bound` not above 0 and finite.

  Reference:
    Rezende et al., "Normalizing flows on tori and spheres", 2020, arXiv 2002.02428.

  Example:
    >>> transform = CircularRQSTransform(4)
    >>> y, _ = transform.forward(jnp.array([0.5]), jnp.zeros((1, transform.num_parameters)))
    >>> round(float(y[0]), 4)
    0.5
  """

  def __init__(self, num_bins: int = 8, *, bound: float = math.pi):
    check_sizes(num_bins=num_bins)
    check_above_zero(bound=bound)
    self.num_bins, self.bound = num_bins, float(bound)
    self.num_parameters = 3 * num_bins + 1

  def _spline(self, spline, angle, raw):
    k, bound = self.num_bins, self.bound
    raws = raw[..., :k], raw[..., k : 2 * k], raw[..., 2 * k : 3 * k]
    box = {"left": -bound, "right": bound, "bottom": -bound, "top": bound}
    return spline(angle, *raws, **box, identity_init=True)

  def forward(self, x, raw):
    """Return `(y, log dy/dx)`."""
    raw = widened(raw)
    y, log_slope = self._spline(rational_quadratic_spline, _wrap(widened(x), self.bound), raw)
    return _wrap(y + raw[..., -1], self.bound).astype(x.dtype), log_slope

  def inverse(self, y, raw):
    """Return `(x, log dx/dy)`."""
    raw = widened(raw)
    turned = _wrap(widened(y) - raw[..., -1], self.bound)
    x, log_slope = self._spline(rational_quadratic_spline_inverse, turned, raw)
    return x.astype(y.dtype), log_slope


def _wrap(angle: Float[Array, "*batch"], bound: float) -> Float[Array, "*batch"]:
  """Return the angle in [-bound, bound) that points the same way; those inside stay as they are."""
  inside = (angle >= -bound) & (angle < bound)
  turned = jnp.mod(angle + bound, 2 * bound) - bound
  return jnp.where(inside | jnp.isnan(angle), angle, turned)
