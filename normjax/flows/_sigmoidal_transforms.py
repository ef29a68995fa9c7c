"""Transforms by mixtures of logistic distributions: neural autoregressive flows and Flow++.

Both are y = logit(sum_k w_k sigmoid(p_k)) with p_k increasing in x. Near 0 and 1 nothing is left of
a probability's digits, so the mixture and its complement are summed by their logs.

What differs from the authors (https://arxiv.org/abs/1804.00779, https://arxiv.org/abs/1902.00275):
raw numbers of zero give components that are spread out instead of equal ones, which would stay
equal in training; Flow++'s log-scales are bounded on both sides.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from normjax._sizes import check_sizes
from normjax.flows._monotone_transform import MonotoneTransform, positive
from normjax.flows._widened import widened

_LARGEST = 4.5  # of |l| at a start from data: where 5 tanh(v / 5) still has a slope

_UNIT = math.sqrt(3) / math.pi  # the scale of a logistic distribution of standard deviation 1


def mixture_log_probs(logits, p):
  """Return log F and log(1 - F), F = sum_k softmax(logits)_k sigmoid(p_k) over the last axis."""
  log_weights = jax.nn.log_softmax(logits, axis=-1)
  sides = (jax.nn.log_sigmoid(side) for side in (p, -p))
  return tuple(jax.nn.logsumexp(log_weights + side, axis=-1) for side in sides)


def mixture_logit(logits, p):
  """Return logit(F)."""
  below, above = mixture_log_probs(logits, p)
  return below - above


def spread(like):
  """Return K numbers from -2 to 2, shaped to be added to `like` (*batch, K)."""
  places = np.linspace(-2, 2, like.shape[-1]) if like.shape[-1] > 1 else np.zeros(1)
  return jnp.asarray(places, like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


class DeepSigmoidalTransform(MonotoneTransform):
  """Applies a mixture of sigmoids, and the logit of what it gives (NAF's deep sigmoidal flow).

  y = logit(sum_k w_k sigmoid(a_k x + b_k)),  raw (*batch, 3 K) = (u, v, c)
  w = softmax(u), a = softplus(v + 0.54) + 1e-3, b = c + K places from -2 to 2

  For large |x| it is a straight line of the least slope a_k. Raw zeros give a = 1.

  Args:
    num_units: K, at least 1.

  Raises:
    ValueError: if `num_units` is below 1.

  Reference:
    Huang, Krueger, Lacoste, Courville, "Neural Autoregressive Flows", 2018, arXiv 1804.00779.

  Example:
    >>> transform = DeepSigmoidalTransform(4)
    >>> y, log_slope = transform.forward(jnp.zeros(1), jnp.zeros((1, 12)))
    >>> bool(abs(y[0]) < 1e-6), bool(log_slope[0] < 0)
    (True, True)
  """

  def __init__(self, num_units: int = 8):
    check_sizes(num_units=num_units)
    self.num_units, self.num_parameters = num_units, 3 * num_units

  def value(self, x, raw):
    """Return y."""
    logits, v, c = jnp.split(raw, 3, axis=-1)
    return mixture_logit(logits, positive(v) * x[..., None] + c + spread(c))


class LogisticMixture(MonotoneTransform):
  """A transform whose raw numbers begin with those of a mixture of K logistics."""

  num_further = 0

  def __init__(self, num_components: int = 8):
    check_sizes(num_components=num_components)
    self.num_components = num_components
    self.num_parameters = 3 * num_components + self.num_further

  def components(self, x, raw):
    """Return the logits of the weights, and what the sigmoids are taken of, (*batch, K)."""
    logits, c, v = jnp.split(raw[..., : 3 * self.num_components], 3, axis=-1)
    return logits, (x[..., None] - c - spread(c)) * jnp.exp(-5 * jnp.tanh(v / 5))

  def init_raw(self, x):
    """Return raw numbers of the mixture of `quantile_components`; what follows it stays at zero."""
    centers, scales = quantile_components(x, self.num_components)
    log_scales = jnp.log(jnp.clip(scales, math.exp(-_LARGEST), math.exp(_LARGEST)))
    parts = [jnp.zeros_like(centers), centers - spread(centers), 5 * jnp.arctanh(log_scales / 5)]
    further = jnp.zeros((*centers.shape[:-1], self.num_further), centers.dtype)
    return jnp.concatenate([*parts, further], axis=-1)


def quantile_components(x, num_components):
  """Return centers and scales (*batch, K) of logistics of one weight that resemble x (n, *batch).

  m_k = the (k + 1/2) / K quantile of x,  s_k = half of the distance to the nearer neighbour

  The distance is local: a gap between modes does not widen what stands beside it, as a bandwidth
  from the standard deviation of all would. With half of it, neighbours at equal distances add up
  to a density without ripples, and the outer ones fall off as fast as a normal's tails.
  """
  x = widened(x)
  shares = (np.arange(num_components) + 0.5) / num_components
  centers = jnp.moveaxis(jnp.quantile(x, jnp.asarray(shares, x.dtype), axis=0), 0, -1)
  if num_components == 1:
    return centers, _UNIT * jnp.std(x, axis=0)[..., None]
  gaps = jnp.diff(centers, axis=-1)
  left = jnp.concatenate([gaps[..., :1], gaps], axis=-1)
  right = jnp.concatenate([gaps, gaps[..., -1:]], axis=-1)
  return centers, jnp.minimum(left, right) / 2


class LogisticMixtureTransform(LogisticMixture):
  """Applies the distribution function of a mixture of logistics, its logit, and an affine map.

  y = exp(2 tanh(s / 2)) logit(sum_k w_k sigmoid((x - m_k) exp(-l_k))) + t
  raw (*batch, 3 K + 2) = (u, c, v, s, t),  w = softmax(u), m = c + K places from -2 to 2,
  l = 5 tanh(v / 5)

  Args:
    num_components: K, at least 1.

  Raises:
    ValueError: if `num_components` is below 1.

  Reference:
    Ho, Chen, Srinivas, Duan, Abbeel, "Flow++: Improving Flow-Based Generative Models with
    Variational Dequantization and Architecture Design", 2019, arXiv 1902.00275.

  Example:
    >>> transform = LogisticMixtureTransform(1)
    >>> y, _ = transform.forward(jnp.full(1, 3.0), jnp.zeros((1, 5)))
    >>> bool(abs(y[0] - 3) < 1e-5)
    True
  """

  num_further = 2

  def value(self, x, raw):
    """Return y."""
    scale = jnp.exp(2 * jnp.tanh(raw[..., -2] / 2))
    return scale * mixture_logit(*self.components(x, raw)) + raw[..., -1]

  def init_raw(self, x):
    """Return the raw numbers of the mixture, and an s with which y has standard deviation 1."""
    raw = super().init_raw(x)
    return raw.at[..., -2].set(2 * math.atanh(math.log(_UNIT) / 2))
