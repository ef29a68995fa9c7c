"""The rational quadratic between knots: what all monotone splines of this folder share.

Two forms differ from the paper's, for the sake of float32. The denominator is
delta (1 - 2 q) + (d_k + d_k+1) q, a sum of positive terms, and the root of the inverse is bounded
by what it has to be in exact arithmetic, so that no rounding takes theta far out of [0, 1].
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from normjax.flows._spline_box import bin_taker


class Knots(NamedTuple):
  """Where a spline goes through, and how steeply, K + 1 knots each."""

  x: Float[Array, "*batch k1"]
  y: Float[Array, "*batch k1"]
  slopes: Float[Array, "*batch k1"]


def spline_forward(x: Float[Array, "*batch"], knots: Knots) -> tuple[Array, Array]:
  """Return `(y, log y')` of points in the box."""
  x0, width, y0, height, d0, d1 = _pick(x, knots.x, knots)
  delta, theta = height / width, (x - x0) / width
  q = theta * (1 - theta)
  y = y0 + height * (delta * theta**2 + d0 * q) / (delta * (1 - 2 * q) + (d0 + d1) * q)
  return y, _log_slope(delta, theta, d0, d1)


def spline_inverse(y: Float[Array, "*batch"], knots: Knots) -> tuple[Array, Array]:
  """Return `(x, log x')` of values in the box."""
  x0, width, y0, height, d0, d1 = _pick(y, knots.y, knots)
  delta, eta = height / width, (y - y0) / height
  # The quadratic of the card divided by the bin's height: a t^2 + b t + c = 0.
  bend = eta * (d0 + d1 - 2 * delta)
  a, b, c = bend + delta - d0, d0 - bend, -delta * eta
  discriminant = b**2 - 4 * a * c
  positive = discriminant > 0
  root = jnp.where(positive, jnp.sqrt(jnp.where(positive, discriminant, 1)), 0)
  # Since theta <= 1, b + root >= -2 c. A slack keeps the gradient of the root where theta is 1.
  least = -2 * (1 - 1e-3) * c
  theta = -2 * c / jnp.where(b + root > least, b + root, least)
  return x0 + width * theta, -_log_slope(delta, theta, d0, d1)


def _log_slope(delta, theta, d0, d1):
  # Rounding may take theta beyond 1. No `clip`: it halves the gradient at 1 itself.
  rest = jnp.where(theta <= 1, 1 - theta, 0)
  q = theta * rest
  numerator = d1 * theta**2 + 2 * delta * q + d0 * rest**2
  denominator = delta * (1 - 2 * q) + (d0 + d1) * q
  return 2 * jnp.log(delta) + jnp.log(numerator) - 2 * jnp.log(denominator)


def _pick(value, edges, knots: Knots):
  """Return left knot, width, bottom knot, height and both slopes of the bin that holds `value`."""
  take = bin_taker(value, edges)
  low = lambda v: take(v[..., :-1])
  step = lambda v: take(v[..., 1:] - v[..., :-1])
  high_slope = take(knots.slopes[..., 1:])
  return low(knots.x), step(knots.x), low(knots.y), step(knots.y), low(knots.slopes), high_slope
