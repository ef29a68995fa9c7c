"""Convolutions as matrix products over the taps, whose gradients are fast inside a scan on CPU.

XLA:CPU has no tuned kernel for the weight gradient of a convolution inside a loop: 260 ms instead
of 19 ms measured for eight layers from 64 to 4 channels on (32, 14, 14) pixels. Written as below,
all derivatives are products too, under every transformation of JAX. The side with fewer channels
is the one that is repeated for each tap, so the products are no larger than a wide network's
activations.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from normjax.blocks import dot_general


def tap_conv(
  x: Float[Array, "b h w i"],
  kernel: Float[Array, "k l i o"],
  *,
  precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "b h2 w2 o"]:
  """Convolve images with a kernel, without padding, strides or dilation.

  y[b, r, s] = sum_(k, l) x[b, r + k, s + l] kernel[k, l];  h2 = h - k + 1, w2 = w - l + 1
  """
  rows, columns, fan_in, features = kernel.shape
  height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
  taps = [(r, s) for r in range(rows) for s in range(columns)]
  shifted = lambda x, tap: x[:, tap[0] : tap[0] + height, tap[1] : tap[1] + width]
  product = functools.partial(_product, precision=precision)
  if len(taps) == 1:
    return product(x, kernel[0, 0])
  if fan_in <= features:
    stacked = jnp.concatenate([shifted(x, tap) for tap in taps], axis=-1)
    return product(jax.lax.optimization_barrier(stacked), kernel.reshape(-1, features))
  stacked = product(x, kernel.transpose(2, 0, 1, 3).reshape(fan_in, -1))
  # Split, since the transpose of a split is one concatenation; that of slices is a sum of paddings.
  parts = jnp.split(jax.lax.optimization_barrier(stacked), len(taps), axis=-1)
  return functools.reduce(jnp.add, (shifted(y, tap) for y, tap in zip(parts, taps, strict=True)))


def _product(x, kernel, precision):
  return dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), precision=precision)
