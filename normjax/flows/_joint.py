"""Distributions side by side: one of its own for each block of the last axis."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from normjax.flows._checks import check_blocks, check_features, check_parts, check_sampling
from normjax.flows._distribution import Distribution
from normjax.flows._widened import widened


class Joint(Distribution):
  """Draws each of the blocks that the last axis falls into from a distribution of its own.

  log p(z) = sum_i log p_i(z_i),  z = [z_1 | z_2 | ...] (b, ..., sum(sizes))

  The blocks are independent; `cond` and the temperature go to all of them. For data on a cylinder,
  say, or with bounds on some of the features.

  Args:
    components: a list or tuple of distributions.
    sizes: how many entries of the last axis each of them gets.

  Raises:
    ValueError: if there are not as many sizes as components, one is below 1, an entry is no
      `Distribution`, or stands there twice, or draws another size than its own.

  Example:
    >>> from normjax import flows
    >>> angle, height = flows.VonMises((1,)), flows.StandardNormal((2,))
    >>> flows.Joint([angle, height], [1, 2]).sample(jax.random.key(0), 4).shape
    (4, 3)
  """

  def __init__(self, components: Sequence[Distribution], sizes: Sequence[int]):
    check_parts("components", components, Distribution, "block", least=1)
    self.components, self.sizes = nnx.List(components), check_blocks(sizes, len(components))

  def log_prob(self, z, cond=None):
    """Return log p(z) (b,), float32 or wider."""
    return self._sum(z, lambda component, part: component.log_prob(part, cond))

  def energy(self, z, cond=None):
    """Return the sum of the blocks' energies (b,)."""
    return self._sum(z, lambda component, part: component.energy(part, cond))

  def sample(self, key, n, cond=None, temperature=1.0):
    """Draw `n` events, each block with a key of its own."""
    draw = lambda component, key: component.sample(key, n, cond, temperature)
    return self._joined(self._each(key, n, temperature, draw))

  def sample_and_log_prob(self, key, n, cond=None, temperature=1.0):
    """Draw what `sample` draws, with the log-densities (n,) that come with each block."""
    draw = lambda component, key: component.sample_and_log_prob(key, n, cond, temperature)
    parts, log_probs = zip(*self._each(key, n, temperature, draw), strict=True)
    return self._joined(parts), sum(widened(log_prob) for log_prob in log_probs)

  def _sum(self, z, each):
    check_features("z", z, sum(self.sizes))
    parts = jnp.split(z, np.cumsum(self.sizes)[:-1], axis=-1)
    return sum(widened(each(c, part)) for c, part in zip(self.components, parts, strict=True))

  def _each(self, key, n, temperature, draw):
    check_sampling(n, temperature)
    keys = jax.random.split(key, len(self.components))
    return [draw(component, key) for component, key in zip(self.components, keys, strict=True)]

  def _joined(self, parts):
    for i, (part, size) in enumerate(zip(parts, self.sizes, strict=True)):
      if part.shape[-1:] != (size,):
        raise ValueError(f"components[{i}] must draw (n, ..., {size}), got {part.shape}")
    return jnp.concatenate(parts, axis=-1)
