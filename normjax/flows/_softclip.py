"""A soft bound as a flow layer, with tails that are heavier than those of tanh."""

import math

import jax.numpy as jnp
import numpy as np

from normjax.flows._pointwise import Pointwise


class Softclip(Pointwise):
  """Maps each real entry into (-bound, bound); with the bound 1 it is softsign.

  z = x / (1 + |x| / bound),  x and z (B, ...);  log_det (B,) = -2 sum_i log(1 + |x_i| / bound)

  `inverse` takes a latent at the bound or beyond for the nearest number inside.

  Args:
    bound: above 0.

  Raises:
    ValueError: if `bound` is not positive and finite.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> flows.Softclip(5.0).forward(jnp.array([[-5.0, 0.0, 20.0]]))[0]
    Array([[-2.5,  0. ,  4. ]], dtype=float32)
  """

  def __init__(self, bound: float = 1.0):
    if not 0 < bound < math.inf:
      raise ValueError(f"bound must be positive and finite, got {bound}")
    self.bound = float(bound)

  def up(self, x):
    """Return the bounded entries and the logs of the slopes."""
    size = jnp.abs(x) / self.bound
    return x / (1 + size), -2 * jnp.log1p(size)

  def down(self, z):
    """Undo `up`."""
    # Not a share of the bound, which may be rounded itself.
    inside = np.nextafter(np.asarray(self.bound, z.dtype), 0)
    z = jnp.clip(z, -inside, inside)
    size = jnp.abs(z) / self.bound
    return z / (1 - size), 2 * jnp.log1p(-size)
