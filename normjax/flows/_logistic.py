"""The logistic law: a base with exponential tails whose cumulative function is the sigmoid."""

import jax

from normjax.flows._location_scale import LocationScale


class Logistic(LocationScale):
  """Has independent logistic entries, of variance (pi s)^2 / 3.

  log p(z) = sum_i [-e_i - 2 log(1 + exp(-e_i)) - log s_i],  e = (z - loc) / s,  z (b, *shape);
  a sample is loc + T * s * eps.

  Args:
    shape: the event shape, a tuple or list of ints.
    trainable: learn `loc` and `log_scale` = log s, both (*shape) and zero at first; otherwise there
      are no parameters.
    param_dtype: dtype of the parameters, also of the samples unless narrower than float32.
    rngs: not needed, since parameters start as constants; every module takes it.

  Raises:
    ValueError: if `shape` is not a sequence of positive ints.

  Reference:
    Dinh, Krueger, Bengio, "NICE: Non-linear Independent Components Estimation", 2014,
    arXiv 1410.8516 (as the base of a flow).

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> log_prob = flows.Logistic((2,)).log_prob(jnp.zeros((1, 2)))
    >>> round(float(log_prob[0]), 3)  # -4 log 2
    -2.773
  """

  def standard_log_prob(self, eps):
    """Return the standard logistic log density per entry, stable in both tails."""
    return jax.scipy.stats.logistic.logpdf(eps)

  def standard_sample(self, key, shape, dtype):
    """Draw from the standard logistic law."""
    return jax.random.logistic(key, shape, dtype)
