"""Couplings of vectors that split by an order of the features: those that condition come first.

An order says more than a mask: it may be traced, so the layers of a `Scan` can split differently.
"""

import jax.numpy as jnp
from flax import nnx

from normjax.flows._checks import as_order, check_batch
from normjax.flows._coupling import Coupling


class OrderedCoupling(Coupling):
  """Cuts the reordered features x[:, order] (B, D) behind the first `num_conditioning`."""

  def _set_order(self, order, num_conditioning: int | None) -> None:
    """Keep the order and where it is cut: in the middle, rounded down, if None."""
    order = as_order(order)
    dim = order.size
    if dim < 2:
      raise ValueError(f"order must be a permutation of at least two features, got {order}")
    kept = dim // 2 if num_conditioning is None else num_conditioning
    if not 1 <= kept < dim:
      raise ValueError(
        f"num_conditioning must be 1 to {dim - 1} (order has {dim} features), got {kept}"
      )
    self.order, self.num_conditioning = nnx.Variable(order), kept

  def split(self, x):
    """Return the conditioning and the transformed features."""
    check_batch("x", x, self.order.shape)
    x = x[:, self.order[...]]
    return x[:, : self.num_conditioning], x[:, self.num_conditioning :]

  def join(self, x1, x2):
    """Undo `split`."""
    return jnp.concatenate([x1, x2], axis=1)[:, jnp.argsort(self.order[...])]
