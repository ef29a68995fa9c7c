"""The leaky rectifier as a flow layer."""

import math

import jax.numpy as jnp

from normjax.flows._pointwise import Pointwise


class LeakyReLU(Pointwise):
  """Multiplies negative entries by a constant slope.

  z = x where x >= 0, negative_slope * x elsewhere,  x and z (B, ...)
  log_det (B,) = log(negative_slope) * (how many entries are negative)

  Args:
    negative_slope: above 0.

  Raises:
    ValueError: if `negative_slope` is not positive and finite.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> z, log_det = flows.LeakyReLU(0.5).forward(jnp.array([[-2.0, 3.0]]))
    >>> z, round(float(log_det[0]), 3)
    (Array([[-1.,  3.]], dtype=float32), -0.693)
  """

  def __init__(self, negative_slope: float = 0.01):
    if not 0 < negative_slope < math.inf:
      raise ValueError(f"negative_slope must be positive and finite, got {negative_slope}")
    self.negative_slope = float(negative_slope)

  def up(self, x):
    """Return the rectified entries and the logs of their slopes."""
    return jnp.where(x >= 0, x, self.negative_slope * x), self._log_slope(x)

  def down(self, z):
    """Undo `up`; the sign of an entry is that of its latent."""
    return jnp.where(z >= 0, z, z / self.negative_slope), self._log_slope(z)

  def _log_slope(self, v):
    return jnp.where(v >= 0, jnp.zeros_like(v), math.log(self.negative_slope))
