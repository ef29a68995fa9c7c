"""Powers that keep the sign, as a flow layer."""

import math

import jax.numpy as jnp

from normjax.flows._pointwise import Pointwise


class SignedPower(Pointwise):
  """Raises the size of every entry to a power.

  z = sign(x) |x|^p,  x and z (B, ...);  log_det (B,) = sum_i (log p + (p - 1) log|x_i|)

  At zero, where the slope is zero or infinite, the layer takes that at the smallest normal number;
  powers beyond the largest number are about that number.

  Args:
    exponent: p, above 0.

  Raises:
    ValueError: if `exponent` is not positive and finite.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> flows.SignedPower(2.0).forward(jnp.array([[-3.0, 0.0, 2.0]]))[0]
    Array([[-9.,  0.,  4.]], dtype=float32)
  """

  def __init__(self, exponent: float):
    if not 0 < exponent < math.inf:
      raise ValueError(f"exponent must be positive and finite, got {exponent}")
    self.exponent = float(exponent)

  def up(self, x):
    """Return the power and the log of its slope."""
    return _power(x, self.exponent), self._log_slope(_log_size(x))

  def down(self, z):
    """Undo `up`."""
    return _power(z, 1 / self.exponent), self._log_slope(_log_size(z) / self.exponent)

  def _log_slope(self, log_size):
    return math.log(self.exponent) + (self.exponent - 1) * log_size


def _log_size(x):
  return jnp.log(jnp.maximum(jnp.abs(x), jnp.finfo(x.dtype).tiny))


def _power(x, exponent):
  limits = jnp.finfo(x.dtype)
  # The largest size whose power is a number; no `minimum` of the power, whose gradient is NaN.
  largest = float(limits.max) ** min(1, 1 / exponent) * (1 - 1e-5)
  return jnp.sign(x) * jnp.clip(jnp.abs(x), limits.tiny, largest) ** exponent
