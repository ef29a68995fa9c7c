"""Rows of bijectors of images given features of a condition."""

import jax.numpy as jnp
from flax import nnx

from normjax import flows
from tests.contracts.bijectors._row import BATCH, CONTEXT, FLAT, Row, real

FEATURES = dict(
  cond=lambda seed: jnp.asarray(real(seed, (BATCH, 2, 3, 2)), jnp.float32),
  bad_conds=(
    None, jnp.zeros((BATCH, 2, 3, 1)), jnp.zeros((BATCH, 3, 2, 2)), jnp.zeros((BATCH - 1, 2, 3, 2))
  ),
  bad_shapes=((BATCH, 2, 3, 4), (0, 2, 3, 3), (3,)),
  shape=(2, 3, 3),
)  # fmt: skip
SMALL = {"cond_features": 2, "width": 3}
spline = lambda: flows.ModifiedRQSTransform(bound=4.0)

ROWS = {
  "Conditioned": Row(
    lambda rngs: flows.Conditioned(
      flows.Chain([
        flows.InvertibleLinear(4, rngs=rngs),
        flows.AffineCoupling(jnp.arange(4), width=6, depth=1, cond_dim=3, rngs=rngs),
      ]),
      nnx.Linear(2, 3, rngs=rngs),
    ),
    **FLAT, cond=CONTEXT, bad_conds=(None,),
  ),
  "FeatureConditional": Row(
    lambda rngs: flows.FeatureConditional(3, spline(), rngs=rngs, **SMALL), **FEATURES
  ),
  "SelfConditional": Row(
    lambda rngs: flows.SelfConditional(3, spline(), rngs=rngs, **SMALL), **FEATURES
  ),
}  # fmt: skip
