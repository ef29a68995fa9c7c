"""The rational quadratic between knots: what all monotone splines of this folder share.

Two forms differ from the paper's, for the sake of float32. The denominator is
delta (1 - 2 q) + (d_k + d_k+1) q, a sum of positive terms, and the root of the inverse is bounded
by what it has to be in exact arithmetic, so that no rounding takes theta far out of [0, 1].
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Knots(NamedTuple):
  """Where a spline goes through, and how steeply, K + 1 knots each."""

  x: Float[Array, "*batch k1"]
  y: Float[Array, "*batch k1"]
  slopes: Float[Array, "*batch k1"]


class Bin(NamedTuple):
  """The bin that holds a value: where it starts, its size, and the slopes at its ends."""

  left: Float[Array, "*batch"]
  width: Float[Array, "*batch"]
  bottom: Float[Array, "*batch"]
  height: Float[Array, "*batch"]
  low_slope: Float[Array, "*batch"]
  high_slope: Float[Array, "*batch"]


def spline_forward(
  x: Float[Array, "*batch"], knots: Knots, inside: Bool[Array, "*batch"]
) -> tuple[Array, Array]:
  """Return `(y, log y')` where `inside`, and `(x, 0)` elsewhere."""
  # A point in the box takes the place of those outside: their gradients must be finite too.
  safe = jnp.where(inside, x, knots.x[..., 0])
  return bin_forward(x, safe, _pick(safe, knots.x, knots), inside)


def bin_forward(
  x: Float[Array, "*batch"], safe: Float[Array, "*batch"], at: Bin, inside: Bool[Array, "*batch"]
) -> tuple[Array, Array]:
  """Return `(y, log y')` of `safe` in its bin where `inside`, and `(x, 0)` elsewhere."""
  x0, width, y0, height, d0, d1 = at
  delta, theta = height / width, (safe - x0) / width
  q = theta * (1 - theta)
  y = y0 + height * (delta * theta**2 + d0 * q) / (delta * (1 - 2 * q) + (d0 + d1) * q)
  log_slope = _log_slope(delta, theta, d0, d1)
  return jnp.where(inside, y, x), jnp.where(inside, log_slope, 0)


def spline_inverse(
  y: Float[Array, "*batch"], knots: Knots, inside: Bool[Array, "*batch"]
) -> tuple[Array, Array]:
  """Return `(x, log x')` where `inside`, and `(y, 0)` elsewhere."""
  safe = jnp.where(inside, y, knots.y[..., 0])
  return bin_inverse(y, safe, _pick(safe, knots.y, knots), inside)


def bin_inverse(
  y: Float[Array, "*batch"], safe: Float[Array, "*batch"], at: Bin, inside: Bool[Array, "*batch"]
) -> tuple[Array, Array]:
  """Return `(x, log x')` of `safe` in its bin where `inside`, and `(y, 0)` elsewhere."""
  x0, width, y0, height, d0, d1 = at
  delta, eta = height / width, (safe - y0) / height
  # The quadratic of the card divided by the bin's height: a t^2 + b t + c = 0.
  bend = eta * (d0 + d1 - 2 * delta)
  a, b, c = bend + delta - d0, d0 - bend, -delta * eta
  discriminant = b**2 - 4 * a * c
  positive = discriminant > 0
  root = jnp.where(positive, jnp.sqrt(jnp.where(positive, discriminant, 1)), 0)
  # Since theta <= 1, b + root >= -2 c. A slack keeps the gradient of the root where theta is 1.
  least = -2 * (1 - 1e-3) * c
  theta = -2 * c / jnp.where(b + root > least, b + root, least)
  log_slope = _log_slope(delta, theta, d0, d1)
  return jnp.where(inside, x0 + width * theta, y), jnp.where(inside, -log_slope, 0)


def _log_slope(delta, theta, d0, d1):
  # Rounding may take theta beyond 1. No `clip`: it halves the gradient at 1 itself.
  rest = jnp.where(theta <= 1, 1 - theta, 0)
  q = theta * rest
  numerator = d1 * theta**2 + 2 * delta * q + d0 * rest**2
  denominator = delta * (1 - 2 * q) + (d0 + d1) * q
  return 2 * jnp.log(delta) + jnp.log(numerator) - 2 * jnp.log(denominator)


def _pick(value, edges, knots: Knots) -> Bin:
  """Return the bin that holds `value`."""
  # Inner knots at or below the value; so the last bin holds its right end, and NaN some bin.
  index = jnp.sum(value[..., None] >= edges[..., 1:-1], axis=-1)
  here = index[..., None] == jnp.arange(edges.shape[-1] - 1).reshape((1,) * index.ndim + (-1,))
  take = lambda v: jnp.sum(jnp.where(here, v, 0), axis=-1)
  low = lambda v: take(v[..., :-1])
  step = lambda v: take(v[..., 1:] - v[..., :-1])
  high_slope = take(knots.slopes[..., 1:])
  low_slope = low(knots.slopes)
  return Bin(low(knots.x), step(knots.x), low(knots.y), step(knots.y), low_slope, high_slope)
