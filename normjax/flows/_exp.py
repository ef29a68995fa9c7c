"""The exponential function as a flow layer: the real line to the positive numbers."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from normjax.flows._pointwise import Pointwise


def finite_exp(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """Return exp(x), or about the largest number where it is beyond, with a gradient of zero."""
  # No `minimum`: it multiplies gradients by zero, and where they are infinite that would be NaN.
  largest = math.log(float(jnp.finfo(x.dtype).max)) * (1 - 1e-6)
  return jnp.exp(jnp.where(x > largest, largest, x))


def stretched(
  x: Float[Array, "*batch"], log_scale: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
  """Return x exp(log_scale), which grows no entry beyond 1e30 (in float64 1e246).

  A scale without a bound overflows on what is far from the data, and the next matrix product makes
  NaN of infinities. Where the limit acts, gradients are zero.
  """
  limit = 0.8 * math.log(float(jnp.finfo(x.dtype).max))
  room = jnp.maximum(limit - jnp.log(jnp.maximum(jnp.abs(x), 1)), 0)
  beyond = log_scale > room
  y = x * jnp.exp(jnp.where(beyond, jax.lax.stop_gradient(room), log_scale))
  return jnp.where(beyond, jax.lax.stop_gradient(y), y)


class Exp(Pointwise):
  """Applies the exponential function; `Inverted(Exp())` takes logarithms of positive data.

  z = exp(x),  x and z (B, ...);  log_det (B,) = sum_i x_i

  Images beyond the largest number are about that number, and `inverse` takes a latent that is not
  positive for the smallest positive one.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> flows.Inverted(flows.Exp()).forward(jnp.array([[1.0, jnp.e]]))[0]
    Array([[0., 1.]], dtype=float32)
  """

  def up(self, x):
    """Return exp(x) and x."""
    return finite_exp(x), x

  def down(self, z):
    """Return log(z), twice."""
    x = jnp.log(jnp.maximum(z, jnp.finfo(z.dtype).tiny))
    return x, x
