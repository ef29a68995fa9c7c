"""Mixtures: of any distributions, and of many Gaussians at once."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from normjax.flows._checks import check_batch, check_parts, check_sampling, check_shape, check_sizes
from normjax.flows._distribution import Distribution
from normjax.flows._widened import widened


class Mixture(Distribution):
  """Draws each event from one of several distributions, chosen with learned probabilities.

  log p(z) = log sum_k w_k p_k(z),  w = softmax(logits),  z (b, *event), logits (K,)

  The temperature is that of the components; how often each is chosen stays. `cond` goes to all of
  them. Samples carry no gradient to `logits`.

  Args:
    components: a list or tuple of K distributions of one event shape.
    param_dtype: dtype of `logits`, zero at first.
    rngs: not needed; every module takes it.

  Raises:
    ValueError: if `components` is empty or holds anything but different `Distribution`s.

  Example:
    >>> from normjax import flows
    >>> wide = flows.Laplace((2,), trainable=True)
    >>> base = flows.Mixture([flows.StandardNormal((2,)), wide])
    >>> base.log_prob(jnp.zeros((3, 2))).shape
    (3,)
  """

  def __init__(
    self,
    components: Sequence[Distribution],
    *,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs | None = None,
  ):
    del rngs
    check_parts("components", components, Distribution, "component", least=1)
    self.components = nnx.List(components)
    self.logits = nnx.Param(jnp.zeros((len(components),), param_dtype))

  def log_prob(self, z, cond=None):
    """Return log p(z) (b,), float32 or wider."""
    each = jnp.stack([widened(c.log_prob(z, cond)) for c in self.components], axis=1)
    return _log_mean(each, self.logits[...])

  def sample(self, key, n, cond=None, temperature=1.0):
    """Draw `n` events from every component, and keep one of each row."""
    check_sampling(n, temperature)
    choice_key, *keys = jax.random.split(key, 1 + len(self.components))
    choice = jax.random.categorical(choice_key, self.logits[...], shape=(n,))
    draws = [c.sample(k, n, cond, temperature) for c, k in zip(self.components, keys, strict=True)]
    draws = jnp.stack(draws, axis=1)
    return jnp.take_along_axis(draws, choice.reshape(n, *[1] * (draws.ndim - 1)), axis=1)[:, 0]


class GaussianMixture(Distribution):
  """Draws each event from one of K diagonal Gaussians, all of them learned.

  log p(z) = log sum_k w_k prod_i N(z_i; loc_ki, s_ki^2),  w = softmax(logits), s = exp(log_scale),
  z (b, *shape);  a sample is loc_k + T * s_k * eps, with k drawn from w.

  Args:
    shape: the event shape, a tuple or list of ints.
    num_components: K, at least 1.
    spread: standard deviation of the first `loc`, which are drawn so that components differ.
    param_dtype: dtype of `logits` (K,), `loc` and `log_scale` (K, *shape), the first and the last
      zero at first; also of the samples unless narrower than float32.
    rngs: source of the first `loc`.

  Raises:
    ValueError: if `shape` is not a sequence of positive ints, `num_components` is below 1, or
      `spread` is negative.

  Example:
    >>> from normjax import flows
    >>> base = flows.GaussianMixture((2,), 5, rngs=nnx.Rngs(0))
    >>> base.sample(jax.random.key(0), 4, temperature=0.5).shape
    (4, 2)
  """

  def __init__(
    self,
    shape: Sequence[int],
    num_components: int,
    *,
    spread: float = 1.0,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.shape = check_shape(shape)
    check_sizes(num_components=num_components)
    if not 0 <= spread < math.inf:
      raise ValueError(f"spread must be at least 0 and finite, got {spread}")
    self.param_dtype = jnp.dtype(param_dtype)
    table = (num_components, *self.shape)
    self.logits = nnx.Param(jnp.zeros((num_components,), self.param_dtype))
    self.loc = nnx.Param(spread * jax.random.normal(rngs.params(), table, self.param_dtype))
    self.log_scale = nnx.Param(jnp.zeros(table, self.param_dtype))

  def log_prob(self, z, cond=None):
    """Return log p(z) (b,), float32 or wider."""
    check_batch("z", z, self.shape)
    z = widened(z)
    loc, log_scale = self.loc[...].astype(z.dtype)[None], self.log_scale[...].astype(z.dtype)[None]
    each = jax.scipy.stats.norm.logpdf((z[:, None] - loc) * jnp.exp(-log_scale)) - log_scale
    return _log_mean(jnp.sum(each, axis=tuple(range(2, each.ndim))), self.logits[...])

  def sample(self, key, n, cond=None, temperature=1.0):
    """Draw (n, *shape) events: loc_k + temperature * s_k * eps."""
    check_sampling(n, temperature)
    dtype = jnp.promote_types(self.param_dtype, jnp.float32)
    choice_key, key = jax.random.split(key)
    choice = jax.random.categorical(choice_key, self.logits[...], shape=(n,))
    loc, log_scale = self.loc[...].astype(dtype), self.log_scale[...].astype(dtype)
    eps = jnp.asarray(temperature, dtype) * jax.random.normal(key, (n, *self.shape), dtype)
    return loc[choice] + jnp.exp(log_scale[choice]) * eps


def _log_mean(each, logits):
  """Return log sum_k w_k exp(each_k) (b,) of log-densities (b, K)."""
  terms = each + jax.nn.log_softmax(logits.astype(each.dtype))[None]
  # Where no component has a density, the gradient is zero and not 0 / 0.
  supported = jnp.any(terms > -jnp.inf, axis=1)
  total = jax.nn.logsumexp(jnp.where(supported[:, None], terms, 0), axis=1)
  return jnp.where(supported, total, -jnp.inf)
