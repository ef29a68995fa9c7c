"""Rows of bijectors whose inverse or log-determinant is numerical, all in their exact modes."""

import jax

from normjax import flows
from tests.contracts.bijectors._row import FLAT, FLAT_COND, Row

ROWS = {
  "BlockAutoregressive": Row(
    lambda rngs: flows.BlockAutoregressive(4, width=3, depth=0, cond_dim=2, rngs=rngs), **FLAT_COND
  ),
  # Backward passes of diffrax have no forward mode; float64 is solved to 2e-12 in each step.
  "ContinuousFlow": Row(
    lambda rngs: flows.ContinuousFlow(4, width=5, depth=0, cond_dim=2, rngs=rngs),
    **FLAT_COND,
    jacobian=jax.jacrev,
  ),
  "Elementwise/Bernstein polynomials": Row(
    lambda rngs: flows.Elementwise(flows.BernsteinTransform(4, tail_bound=1.5), (4,)), **FLAT
  ),
  # The log-determinant is that of the integral; 65 nodes give it to 1e-9 for data of this size.
  "MaskedAutoregressive/unconstrained monotonic": Row(
    lambda rngs: flows.MaskedAutoregressive(
      4, flows.UMNNTransform(2, width=4, num_nodes=65, rngs=rngs), width=6, depth=1, rngs=rngs
    ),
    **FLAT,
  ),
  "ResidualFlow": Row(
    lambda rngs: flows.ResidualFlow(4, width=6, depth=0, cond_dim=2, rngs=rngs), **FLAT_COND
  ),
}  # fmt: skip
