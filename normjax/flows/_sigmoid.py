"""The logistic sigmoid as a flow layer: the real line to the unit interval."""

import jax
import jax.numpy as jnp

from normjax.flows._pointwise import Pointwise


class Sigmoid(Pointwise):
  """Maps each real entry into the unit interval.

  z = 1 / (1 + exp(-x)),  x and z (B, ...);  log_det (B,) = sum_i [log z_i + log(1 - z_i)]

  It is `Inverted(Logit(alpha=0.0))`, but for latents at the ends of the interval or beyond, where
  `Logit` has infinity and NaN: `forward` rounds to 0 and 1, so `inverse` takes these for the
  nearest numbers inside.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> z, log_det = flows.Sigmoid().forward(jnp.zeros((1, 2)))
    >>> z, round(float(log_det[0]), 3)  # 2 log(1 / 4)
    (Array([[0.5, 0.5]], dtype=float32), -2.773)
  """

  def up(self, x):
    """Return sigmoid(x) and the log of its slope, which is finite for every finite x."""
    return jax.nn.sigmoid(x), -(jax.nn.softplus(x) + jax.nn.softplus(-x))

  def down(self, z):
    """Return the logit of z, and the log of the sigmoid's slope there."""
    info = jnp.finfo(z.dtype)
    z = jnp.clip(z, info.tiny, 1 - info.epsneg)
    log_z, log_rest = jnp.log(z), jnp.log1p(-z)
    return log_z - log_rest, log_z + log_rest
