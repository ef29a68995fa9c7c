"""Softplus as a flow layer: the real line to the positive numbers."""

import jax
import jax.numpy as jnp

from normjax.flows._pointwise import Pointwise


class Softplus(Pointwise):
  """Maps each real entry to a positive one.

  z = log(1 + exp(x)),  x and z (B, ...);  log_det (B,) = sum_i log sigmoid(x_i)

  `inverse` is z + log(1 - exp(-z)), written so that it keeps all digits at both ends. It takes a
  latent that is not positive for the smallest positive number, where `forward` rounds to zero.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> z, _ = flows.Softplus().forward(jnp.array([[-100.0, 0.0, 100.0]]))
    >>> [round(float(v), 3) for v in z[0]]
    [0.0, 0.693, 100.0]
  """

  def up(self, x):
    """Return softplus(x) and log sigmoid(x)."""
    return jax.nn.softplus(x), -jax.nn.softplus(-x)

  def down(self, z):
    """Return the inverse of softplus, and log sigmoid there: log(1 - exp(-z))."""
    z = jnp.maximum(z, jnp.finfo(z.dtype).tiny)
    log_slope = jnp.log(-jnp.expm1(-z))
    return z + log_slope, log_slope
