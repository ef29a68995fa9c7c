"""Rows of couplings of vectors and of masked autoregressive flows."""

import jax.numpy as jnp

from normjax import flows
from tests.contracts.bijectors._row import FLAT, FLAT_COND, Row

ORDER = jnp.array([2, 0, 3, 1])
SMALL = {"width": 6, "depth": 1}
COND = SMALL | {"cond_dim": 2}
SPLINE = {"num_bins": 3, "tail_bound": 3.0}
GRAPH = [
  [False, False, True, False],
  4 * [False],
  [False, True, False, False],
  [True, True, False, False],
]


ROWS = {
  "AdditiveCoupling": Row(
    lambda rngs: flows.AdditiveCoupling(ORDER, num_conditioning=3, rngs=rngs, **SMALL), **FLAT
  ),
  "AffineCoupling": Row(
    lambda rngs: flows.AffineCoupling(ORDER, rngs=rngs, **COND), **FLAT_COND
  ),
  "ElementwiseCoupling": Row(
    lambda rngs: flows.ElementwiseCoupling(
      flows.ModifiedRQSTransform(bound=4.0), ORDER, num_conditioning=1, rngs=rngs, **COND
    ),
    **FLAT_COND,
  ),
  "MaskedAutoregressive": Row(
    lambda rngs: flows.MaskedAutoregressive(4, order=ORDER, rngs=rngs, **COND), **FLAT_COND
  ),
  "MaskedAutoregressive/graph": Row(
    lambda rngs: flows.MaskedAutoregressive(4, adjacency=GRAPH, rngs=rngs, **COND), **FLAT_COND
  ),
  "MaskedAutoregressive/spline": Row(
    lambda rngs: flows.MaskedAutoregressive(
      4, flows.RQSTransform(**SPLINE), residual=False, rngs=rngs, **SMALL
    ),
    **FLAT,
  ),
  "RQSCoupling": Row(
    lambda rngs: flows.RQSCoupling(ORDER, rngs=rngs, **SPLINE, **COND), **FLAT_COND
  ),
}  # fmt: skip
