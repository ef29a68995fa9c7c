"""A fixed permutation of features: what the learned linear layers of Glow took the place of."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import ArrayLike

from normjax.flows._bijector import Bijector
from normjax.flows._checks import check_batch, is_concrete
from normjax.flows._reversible import log_det_zeros


class Permutation(Bijector):
  """Reorders the entries of one axis.

  z[..., i, ...] = x[..., order[i], ...] on `axis`,  x and z (B, ...);  log_det (B,) = 0

  `Permutation.reverse(features)` and `Permutation.random(features, rngs=rngs)` make the two that
  flows use. The order is saved with the model and never trained.

  Args:
    order: a permutation of 0, ..., n - 1, in a list or an integer array.
    axis: which axis, not that of the batch.

  Raises:
    ValueError: if `order` is no permutation or `axis` is 0.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> flows.Permutation([2, 0, 1]).forward(jnp.array([[10.0, 20.0, 30.0]]))[0]
    Array([[30., 10., 20.]], dtype=float32)
  """

  def __init__(self, order: ArrayLike | Sequence[int], *, axis: int = -1):
    order = jnp.asarray(order)
    integers = jnp.issubdtype(order.dtype, jnp.integer) and order.ndim == 1 and order.size
    if not integers or (is_concrete(order) and (np.sort(order) != np.arange(order.size)).any()):
      raise ValueError(f"order must be a permutation of 0, ..., n - 1, got {order}")
    if axis == 0:
      raise ValueError("axis must not be 0, the axis of the batch, got 0")
    self.order, self.axis = nnx.Variable(order), axis

  @classmethod
  def reverse(cls, features: int, *, axis: int = -1) -> "Permutation":
    """Return the permutation that turns the order of `features` entries around."""
    return cls(jnp.arange(features)[::-1], axis=axis)

  @classmethod
  def random(cls, features: int, *, axis: int = -1, rngs: nnx.Rngs) -> "Permutation":
    """Return a uniformly random permutation of `features` entries."""
    return cls(jax.random.permutation(rngs.params(), features), axis=axis)

  @property
  def constant_logdet(self):
    """True: entries only move."""
    return True

  def forward(self, x, cond=None):
    """Return `(z, log_det)`, with log_det zero."""
    return self._gather("x", x, self.order[...])

  def inverse(self, z, cond=None):
    """Put the entries back; return `(x, log_det)`."""
    return self._gather("z", z, jnp.argsort(self.order[...]))

  def _gather(self, name, x, order):
    check_batch(name, x)
    axis = self.axis if self.axis > 0 else x.ndim + self.axis
    if not 0 < axis < x.ndim or x.shape[axis] != order.shape[0]:
      raise ValueError(
        f"{name} must have shape (b, ...) with {order.shape[0]} entries on axis {self.axis}, got "
        f"{x.shape}"
      )
    return jnp.take(x, order, axis, unique_indices=True, mode="clip"), log_det_zeros(x)
