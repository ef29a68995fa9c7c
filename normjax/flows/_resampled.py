"""A base that is carved out of another by learned rejection sampling, for data with holes.

A flow of a Gaussian cannot change the topology of its support; a base whose samples a network
accepts or rejects can (https://arxiv.org/abs/2110.15828).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from normjax._sizes import check_sizes
from normjax.flows._checks import check_sampling
from normjax.flows._distribution import Distribution
from normjax.flows._widened import widened


class Resampled(Distribution):
  """Keeps the proposals of another distribution that a learned function accepts.

  log p(z) = log pi(z) + log((1 - r) a(z) / Z + r),  r = (1 - Z)^(T - 1),  Z = E_pi[a],
  a(z) = sigmoid(network(z)) (b,),  z (b, *shape)

  The law of the first accepted of T proposals, or of the last one if none is. Z is the mean of
  `num_samples` draws of a fixed key: the density is a function of its parameters and normalized up
  to that estimate's error. Without a condition only. Samples carry no gradient to the network.

  Args:
    base: pi, where proposals come from.
    network: any NNX module (or function) from (b, *shape) to logits (b,) or (b, 1).
    max_proposals: T, at least 2.
    num_samples: draws that estimate Z, at least 1.
    seed: of these draws.

  Raises:
    ValueError: if `base` is not a `Distribution`, `network` not callable, a number is out of range,
      or the network returns another shape.

  Reference:
    Stimper, Schölkopf, Hernández-Lobato, "Resampling Base Distributions of Normalizing Flows",
    2021, arXiv 2110.15828.

  Example:
    >>> from normjax import flows
    >>> hole = lambda z: 20 * (jnp.sum(z**2, axis=1) - 1)  # reject inside of the unit circle
    >>> base = flows.Resampled(flows.StandardNormal((2,)), hole)
    >>> z = base.sample(jax.random.key(0), 1000)
    >>> bool(jnp.mean(jnp.sum(z**2, axis=1) < 0.8) < 0.02)
    True
  """

  def __init__(
    self,
    base: Distribution,
    network: Callable[..., Array],
    *,
    max_proposals: int = 100,
    num_samples: int = 2048,
    seed: int = 0,
  ):
    if not isinstance(base, Distribution):
      raise ValueError(f"base must be a flows.Distribution, got {base!r}")
    if not callable(network):
      raise ValueError(f"network must be callable, got {network!r}")
    check_sizes(2, max_proposals=max_proposals)
    check_sizes(num_samples=num_samples)
    self.base, self.network, self.max_proposals = base, network, max_proposals
    self.num_samples, self.seed = num_samples, seed

  def _logits(self, z):
    logits = self.network(z)
    if logits.shape not in ((z.shape[0],), (z.shape[0], 1)):
      raise ValueError(f"network must return shape ({z.shape[0]},), got {logits.shape}")
    return widened(logits).reshape(-1)

  def log_prob(self, z, cond=None):
    """Return log p(z) (b,), float32 or wider."""
    log_base = self.base.log_prob(z)
    probes = self.base.sample(jax.random.key(self.seed), self.num_samples)
    log_accepted = jax.nn.log_sigmoid(self._logits(probes))
    log_mean = jax.nn.logsumexp(log_accepted) - math.log(self.num_samples)  # log Z
    # Z below 1 also where rounding says otherwise, so that log(1 - Z) is finite.
    log_rest = jnp.log(jnp.maximum(-jnp.expm1(log_mean), jnp.finfo(log_mean.dtype).tiny))
    log_last = (self.max_proposals - 1) * log_rest  # log r
    log_first = jnp.log(jnp.maximum(-jnp.expm1(log_last), jnp.finfo(log_mean.dtype).tiny))
    log_ratio = jax.nn.log_sigmoid(self._logits(z)) - log_mean
    return log_base + jnp.logaddexp(log_first + log_ratio, log_last)

  def sample(self, key, n, cond=None, temperature=1.0):
    """Draw `n` events from proposals at a temperature, by rejection."""
    check_sampling(n, temperature)
    key, first_key = jax.random.split(key)
    z = self.base.sample(first_key, n, None, temperature)

    def again(carry):
      key, z, accepted, count = carry
      key, keep_key, draw_key = jax.random.split(key, 3)
      logits = self._logits(z)
      accepted = accepted | jax.random.bernoulli(keep_key, jax.nn.sigmoid(logits))
      new = self.base.sample(draw_key, n, None, temperature)
      kept = accepted.reshape(n, *[1] * (z.ndim - 1))
      return key, jnp.where(kept, z, new), accepted, count + 1

    going = lambda carry: (carry[3] < self.max_proposals - 1) & ~jnp.all(carry[2])
    start = key, z, jnp.zeros(n, bool), jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(going, again, start)[1]
