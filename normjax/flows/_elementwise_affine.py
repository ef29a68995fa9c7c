"""A fixed shift and scale of every entry: pixel conventions, standardized data."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike

from normjax.flows._bijector import Bijector
from normjax.flows._checks import check_batch, is_concrete


class ElementwiseAffine(Bijector):
  """Standardizes data with a constant location and scale.

  z = (x - loc) / scale,  x and z (B, *event);  log_det (B,) = -sum_i log|scale_i|

  `loc` and `scale` are the data's, as in a distribution: `inverse` is loc + scale * z. They are not
  trained.

  Args:
    loc: a scalar, or an array or list of the event's shape; finite.
    scale: likewise, and not zero.

  Raises:
    ValueError: if `loc` and `scale` are arrays of different shapes, an entry is not finite, or one
      of `scale` is zero.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> to_unit = flows.ElementwiseAffine(loc=-1.0, scale=2.0)  # [-1, 1] to [0, 1]
    >>> to_unit.forward(jnp.array([[-1.0, 0.0, 1.0]]))[0]
    Array([[0. , 0.5, 1. ]], dtype=float32)
  """

  def __init__(self, loc: ArrayLike | Sequence, scale: ArrayLike | Sequence):
    loc, scale = jnp.asarray(loc, float), jnp.asarray(scale, float)
    if loc.ndim and scale.ndim and loc.shape != scale.shape:
      raise ValueError(
        f"loc and scale must be scalars or of one shape, got shapes {loc.shape} and {scale.shape}"
      )
    if is_concrete(loc) and not np.isfinite(loc).all():
      raise ValueError(f"loc must be finite, got {loc}")
    if is_concrete(scale) and not (np.isfinite(scale).all() and np.all(scale != 0)):
      raise ValueError(f"scale must be finite and not zero, got {scale}")
    self.loc, self.scale = nnx.Variable(loc), nnx.Variable(scale)

  def _constants(self, name: str, x) -> tuple[Array, Array]:
    loc, scale = self.loc[...], self.scale[...]
    check_batch(name, x, (loc.shape or scale.shape) or None)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    full = lambda v: jnp.broadcast_to(v.astype(dtype), x.shape[1:])[None]
    return full(loc), full(scale)

  @property
  def constant_logdet(self):
    """True: that of a scaling."""
    return True

  def forward(self, x, cond=None):
    """Return `((x - loc) / scale, log_det)`."""
    loc, scale = self._constants("x", x)
    log_det = -jnp.sum(jnp.log(jnp.abs(scale)))
    return ((x - loc) / scale).astype(x.dtype), jnp.broadcast_to(log_det, x.shape[:1])

  def inverse(self, z, cond=None):
    """Return `(loc + scale * z, log_det)`."""
    loc, scale = self._constants("z", z)
    log_det = jnp.sum(jnp.log(jnp.abs(scale)))
    return (loc + scale * z).astype(z.dtype), jnp.broadcast_to(log_det, z.shape[:1])
