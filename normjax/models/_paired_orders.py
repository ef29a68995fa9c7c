"""Orders of the features for stacks of couplings and of autoregressive layers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


def paired_orders(
  key: Array | None, dim: int, num_layers: int, shift: int | None = None
) -> Int[Array, "num_layers dim"]:
  """Return an order for each layer; every second one is that before it, turned round or rolled.

  Args:
    key: draws the first order of each pair; None: all of them are 0 to dim - 1.
    dim: number of features.
    num_layers: number of layers.
    shift: by how much every second order is rolled; None: it is turned round.
  """
  count = (num_layers + 1) // 2
  if key is None:
    orders = jnp.tile(jnp.arange(dim)[None], (count, 1))
  else:
    draw = lambda key: jax.random.permutation(key, dim)
    orders = jax.vmap(draw)(jax.random.split(key, count))
  other = orders[:, ::-1] if shift is None else jnp.roll(orders, shift, axis=1)
  return jnp.stack([orders, other], axis=1).reshape(-1, dim)[:num_layers]
