"""Mixtures: of any distributions, and of many Gaussians at once."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from normjax._sizes import check_sizes
from normjax.flows._checks import (
  check_above_zero,
  check_batch,
  check_parts,
  check_sampling,
  check_shape,
)
from normjax.flows._conditional_normal import check_network, network_rows
from normjax.flows._distribution import Distribution
from normjax.flows._widened import widened


class Mixture(Distribution):
  """Draws each event from one of several distributions, chosen with learned probabilities.

  log p(z | c) = log sum_k w_k p_k(z | c),  w = softmax(logits + network(c)),  z (b, *event),
  logits (K,), network(c) (b, K), zero without a network

  The temperature is that of the components; how often each is chosen stays. `cond` goes to all of
  them, and to the network. Samples carry no gradient to the weights.

  Args:
    components: a list or tuple of K distributions of one event shape.
    network: any NNX module (or function) from conditions to (b, K), or None.
    param_dtype: dtype of `logits`, zero at first.
    rngs: not needed; every module takes it.

  Raises:
    ValueError: if `components` is empty or holds anything but different `Distribution`s, or
      `network` is no function, or returns another shape.

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
    network: Callable[..., Array] | None = None,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs | None = None,
  ):
    del rngs
    check_parts("components", components, Distribution, "component", least=1)
    if network is not None:
      check_network(network)
    self.components, self.network = nnx.List(components), network
    self.logits = nnx.Param(jnp.zeros((len(components),), param_dtype))

  def log_prob(self, z, cond=None):
    """Return log p(z) (b,), float32 or wider."""
    each = jnp.stack([widened(c.log_prob(z, cond)) for c in self.components], axis=1)
    return _log_mean(each, self._logits(cond, z.shape[0]).astype(each.dtype))

  def sample(self, key, n, cond=None, temperature=1.0):
    """Draw `n` events from every component, and keep one of each row."""
    check_sampling(n, temperature)
    choice_key, *keys = jax.random.split(key, 1 + len(self.components))
    choice = jax.random.categorical(choice_key, self._logits(cond, n), shape=(n,))
    draws = [c.sample(k, n, cond, temperature) for c, k in zip(self.components, keys, strict=True)]
    draws = jnp.stack(draws, axis=1)
    return jnp.take_along_axis(draws, choice.reshape(n, *[1] * (draws.ndim - 1)), axis=1)[:, 0]

  def _logits(self, cond, n):
    """Return the logits of n conditions, (n, K), or (1, K) if they are all the same."""
    logits = widened(self.logits[...])[None]
    if self.network is None:
      return logits
    return logits + network_rows(self.network, cond, (n, logits.shape[1]))


class GaussianMixture(Distribution):
  """Draws each event from one of K diagonal Gaussians, all of them learned.

  log p(z) = log sum_k w_k prod_i N(z_i; loc_ki, s_ki^2),  w = softmax(logits), s = exp(log_scale),
  z (b, *shape);  a sample is loc_k + T * s_k * eps, with k drawn from w.

  A network makes them depend on a condition c: of its output [a | b | raw], a (b, K) is added to
  the logits, b (b, K D) to loc, and m tanh(raw / m) to log_scale, with m = max_log_scale and D
  entries of an event.

  Args:
    shape: the event shape, a tuple or list of ints.
    num_components: K, at least 1.
    spread: standard deviation of the first `loc`, which are drawn so that components differ.
    network: any NNX module (or function) from conditions to (b, K (1 + 2 D)), or None.
    max_log_scale: bound of what the network adds to log_scale, above 0.
    param_dtype: dtype of `logits` (K,), `loc` and `log_scale` (K, *shape), the first and the last
      zero at first; also of the samples unless narrower than float32.
    rngs: source of the first `loc`.

  Raises:
    ValueError: if `shape` is not a sequence of positive ints, `num_components` is below 1, `spread`
      is negative, `max_log_scale` not above 0, or `network` no function, or returns another shape.

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
    network: Callable[..., Array] | None = None,
    max_log_scale: float = 7.0,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.shape = check_shape(shape)
    check_sizes(num_components=num_components)
    if not 0 <= spread < math.inf:
      raise ValueError(f"spread must be at least 0 and finite, got {spread}")
    if network is not None:
      check_network(network)
    check_above_zero(max_log_scale=max_log_scale)
    self.network, self.max_log_scale = network, float(max_log_scale)
    self.param_dtype = jnp.dtype(param_dtype)
    table = (num_components, *self.shape)
    self.logits = nnx.Param(jnp.zeros((num_components,), self.param_dtype))
    self.loc = nnx.Param(spread * jax.random.normal(rngs.params(), table, self.param_dtype))
    self.log_scale = nnx.Param(jnp.zeros(table, self.param_dtype))

  def log_prob(self, z, cond=None):
    """Return log p(z) (b,), float32 or wider."""
    check_batch("z", z, self.shape)
    z = widened(z)
    logits, loc, log_scale = self._moments(cond, z.shape[0], z.dtype)
    each = jax.scipy.stats.norm.logpdf((z[:, None] - loc) * jnp.exp(-log_scale)) - log_scale
    return _log_mean(jnp.sum(each, axis=tuple(range(2, each.ndim))), logits)

  def sample(self, key, n, cond=None, temperature=1.0):
    """Draw (n, *shape) events: loc_k + temperature * s_k * eps."""
    check_sampling(n, temperature)
    dtype = jnp.promote_types(self.param_dtype, jnp.float32)
    choice_key, key = jax.random.split(key)
    logits, loc, log_scale = self._moments(cond, n, dtype)
    choice = jax.random.categorical(choice_key, logits, shape=(n,))
    chosen = jnp.arange(n) % loc.shape[0], choice
    eps = jnp.asarray(temperature, dtype) * jax.random.normal(key, (n, *self.shape), dtype)
    return loc[chosen] + jnp.exp(log_scale[chosen]) * eps

  def _moments(self, cond, n, dtype):
    """Return logits, loc and log_scale of n conditions, or of one if they are all the same."""
    values = (self.logits, self.loc, self.log_scale)
    logits, loc, log_scale = (value[...].astype(dtype)[None] for value in values)
    if self.network is None:
      return logits, loc, log_scale
    count, table = logits.shape[1], (n, *loc.shape[1:])
    rows = network_rows(self.network, cond, (n, count + 2 * math.prod(table[1:]))).astype(dtype)
    more, moved, raw = jnp.split(rows, (count, count + math.prod(table[1:])), axis=1)
    wider = self.max_log_scale * jnp.tanh(raw.reshape(table) / self.max_log_scale)
    return logits + more, loc + moved.reshape(table), log_scale + wider


def _log_mean(each, logits):
  """Return log sum_k w_k exp(each_k) (b,) of log-densities (b, K) and logits (b or 1, K)."""
  terms = each + jax.nn.log_softmax(logits, axis=1)
  # Where no component has a density, the gradient is zero and not 0 / 0.
  supported = jnp.any(terms > -jnp.inf, axis=1)
  total = jax.nn.logsumexp(jnp.where(supported[:, None], terms, 0), axis=1)
  return jnp.where(supported, total, -jnp.inf)
