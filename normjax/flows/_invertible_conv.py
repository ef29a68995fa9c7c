"""What invertible convolutions share: images in, a bias, one log-determinant for a whole batch."""

import abc

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from normjax.flows._bijector import Bijector
from normjax.flows._checks import check_batch
from normjax.flows._reversible import log_det_zeros
from normjax.flows._widened import widened

# Of all taps but the one that starts as an invertible matrix.
SMALL = nnx.initializers.normal(0.02)


class InvertibleConv(Bijector):
  """Maps images by a linear map with a kernel, and adds a bias.

  z = convolve(x) + bias, x and z (b, h, w, c); log_det depends on h, w and the kernel only. Both
  directions run in float32 or wider; the output has the dtype of the input.
  """

  min_side = 1

  def __init__(self, features: int, *, use_bias: bool, param_dtype: DTypeLike):
    if not isinstance(features, int) or features < 1:
      raise ValueError(f"features must be an int of at least 1, got {features!r}")
    self.features = features
    self.bias = nnx.Param(jnp.zeros((features,), param_dtype)) if use_bias else None

  @abc.abstractmethod
  def _convolve(self, x) -> jax.Array:
    """Return the linear map of x, in its dtype."""

  @abc.abstractmethod
  def _deconvolve(self, z) -> jax.Array:
    """Undo `_convolve`."""

  @abc.abstractmethod
  def _log_det(self, height, width, dtype) -> jax.Array:
    """Return the scalar log|det| of the map of images of this size."""

  @property
  def constant_logdet(self):
    """True: that of a linear map."""
    return True

  def forward(self, x, cond=None):
    """Return `(convolution of x + bias, log_det)`."""
    return self._affine(x), self._log_dets(x)

  def inverse(self, z, cond=None):
    """Return `(x, log_det)`: the images of which `forward` makes `z`."""
    return self._undone(z), -self._log_dets(z)

  def forward_varying(self, x, cond=None):
    """Return `(convolution of x + bias, 0)`, without the determinant."""
    return self._affine(x), log_det_zeros(x)

  def inverse_varying(self, z, cond=None):
    """Return `(x, 0)` likewise."""
    return self._undone(z), log_det_zeros(z)

  def _affine(self, x):
    wide = self._widen("x", x)
    return (self._convolve(wide) + self._shift(wide.dtype)).astype(x.dtype)

  def _undone(self, z):
    wide = self._widen("z", z)
    return self._deconvolve(wide - self._shift(wide.dtype)).astype(z.dtype)

  def reconstruction_error(self, x: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    """Return max |inverse(forward(x)) - x| per image, which a fine log_det says nothing about."""
    again, _ = self.inverse(self.forward(x)[0])
    return jnp.max(jnp.abs(again - x), axis=(1, 2, 3))

  def _shift(self, dtype):
    bias = jnp.zeros((self.features,)) if self.bias is None else self.bias[...]
    return bias.astype(dtype).reshape(1, 1, 1, -1)

  def _log_dets(self, x):
    b, height, width, _ = x.shape
    return jnp.broadcast_to(self._log_det(height, width, widened(x).dtype), (b,))

  def _widen(self, name, x) -> jax.Array:
    side = self.min_side
    if x.ndim != 4 or x.shape[-1] != self.features or x.shape[0] < 1 or min(x.shape[1:3]) < side:
      raise ValueError(
        f"{name} must have shape (b, h, w, {self.features}) with b >= 1 and h, w >= {side}, "
        f"got {x.shape}"
      )
    check_batch(name, x)
    return widened(x)


def check_kernel_size(kernel_size: int, odd: bool = False) -> int:
  """Return `kernel_size`, or raise unless it is an int of at least 1, and odd if it must be."""
  wrong = not isinstance(kernel_size, int) or kernel_size < 1
  if wrong or (odd and kernel_size % 2 == 0):
    kind = "an odd int" if odd else "an int"
    raise ValueError(f"kernel_size must be {kind} of at least 1, got {kernel_size!r}")
  return kernel_size


def check_invertible(smallest, name: str) -> None:
  """Raise if the smallest number that a kernel's tap divides by is zero or nearly so."""
  if smallest < 1e-12:
    raise ValueError(
      f"{name} must be invertible: its smallest factor must be at least 1e-12, got {smallest:.3g}"
    )
