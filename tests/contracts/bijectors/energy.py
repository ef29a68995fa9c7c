"""Rows of the layers of energy-based flows."""

import jax.numpy as jnp
from flax import nnx

from normjax import flows
from tests.contracts.bijectors._row import BATCH, FLAT_COND, Row


def _mixed(rngs):
  image = flows.Squeeze(2)
  return flows.Chain(
    [
      flows.PaddedConv(1, rngs=rngs),
      flows.SmoothLeakyReLU(0.3),
      flows.Inverted(flows.Chain([flows.ActNorm(1), flows.SmoothLeakyReLU(0.5)])),
      image,
      flows.InvertibleLinear(4, bias_init=nnx.initializers.ones, rngs=rngs),
    ]
  )


ROWS = {
  "Chain/constant and varying": Row(
    _mixed, shape=(2, 2, 1), bad_shapes=((BATCH, 2, 2, 2),), latent_shape=(1, 1, 4),
    bad_latents=((BATCH, 1, 1, 5),),
  ),
  "PaddedConv": Row(
    lambda rngs: flows.PaddedConv(2, rngs=rngs),
    shape=(2, 3, 2),
    bad_shapes=((BATCH, 2, 3, 1), (BATCH, 0, 3, 2), (2, 3, 2)),
  ),
  "SmoothAffineCoupling": Row(
    lambda rngs: flows.SmoothAffineCoupling(
      jnp.array([2, 0, 3, 1]), num_conditioning=1, width=5, depth=2, shift_activation="elu",
      cond_dim=2, rngs=rngs,
    ),
    **FLAT_COND,
  ),
  "SmoothLeakyReLU": Row(
    lambda rngs: flows.SmoothLeakyReLU(0.3), shape=(2, 3), bad_shapes=((), (0, 2, 3))
  ),
}  # fmt: skip
