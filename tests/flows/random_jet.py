"""Jets away from their initial values, which are the identity, made without drawing those first."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from normjax import flows

TINY = {"depth": 3, "block_depth": 1, "emb_dim": 8, "num_heads": 2, "patch_size": 2}


def random_jet(shape, *, scale=0.3, seed=0, **options):
  """Return a Jet of `TINY` sizes unless told otherwise, its Params normal with std `scale`."""
  make = lambda: flows.Jet(shape, **TINY | options, rngs=nnx.Rngs(seed))
  graphdef, params, _ = nnx.split(nnx.eval_shape(make), nnx.Param, ...)
  # Compiling only the permutations leaves out the costly random initial values.
  rest = jax.jit(lambda: nnx.split(make(), nnx.Param, ...)[2])()
  rng = np.random.default_rng(seed)
  draw = lambda v: jnp.asarray(scale * rng.standard_normal(v.shape), v.dtype)
  return nnx.merge(graphdef, jax.tree.map(draw, params), rest)
