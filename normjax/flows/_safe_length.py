"""Lengths and directions of vectors, without overflow and with gradients at zero."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def safe_length(v: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
  """Return |v|; where v is zero its gradient is zero."""
  return direction_and_length(v)[1]


def direction_and_length(
  v: Float[Array, "*batch d"],
) -> tuple[Float[Array, "*batch d"], Float[Array, "*batch"]]:
  """Return v / |v| and |v|; of zero both are zero, and have no gradient."""
  # Neither depends on what v is measured in, so its largest entry is a constant unit.
  largest = lax.stop_gradient(jnp.max(jnp.abs(v), axis=-1))
  largest = jnp.where(largest > 0, largest, 1)
  scaled = v / largest[..., None]
  square = jnp.sum(scaled**2, axis=-1)
  length = jnp.sqrt(jnp.where(square > 0, square, 1))
  return scaled / length[..., None], largest * jnp.where(square > 0, length, 0)
