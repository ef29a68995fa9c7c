"""Distribution functions as flow layers: the real line to the unit interval."""

import math

import jax.numpy as jnp
from jax.scipy.special import erfc, ndtri

from normjax.flows._exp import finite_exp
from normjax.flows._pointwise import Pointwise


class NormalCDF(Pointwise):
  """Applies the standard normal distribution function: normal data become uniform.

  z = Phi(x),  x and z (B, ...);  log_det (B,) = -sum_i (x_i^2 + log(2 pi)) / 2

  `inverse` takes 0 and 1, and all beyond, for the nearest numbers inside.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> z, _ = flows.NormalCDF().forward(jnp.array([[0.0, 1.0]]))
    >>> [round(float(v), 4) for v in z[0]]
    [0.5, 0.8413]
  """

  def up(self, x):
    """Return Phi(x) and the log of its slope."""
    # Like `ndtr`, which is not monotone where it changes from erf to erfc.
    return erfc(-x * math.sqrt(0.5)) / 2, _log_normal(x)

  def down(self, z):
    """Return the quantile and the log of Phi's slope there."""
    x = ndtri(_inside(z))
    return x, _log_normal(x)


class CauchyCDF(Pointwise):
  """Applies the Cauchy distribution function.

  z = 1 / 2 + arctan(x) / pi,  x and z (B, ...);  log_det (B,) = -sum_i log(pi (1 + x_i^2))

  `inverse` takes 0 and 1, and all beyond, for the nearest numbers inside.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> flows.CauchyCDF().forward(jnp.array([[0.0, 1.0]]))[0]
    Array([[0.5 , 0.75]], dtype=float32)
  """

  def up(self, x):
    """Return the value and the log of the slope."""
    # By the reciprocal far from zero: small values keep their digits.
    far = jnp.abs(x) > 1
    part = jnp.arctan(jnp.where(far, 1 / jnp.where(far, x, 1), x)) / math.pi
    return jnp.where(far, jnp.where(x < 0, -part, 1 - part), 0.5 + part), _log_cauchy(x)

  def down(self, z):
    """Return the quantile and the log of the slope there."""
    # No closer to zero: the slope there, a square, has to be a number.
    x = -1 / jnp.tan(math.pi * jnp.maximum(_inside(z), float(jnp.finfo(z.dtype).tiny) ** 0.5))
    return x, _log_cauchy(x)


class GumbelCDF(Pointwise):
  """Applies the standard Gumbel distribution function.

  z = exp(-exp(-x)),  x and z (B, ...);  log_det (B,) = -sum_i (x_i + exp(-x_i))

  `inverse` takes 0 and 1, and all beyond, for the nearest numbers inside.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> z, _ = flows.GumbelCDF().forward(jnp.array([[0.0, 1.0]]))
    >>> [round(float(v), 4) for v in z[0]]
    [0.3679, 0.6922]
  """

  def up(self, x):
    """Return the value and the log of the slope."""
    e = finite_exp(-x)
    return jnp.exp(-e), -x - e

  def down(self, z):
    """Return the quantile and the log of the slope there."""
    e = -jnp.log(_inside(z))
    x = -jnp.log(e)
    return x, -x - e


def _inside(z):
  return jnp.clip(z, jnp.finfo(z.dtype).tiny, 1 - jnp.finfo(z.dtype).epsneg)


def _log_normal(x):
  return -(x**2 + math.log(2 * math.pi)) / 2


def _log_cauchy(x):
  """Return -log(pi (1 + x^2)), without the overflow of x^2."""
  size = jnp.abs(x)
  large = jnp.maximum(size, 1)
  ratio = jnp.where(size > 1, 1 / large, jnp.minimum(size, 1))
  return -math.log(math.pi) - 2 * jnp.log(large) - jnp.log1p(ratio**2)
