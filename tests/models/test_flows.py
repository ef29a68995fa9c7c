"""Assembled flows: compile size, autoregressive order, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import flows, models

BUILDERS = {"maf": models.maf, "rqs_coupling_flow": models.rqs_coupling_flow}


@pytest.mark.parametrize("name", BUILDERS)
def test_program_does_not_grow_with_depth(name):
  def size(num_layers):
    flow = BUILDERS[name](3, num_layers=num_layers, width=4, depth=1, rngs=nnx.Rngs(0))
    return str(jax.make_jaxpr(flow.log_prob)(jnp.ones((2, 3)))).count("\n")

  assert size(2) == size(8)


def test_made_sees_features_before_only():
  made = flows.MADE(4, 2, width=7, depth=1, rngs=nnx.Rngs(0))
  jacobian = jax.jacrev(lambda x: made(x[None])[0])(jnp.ones(4))  # (feature, parameter, input)
  seen = np.any(jacobian != 0, axis=1)
  np.testing.assert_array_equal(seen, np.tri(4, k=-1, dtype=bool))
