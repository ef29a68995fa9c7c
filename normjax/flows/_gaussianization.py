"""Distribution functions of mixtures, followed by the quantile function of a standard normal.

What differs from the paper (https://arxiv.org/abs/2003.01941): components that are spread out where
raw numbers are zero, log-scales bounded on both sides, and tails by their logs, with no clipping of
probabilities. A start from data takes few components at quantiles, each with a scale of its own,
where the authors' code takes one component for every point of a batch, and one scale for all.
"""

import math

import jax.numpy as jnp
from jax.scipy.special import log_ndtr

from normjax.flows._invert_monotone import invert_monotone
from normjax.flows._sigmoidal_transforms import LogisticMixture, mixture_log_probs

_FAR = -20.0  # where the asymptotic series has all digits of float64


def log_normal_cdf(z):
  """Return log Phi(z) for z <= 0, with a slope that keeps its digits in the far tail."""
  near, far = jnp.maximum(z, _FAR), jnp.minimum(z, _FAR)
  t = far**-2
  series = -t * (1 - 3 * t * (1 - 5 * t * (1 - 7 * t * (1 - 9 * t * (1 - 11 * t)))))
  tail = -(far**2) / 2 - jnp.log(-far) - math.log(2 * math.pi) / 2 + jnp.log1p(series)
  return jnp.where(z < _FAR, tail, log_ndtr(near))


def normal_quantile(log_p, log_q):
  """Return the z (*shape) with Phi(z) = p, from log p and log(1 - p)."""
  left = log_p < log_q
  smaller = jnp.where(left, log_p, log_q)  # at least one of the two has all its digits
  z = invert_monotone(log_normal_cdf, smaller, guess=-jnp.sqrt(-2 * smaller), upper=0)
  return jnp.where(left, z, -z)


class GaussianizationTransform(LogisticMixture):
  """Makes a mixture of logistics standard normal.

  y = Phi^-1(sum_k w_k sigmoid((x - m_k) exp(-l_k))),  Phi the normal distribution function
  raw (*batch, 3 K) = (u, c, v),  w = softmax(u), m = c + K places from -2 to 2, l = 5 tanh(v / 5)

  An `Elementwise` starts it from data (`init_from_data`): equal weights, m_k the (k + 1/2) / K
  quantile of an entry, exp(l_k) half of the distance to the nearer neighbour.

  Args:
    num_components: K, at least 1.

  Raises:
    ValueError: if `num_components` is below 1.

  Reference:
    Meng, Song, Song, Ermon, "Gaussianization Flows", 2020, arXiv 2003.01941.

  Example:
    >>> y, _ = GaussianizationTransform(1).forward(jnp.array([0.0, 100.0]), jnp.zeros((2, 3)))
    >>> [round(float(v), 2) for v in y]  # log(1 - Phi(13.89)) = -100
    [0.0, 13.89]
  """

  def value(self, x, raw):
    """Return y."""
    return normal_quantile(*mixture_log_probs(*self.components(x, raw)))
