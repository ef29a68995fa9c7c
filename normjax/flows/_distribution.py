"""The protocol of every distribution of latents, and of a flow itself."""

import abc

from flax import nnx
from jaxtyping import Array, Float, PyTree


class Distribution(nnx.Module):
  """Assigns densities to batches of events and draws them.

  `log_prob`: z (b, ...) -> log p(z) (b,), float32 or wider, always at temperature 1.
  `sample`: -> (n, ...).

  Unconditional distributions ignore `cond`.
  """

  @abc.abstractmethod
  def log_prob(self, z: Float[Array, "b *event"], cond: PyTree | None = None) -> Float[Array, "b"]:
    """Return log p(z) per example."""

  @abc.abstractmethod
  def sample(
    self, key: Array, n: int, cond: PyTree | None = None, temperature: float | Array = 1.0
  ) -> Float[Array, "n *event"]:
    """Draw `n` events at a temperature."""

  def sample_and_log_prob(
    self, key: Array, n: int, cond: PyTree | None = None, temperature: float | Array = 1.0
  ) -> tuple[Float[Array, "n *event"], Float[Array, "n"]]:
    """Draw `n` events with their log-densities (n,), those at temperature 1."""
    z = self.sample(key, n, cond, temperature)
    return z, self.log_prob(z, cond)
