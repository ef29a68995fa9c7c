"""The Laplace law: a base with exponential tails and a peak."""

import jax

from normjax.flows._location_scale import LocationScale


class Laplace(LocationScale):
  """Has independent Laplace entries, of variance 2 s^2.

  log p(z) = sum_i [-|z_i - loc_i| / s_i - log(2 s_i)],  z (b, *shape);  a sample is
  loc + T * s * eps.

  Args:
    shape: the event shape, a tuple or list of ints.
    trainable: learn `loc` and `log_scale` = log s, both (*shape) and zero at first; otherwise there
      are no parameters.
    param_dtype: dtype of the parameters, also of the samples unless narrower than float32.
    rngs: not needed, since parameters start as constants; every module takes it.

  Raises:
    ValueError: if `shape` is not a sequence of positive ints.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> log_prob = flows.Laplace((2,)).log_prob(jnp.array([[0.0, 1.0]]))
    >>> round(float(log_prob[0]), 3)  # -1 - 2 log 2
    -2.386
  """

  def standard_log_prob(self, eps):
    """Return the standard Laplace log density per entry."""
    return jax.scipy.stats.laplace.logpdf(eps)

  def standard_sample(self, key, shape, dtype):
    """Draw from the standard Laplace law."""
    return jax.random.laplace(key, shape, dtype)
