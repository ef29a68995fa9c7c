"""Rows of TarFlow: two blocks, one in each order of the tokens."""

import jax.numpy as jnp

from normjax import flows
from tests.contracts.bijectors._row import BATCH, Row


def _tarflow(**options):
  # Small: the table's random parameters make an untrained recursion grow fast.
  return lambda rngs: flows.TarFlow(
    (4, 4, 1), depth=2, block_depth=1, emb_dim=4, head_dim=2, patch_size=2, rngs=rngs, **options
  )


IMAGE = dict(shape=(4, 4, 1), bad_shapes=((BATCH, 4, 2, 2), (BATCH, 4, 4, 2), (4, 4, 1)))

ROWS = {
  "TarFlow": Row(
    _tarflow(num_classes=5),
    overflows=True,
    **IMAGE,
    cond=lambda seed: (jnp.arange(BATCH) + seed) % 5,
    bad_conds=(
      jnp.zeros((BATCH,)),
      jnp.zeros((BATCH, 1), int),
      jnp.zeros((1,), int),
      jnp.full((BATCH,), 5),
      jnp.full((BATCH,), -2),
    ),
  ),
  "TarFlow/volume preserving": Row(_tarflow(volume_preserving=True, memory="store"), **IMAGE),
}
