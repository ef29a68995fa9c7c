"""Rows of compositions, Jet and the constant bijectors."""

import jax
import jax.numpy as jnp

from normjax import flows
from tests.contracts.bijectors._row import BATCH, FLAT_COND, IMAGE, Row, real, unit
from tests.flows.affine_coupling import alternating_orders, random_coupling


def _coupling(rngs):
  return random_coupling(rngs, jnp.arange(4), cond_dim=2)


def _scan(memory):
  def make(rngs):
    layer = lambda rngs, order: random_coupling(rngs, order, cond_dim=2)
    return flows.Scan(layer, 3, alternating_orders(4, 3), memory=memory, rngs=rngs)

  return make


def _jet(**options):
  return lambda rngs: flows.Jet(
    (4, 4, 2), depth=3, block_depth=1, emb_dim=8, num_heads=2, patch_size=2, rngs=rngs, **options
  )


ROWS = {
  "Chain": Row(
    lambda rngs: flows.Chain([
      _coupling(rngs),
      flows.ElementwiseAffine(jnp.arange(4.0), 2.0),
      flows.Inverted(_coupling(rngs)),
    ]),
    **FLAT_COND,
  ),
  "Chain/empty": Row(lambda rngs: flows.Chain([]), shape=(2, 3), bad_shapes=((), (0, 2, 3))),
  "ElementwiseAffine": Row(
    lambda rngs: flows.ElementwiseAffine([[0.5, -1.0], [2.0, 0.0]], [[2.0, -3.0], [0.1, 1]]),
    shape=(2, 2),
    bad_shapes=((BATCH, 2), (BATCH, 4), (BATCH, 2, 1), (2, 2)),
  ),
  "ElementwiseAffine/scalars": Row(
    lambda rngs: flows.ElementwiseAffine(0.5, -2.0), shape=(2, 2), bad_shapes=((), (0, 2, 2))
  ),
  "Inverted": Row(
    lambda rngs: flows.Inverted(_coupling(rngs)), **FLAT_COND
  ),
  "Inverted/logit": Row(
    lambda rngs: flows.Inverted(flows.Logit(0.05)),
    shape=(5,),
    bad_shapes=((), (0, 5)),
    latents=unit,
  ),
  "Jet": Row(
    _jet(cond_dim=3),
    **IMAGE,
    cond=lambda seed: jnp.asarray(real(seed, (BATCH, 2, 3)), jnp.float32),
    bad_conds=(None, jnp.zeros((BATCH, 2, 4)), jnp.zeros((BATCH, 3)), jnp.zeros((1, 2, 3))),
  ),
  "Jet/reversible": Row(
    _jet(num_classes=5, memory="reversible"),
    **IMAGE,
    cond=lambda seed: (jnp.arange(BATCH) + seed) % 5,
    bad_conds=(
      jnp.zeros((BATCH,)), jnp.zeros((BATCH, 1), int), jnp.zeros((1,), int), jnp.full((BATCH,), 6)
    ),
    jacobian=jax.jacrev,  # a backward pass of its own: reverse mode only
  ),
  "Logit": Row(
    lambda rngs: flows.Logit(0.05), shape=(2, 3), bad_shapes=((), (0, 2, 3)), data=unit
  ),
  "Logit/no squeeze": Row(
    lambda rngs: flows.Logit(0.0), shape=(6,), bad_shapes=((), (0, 6)), data=unit
  ),
  "Scan": Row(_scan("store"), **FLAT_COND),
  "Scan/remat": Row(_scan("remat"), **FLAT_COND),
  "Scan/reversible": Row(_scan("reversible"), **FLAT_COND, jacobian=jax.jacrev),
}  # fmt: skip
