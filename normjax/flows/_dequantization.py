"""Quantized data and continuous densities: noise, its inverse, and bits per dimension.

A flow has a density, images have levels. With q in {0, ..., N - 1} and u uniform on [0, 1),

  x = low + (q + u) / levels,   E_u[log p(x)] - D log(levels) <= log P(q),

`levels` counts the bins per unit of x: it is what makes bits per dimension comparable between pixel
conventions. Publications use

  convention        levels   low     num_levels (N)   x in
  unit interval     256       0      256              [0, 1)
  Glow              256      -0.5    256              [-0.5, 0.5)
  TarFlow           128      -1      256              [-1, 1)
  Jet               127.5    -1      256              [-1, 1.008)
  17-level digits   17 / 2   -1      17               [-1, 1)

Jet's code maps q / 255 to [-1, 1] and adds u / 127.5: the same as above.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from normjax._sizes import check_sizes
from normjax.flows._checks import check_shape, is_concrete
from normjax.flows._widened import widened


def dequantize(
  image: Num[Array, "*batch"],
  noise: Float[Array, "*batch"],
  *,
  levels: float = 256.0,
  low: float = 0.0,
  integral: bool = False,
) -> Float[Array, "*batch"]:
  """Make quantized data continuous with uniform noise.

  x = low + (image + noise) / levels, all of one shape

  Args:
    image: levels 0, 1, ..., of an integer dtype.
    noise: uniform on [0, 1), `image`'s shape.
    levels: bins per unit of x.
    low: where level 0 starts.
    integral: accept a floating `image` of whole numbers. Without tracing they are verified.

  Returns:
    x in the dtype of `noise`, float32 at least.

  Raises:
    ValueError: if `image` is not an integer array (nor flagged integral and whole), shapes differ,
      `noise` is not floating, or `levels` is not above 0.

  Reference:
    Theis, van den Oord, Bethge, "A note on the evaluation of generative models", 2015,
    arXiv 1511.01844.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> image = jnp.array([[0, 128, 255]], jnp.uint8)
    >>> flows.dequantize(image, jnp.full((1, 3), 0.5), levels=128.0, low=-1.0)
    Array([[-0.99609375,  0.00390625,  0.99609375]], dtype=float32)
  """
  image, noise = jnp.asarray(image), jnp.asarray(noise)
  _check_levels(levels)
  if not jnp.issubdtype(image.dtype, jnp.integer):
    if not (integral and jnp.issubdtype(image.dtype, jnp.floating)):
      raise ValueError(
        f"image must have an integer dtype, got {image.dtype}: pass integral=True for floats that "
        "are whole numbers"
      )
    if is_concrete(image) and not np.all(np.mod(image, 1) == 0):
      raise ValueError("image must hold whole numbers under integral=True, got fractions")
  if not jnp.issubdtype(noise.dtype, jnp.floating):
    raise ValueError(f"noise must be floating, got {noise.dtype}")
  if noise.shape != image.shape:
    raise ValueError(f"noise must have image's shape {image.shape}, got {noise.shape}")
  dtype = jnp.promote_types(noise.dtype, jnp.float32)
  return low + (image.astype(dtype) + noise.astype(dtype)) / levels


def quantize(
  x: Float[Array, "*batch"], *, num_levels: int = 256, levels: float = 256.0, low: float = 0.0
) -> Int[Array, "*batch"]:
  """Undo `dequantize`: return the level whose bin holds `x`, or the nearest one.

  q = clip(floor((x - low) * levels), 0, num_levels - 1)

  The round trip is exact unless rounding carries a number over an edge of its bin: at 256 levels in
  float32, noise within about 1e-4 of 0 or 1.

  Args:
    x: continuous data, for example samples of a flow.
    num_levels: how many levels there are, the 256 of a byte by default.
    levels: bins per unit of x.
    low: where level 0 starts.

  Returns:
    Levels in `x`'s shape: uint8 if `num_levels` allows, else int32.

  Raises:
    ValueError: if `x` is not floating, `num_levels` is below 1, or `levels` is not above 0.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> flows.quantize(jnp.array([-1.2, 0.0, 1.2]), num_levels=17, levels=8.5, low=-1.0)
    Array([ 0,  8, 16], dtype=uint8)
  """
  x = jnp.asarray(x)
  _check_levels(levels)
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(f"x must be floating, got {x.dtype}")
  check_sizes(num_levels=num_levels)
  bins = jnp.floor((widened(x) - low) * levels)
  return jnp.clip(bins, 0, num_levels - 1).astype(jnp.uint8 if num_levels <= 256 else jnp.int32)


def bits_per_dim(
  log_prob: Float[Array, "b"], shape: Sequence[int], levels: float
) -> Float[Array, "b"]:
  """Turn log-densities of dequantized data into bits per dimension, example by example.

  bpd = -(log_prob - D log(levels)) / (D log 2),  D = product of `shape`

  Args:
    log_prob: log-densities in nats of x = low + (q + u) / levels.
    shape: the event shape, without the batch.
    levels: bins per unit of x, the `levels` of `dequantize`.

  Returns:
    Bits per dimension (b,); average them over true examples and over draws of the noise.

  Raises:
    ValueError: if `log_prob` is not a floating (b,) with b >= 1, `shape` is not a sequence of
      positive ints, or `levels` is not above 0.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> flows.bits_per_dim(jnp.zeros(1), (4, 4, 3), 256.0)  # uniform on the unit cube
    Array([8.], dtype=float32)
  """
  log_prob = jnp.asarray(log_prob)
  _check_levels(levels)
  if log_prob.ndim != 1 or not log_prob.size:
    raise ValueError(f"log_prob must have shape (b,) with b >= 1, got {log_prob.shape}")
  if not jnp.issubdtype(log_prob.dtype, jnp.floating):
    raise ValueError(f"log_prob must be floating, got {log_prob.dtype}")
  dims = math.prod(check_shape(shape))
  return (dims * math.log(levels) - log_prob) / (dims * math.log(2))


def _check_levels(levels: float) -> None:
  if not levels > 0:
    raise ValueError(f"levels must be above 0 (bins per unit of x), got {levels}")
