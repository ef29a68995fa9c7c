"""Rows of invertible convolutions, and of the coupling that came with one.

Reference tests cover the triangular tap and the quadrant mask.
"""

from flax import nnx

from normjax import flows
from tests.contracts.bijectors._row import BATCH, IMAGE, Row

ROWS = {
  "CInCConv/exp, dilated": Row(
    lambda rngs: flows.CInCConv(
      2, kernel_size=2, tap="exp", corner="bottom_left", dilation=2, rngs=rngs
    ),
    **IMAGE,
  ),
  "CInCConv/full": Row(
    lambda rngs: flows.CInCConv(2, tap="full", corner="top_right", use_bias=False, rngs=rngs),
    shape=(2, 3, 2),
    bad_shapes=((0, 2, 3, 2), (BATCH, 0, 3, 2), (BATCH, 2, 3, 1)),
  ),
  "EmergingConv/raster": Row(lambda rngs: flows.EmergingConv(2, mask="raster", rngs=rngs), **IMAGE),
  "PeriodicConv": Row(
    lambda rngs: flows.PeriodicConv(2, rngs=rngs),
    shape=(3, 4, 2),
    bad_shapes=((BATCH, 2, 4, 2), (BATCH, 3, 2, 2), (BATCH, 3, 4, 1), (3, 4, 2)),
  ),
  "QuadCoupling": Row(
    lambda rngs: flows.QuadCoupling(4, nnx.Linear, rngs=rngs),
    shape=(2, 1, 4),
    bad_shapes=((BATCH, 2, 1, 8), (0, 2, 1, 4), (4,)),
  ),
  "QuadGlowCoupling": Row(
    lambda rngs: flows.QuadGlowCoupling(4, width=3, rngs=rngs),
    shape=(2, 2, 4),
    bad_shapes=((BATCH, 2, 2, 8), (0, 2, 2, 4), (4,)),
  ),
}
