"""Rows of fixed functions of single entries and of bijectors that only move entries."""

import numpy as np

from normjax import flows
from tests.contracts.bijectors._row import BATCH, Row, real, unit

FREE = dict(shape=(2, 3), bad_shapes=((), (0, 2, 3)))

ROWS = {
  "LeakyReLU": Row(lambda rngs: flows.LeakyReLU(0.3), **FREE),
  "LeakyTanh": Row(lambda rngs: flows.LeakyTanh(1.0), **FREE),
  "Permutation": Row(
    lambda rngs: flows.Permutation([2, 0, 3, 1], axis=1),
    shape=(4, 2),
    bad_shapes=((BATCH, 2, 4), (BATCH,), (0, 4, 2)),
  ),
  "Permutation/random": Row(
    lambda rngs: flows.Permutation.random(5, rngs=rngs), shape=(2, 5), bad_shapes=((BATCH, 4),)
  ),
  "Reshape": Row(
    lambda rngs: flows.Reshape((2, 3), [6]),
    shape=(2, 3),
    bad_shapes=((BATCH, 6), (2, 3)),
    latent_shape=(6,),
    bad_latents=((BATCH, 2, 3), (6,)),
  ),
  "Sigmoid": Row(lambda rngs: flows.Sigmoid(), **FREE, latents=unit),
  "Softplus": Row(
    lambda rngs: flows.Softplus(), **FREE, latents=lambda seed, shape: np.exp(real(seed, shape))
  ),
  "Squeeze": Row(
    lambda rngs: flows.Squeeze(),
    shape=(4, 2, 2),
    bad_shapes=((BATCH, 3, 2, 2), (BATCH, 4, 3, 2), (BATCH, 4, 2), (0, 4, 2, 2)),
    latent_shape=(2, 1, 8),
    bad_latents=((BATCH, 2, 1, 6), (BATCH, 1, 8)),
  ),
  "Squeeze/subpixel major": Row(
    lambda rngs: flows.Squeeze(3, order="subpixel_major"),
    shape=(3, 3, 2),
    bad_shapes=((BATCH, 3, 4, 2),),
    latent_shape=(1, 1, 18),
    bad_latents=((BATCH, 1, 1, 12),),
  ),
  "Tanh": Row(
    lambda rngs: flows.Tanh(), **FREE, latents=lambda seed, shape: 2 * unit(seed, shape) - 1
  ),
}
