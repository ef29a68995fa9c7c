"""Rows of bijectors whose inverse or log-determinant is numerical, all in their exact modes."""

from normjax import flows
from tests.contracts.bijectors._row import FLAT_COND, Row

ROWS = {
  "ResidualFlow": Row(
    lambda rngs: flows.ResidualFlow(4, width=6, depth=0, cond_dim=2, rngs=rngs), **FLAT_COND
  ),
}  # fmt: skip
