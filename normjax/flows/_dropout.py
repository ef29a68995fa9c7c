"""Dropout inside the networks of flows, where both directions must drop the same units."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class Dropout(nnx.Module):
  """Drops units at random, h * keep / (1 - rate), by a mask that a call does not change.

  keep (*h.shape) is drawn from the key and the count of the stream `dropout`, neither of which
  moves: a layer changes no state, and its inverse sees the mask of its `forward`. New masks come
  with `nnx.reseed(flow, dropout=key, policy="match_shape")`, once per training step.
  """

  deterministic: bool

  def __init__(self, rate: float, *, rngs: nnx.Rngs):
    if not 0 <= rate < 1:
      raise ValueError(f"dropout_rate must be in [0, 1), got {rate}")
    self.rate, self.deterministic = rate, False
    self.rngs = nnx.Rngs(dropout=rngs.dropout())

  def set_view(self, deterministic: bool | None = None) -> None:
    """Set the mode, for `nnx.view`.

    Args:
      deterministic: whether to keep all units.
    """
    if deterministic is not None:
      self.deterministic = deterministic

  def __call__(self, h: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the units that are kept, scaled up, and zeros."""
    if self.deterministic:
      return h
    stream = self.rngs.dropout
    key = jax.random.fold_in(stream.key[...], stream.count[...])
    keep = jax.random.bernoulli(key, 1 - self.rate, h.shape)
    return jnp.where(keep, h / (1 - self.rate), 0)


def make_dropout(rate: float, rngs: nnx.Rngs) -> Dropout | None:
  """Return a `Dropout`, or None if there is nothing to drop."""
  return None if rate == 0 else Dropout(rate, rngs=rngs)
