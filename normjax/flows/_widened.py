"""The dtype in which flows compute: log-determinants of 16-bit numbers would be worth little."""

import jax
import jax.numpy as jnp


def widened(x: jax.Array) -> jax.Array:
  """Return a floating array in float32, or as it is if it is wider."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
