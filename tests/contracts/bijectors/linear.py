"""Rows of linear layers, ActNorm and what Glow makes of them."""

import jax.numpy as jnp

from normjax import flows
from tests.contracts.bijectors._row import BATCH, IMAGE, Row, real

PIXELS = dict(shape=(2, 1, 4), bad_shapes=((BATCH, 2, 1, 3), (BATCH,), (0, 2, 1, 4)))
VECTOR = dict(shape=(3,), bad_shapes=((BATCH, 2), (3,)))


def _level(shape, rngs):
  step = lambda rngs: flows.Chain(
    [
      flows.ActNorm(shape[-1]),
      flows.Permutation.reverse(shape[-1]),
      flows.GlowCoupling(shape[-1], width=3, rngs=rngs),
    ]
  )
  return flows.Scan(step, 2, rngs=rngs)


ROWS = {
  "ActNorm": Row(lambda rngs: flows.ActNorm(4), **PIXELS),
  "ActNorm/vectors": Row(lambda rngs: flows.ActNorm(3), **VECTOR),
  "AdditiveGlowCoupling": Row(
    lambda rngs: flows.AdditiveGlowCoupling(2, width=3, rngs=rngs), **IMAGE
  ),
  "GlowCoupling": Row(
    lambda rngs: flows.GlowCoupling(2, width=3, edge_bias=True, rngs=rngs), **IMAGE
  ),
  "HouseholderLinear": Row(
    lambda rngs: flows.HouseholderLinear(4, num_reflections=3, rngs=rngs), **PIXELS
  ),
  "InvertibleLinear": Row(lambda rngs: flows.InvertibleLinear(4, rngs=rngs), **PIXELS),
  "LULinear": Row(lambda rngs: flows.LULinear(4, rngs=rngs), **PIXELS),
  "MultiScale": Row(
    lambda rngs: flows.MultiScale((4, 4, 1), _level, 2, num_classes=5, rngs=rngs),
    shape=(4, 4, 1),
    bad_shapes=((BATCH, 4, 4, 2), (BATCH, 16), (4, 4, 1)),
    latent_shape=(16,),
    bad_latents=((BATCH, 15), (BATCH, 4, 4, 1), (16,)),
    # With random weights `inverse` grows exponentially in its input, as Glow's does.
    latents=lambda seed, shape: 0.2 * real(seed, shape),
    cond=lambda seed: (jnp.arange(BATCH) + seed) % 5,
    bad_conds=(
      jnp.zeros((BATCH,)),
      jnp.zeros((BATCH, 1), int),
      jnp.zeros((1,), int),
      jnp.full((BATCH,), -1),
    ),
  ),
  "QRLinear": Row(lambda rngs: flows.QRLinear(4, rngs=rngs), **PIXELS),
  "SVDLinear": Row(lambda rngs: flows.SVDLinear(3, rngs=rngs), **VECTOR),
  "SoftplusLULinear": Row(lambda rngs: flows.SoftplusLULinear(4), **PIXELS),
  "TriangularLinear": Row(lambda rngs: flows.TriangularLinear(3, lower=True), **VECTOR),
}
