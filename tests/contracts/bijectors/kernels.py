"""Rows of kernel couplings."""

from normjax import flows
from tests.contracts.bijectors._row import FLAT, FLAT_COND, Row


def _coupling(**options):
  return lambda rngs: flows.KernelCoupling(
    [2, 0, 3, 1], 2, num_points=6, lengthscale=2.0, rngs=rngs, **options
  )


ROWS = {
  "KernelCoupling": Row(_coupling(cond_dim=2, bound=1.5), **FLAT_COND),
  "KernelCoupling/matern": Row(_coupling(kernel="matern32", trainable_points=False), **FLAT),
}
