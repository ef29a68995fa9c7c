"""Convolutions that predict the parameters of a norm: same size, zero padding, wide numbers.

They run in the dtype of the statistics. `flax.nnx.Conv` promotes with its parameters instead, and
rounds to 16 bits where it is told the dtype of the input.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from normjax.norms._affine import new_param

# As flax's convolutions draw it.
default_kernel_init = nnx.initializers.lecun_normal()

Weights = tuple[ArrayLike, ArrayLike | None]


def same_convolution(
  x: Float[Array, "b h w i"], weights: Weights, name: str, out_features: int | None = None
) -> Float[Array, "b h w o"]:
  """Convolve with `(kernel (k, k, i, o), bias (o,) or None)` in the dtype of x, or raise."""
  kernel = jnp.asarray(weights[0])
  leaving = kernel.shape[-1] if out_features is None else out_features
  if kernel.ndim != 4 or kernel.shape[2:] != (x.shape[-1], leaving):
    out = "any" if out_features is None else out_features
    raise ValueError(
      f"{name} must have a kernel (k, k, {x.shape[-1]}, {out}), got shape {kernel.shape}"
    )
  for side in kernel.shape[:2]:
    check_kernel_size(side, f"{name} kernel")
  y = jax.lax.conv_general_dilated(
    x, kernel.astype(x.dtype), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  if weights[1] is None:
    return y
  bias = jnp.asarray(weights[1])
  if bias.shape != kernel.shape[-1:]:
    raise ValueError(f"{name} must have a bias {kernel.shape[-1:]}, got shape {bias.shape}")
  return y + bias.astype(x.dtype).reshape(1, 1, 1, -1)


def check_kernel_size(size: int, name: str = "kernel_size") -> None:
  """Raise unless a kernel has a center."""
  if size < 1 or size % 2 == 0:
    raise ValueError(f"{name} must be odd, so that it has a center, got {size}")


class Convolution(nnx.Module):
  """Holds `kernel` (k, k, in, out) and `bias` (out,), for functions that take them as a pair.

  Args:
    in_features: channels that enter.
    out_features: channels that leave.
    kernel_size: k, odd.
    use_bias: whether there is a `bias`.
    param_dtype: dtype of the parameters.
    kernel_init: initializer of `kernel`.
    bias_init: initializer of `bias`.
    rngs: source of the parameters' keys.
  """

  def __init__(
    self,
    in_features: int,
    out_features: int,
    kernel_size: int,
    *,
    use_bias: bool = True,
    param_dtype: DTypeLike,
    kernel_init: Initializer,
    bias_init: Initializer = nnx.initializers.zeros,
    rngs: nnx.Rngs,
  ):
    check_kernel_size(kernel_size)
    shape = (kernel_size, kernel_size, in_features, out_features)
    self.kernel = new_param(kernel_init, shape, param_dtype, rngs)
    self.bias = new_param(bias_init, shape[-1:], param_dtype, rngs) if use_bias else nnx.data(None)

  def weights(self) -> Weights:
    """Returns the pair of both."""
    return self.kernel[...], None if self.bias is None else self.bias[...]
