"""What a row of the bijector table says, and the inputs that most rows share."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

BATCH = 3


def real(seed, shape):
  """Draw standard normal numbers."""
  return np.random.default_rng(seed).standard_normal(shape)


def unit(seed, shape):
  """Draw numbers inside the unit interval."""
  return np.random.default_rng(seed).uniform(0.02, 0.98, shape)


@dataclasses.dataclass(frozen=True)
class Row:
  """One bijector: `make(rngs)`, what goes in, and what must be refused.

  Attributes:
    make: builds it.
    shape: the event shape of data.
    bad_shapes: shapes of batches that `forward` refuses.
    latent_shape: the event shape of latents; None: that of data.
    bad_latents: shapes that `inverse` refuses; None: those of `forward`.
    data: `data(seed, shape)` draws data.
    latents: likewise.
    cond: `cond(seed)` draws the condition of BATCH examples; None: unconditional.
    bad_conds: conditions that must be refused.
    jacobian: how the Jacobian is taken; `jax.jacrev` for a backward pass of one's own.
    overflows: whether `inverse` may overflow, and says so by a NaN.
  """

  make: Callable
  shape: tuple[int, ...]
  bad_shapes: tuple[tuple[int, ...], ...]
  latent_shape: tuple[int, ...] | None = None
  bad_latents: tuple[tuple[int, ...], ...] | None = None
  data: Callable = real
  latents: Callable = real
  cond: Callable | None = None
  bad_conds: tuple = ()
  jacobian: Callable = jax.jacfwd
  overflows: bool = False


CONTEXT = lambda seed: jnp.asarray(real(seed, (BATCH, 2)), jnp.float32)
BAD_CONTEXTS = (None, jnp.zeros((BATCH, 3)), jnp.zeros((BATCH - 1, 2)))
FLAT = dict(shape=(4,), bad_shapes=((BATCH, 3), (BATCH, 1, 4), (4,)))
FLAT_COND = dict(**FLAT, cond=CONTEXT, bad_conds=BAD_CONTEXTS)
IMAGE = dict(shape=(4, 4, 2), bad_shapes=((BATCH, 4, 2, 4), (BATCH, 4, 4, 1), (4, 4, 2)))
