"""A transform with parameters of its own for every feature."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from normjax.flows._bijector import Bijector
from normjax.flows._checks import check_batch, check_shape
from normjax.flows._transforms import Transform


class Elementwise(Bijector):
  """Transforms every feature by trained numbers: a transform without a network.

  z_i = transform(x_i; raw_i),  x (B, *shape), raw (*shape, P);  log_det (B,) = sum_i log|dz_i/dx_i|

  Args:
    transform: what happens to each entry; P is its `num_parameters`.
    shape: of an event.
    param_dtype: dtype of the parameters.
    rngs: not needed, since parameters start at zero; every module takes it.

  Raises:
    ValueError: if `shape` is not a tuple or list of positive ints.

  Example:
    >>> from normjax import flows
    >>> layer = Elementwise(flows.RQSTransform(4, identity_init=True), (3,))
    >>> bool(jnp.allclose(layer.forward(jnp.full((1, 3), 0.5))[0], 0.5))
    True
  """

  def __init__(
    self,
    transform: Transform,
    shape: tuple[int, ...],
    *,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs | None = None,
  ):
    del rngs
    self.transform, self.shape = transform, check_shape(shape)
    self.raw = nnx.Param(jnp.zeros((*self.shape, transform.num_parameters), param_dtype))

  def forward(self, x, cond=None):
    """Return `(z, log_det)`."""
    check_batch("x", x, self.shape)
    z, log_slope = self.transform.forward(x, self._raw(x))
    return z, jnp.sum(log_slope, axis=tuple(range(1, x.ndim)))

  def inverse(self, z, cond=None):
    """Return `(x, log_det)`."""
    check_batch("z", z, self.shape)
    x, log_slope = self.transform.inverse(z, self._raw(z))
    return x, jnp.sum(log_slope, axis=tuple(range(1, z.ndim)))

  def _raw(self, x):
    return jnp.broadcast_to(self.raw[...][None], (*x.shape, self.raw.shape[-1]))
