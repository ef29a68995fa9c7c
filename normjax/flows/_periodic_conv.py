"""Periodic convolution: images that wrap around are convolved and deconvolved in Fourier space.

Paper: "Emerging Convolutions for Generative Normalizing Flows", arXiv 1901.11137. The authors' code
shifts the transform of a flipped kernel by one pixel, which fits 3 x 3 kernels; here the kernel is
placed such that its transform has the right phase, for every odd size. Forward is a convolution of
the padded image, which rounds less than two transforms.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from normjax.flows._invertible_conv import SMALL, InvertibleConv, check_kernel_size

_HIGHEST = jax.lax.Precision.HIGHEST


class PeriodicConv(InvertibleConv):
  """Convolves images whose opposite borders touch.

  z[i, j] = sum_{a, b} x[(i + a - m) mod h, (j + b - m) mod w] K[a, b] + bias,  x and z
  (b, h, w, c), K (k, k, c, c), m = (k - 1) / 2;  log_det (b,) = sum_{u, v} log|det F[u, v]|,
  F[u, v] = sum_{a, b} K[a, b] exp(2 pi i (u (a - m) / h + v (b - m) / w))  (c, c).

  `inverse` divides by F per frequency. Nothing keeps F from being nearly singular somewhere while
  log_det is finite: watch `min_abs_det` and `reconstruction_error`.

  Args:
    features: c, the channels.
    kernel_size: k, odd and at most h and w.
    use_bias: learn a bias (c,), at first zero.
    kernel_init: draws the kernel, to whose centre a random orthogonal matrix is added.
    param_dtype: dtype of the parameters.
    rngs: the stream `params`.

  Raises:
    ValueError: if a size is not a positive int or `kernel_size` is even.

  Reference:
    Hoogeboom, van den Berg, Welling, "Emerging Convolutions for Generative Normalizing Flows",
    2019, arXiv 1901.11137.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from normjax import flows
    >>> conv = flows.PeriodicConv(2, rngs=nnx.Rngs(0))
    >>> x = jnp.arange(18.0).reshape(1, 3, 3, 2)
    >>> bool(abs(conv.forward(jnp.roll(x, 1, axis=2))[0]
    ...          - jnp.roll(conv.forward(x)[0], 1, axis=2)).max() < 1e-4)
    True
  """

  def __init__(
    self,
    features: int,
    *,
    kernel_size: int = 3,
    use_bias: bool = True,
    kernel_init: Callable[..., Array] = SMALL,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    super().__init__(features, use_bias=use_bias, param_dtype=param_dtype)
    k = check_kernel_size(kernel_size, odd=True)
    self.min_side = k
    kernel = kernel_init(rngs.params(), (k, k, features, features), param_dtype)
    centre = nnx.initializers.orthogonal()(rngs.params(), (features, features), param_dtype)
    self.kernel = nnx.Param(kernel.at[k // 2, k // 2].add(centre))

  def min_abs_det(self, height: int, width: int) -> Float[Array, ""]:
    """Return the smallest |det F[u, v]| over all frequencies of images of this size."""
    return jnp.min(jnp.exp(self._log_abs_dets(height, width, jnp.float32)))

  def _spectrum(self, height, width, dtype):
    """Return F (h, w // 2 + 1, c, c): the other frequencies are conjugates of these."""
    kernel = self.kernel[...].astype(jnp.promote_types(dtype, jnp.float32))
    k = kernel.shape[0]
    if min(height, width) < k:
      raise ValueError(f"height and width must be at least {k} (kernel_size), got {height, width}")
    # The tap of displacement a - m goes to m - a, since a transform has exp(-2 pi i ...).
    grid = jnp.pad(kernel[::-1, ::-1], ((0, height - k), (0, width - k), (0, 0), (0, 0)))
    return jnp.fft.rfft2(jnp.roll(grid, (-(k // 2), -(k // 2)), axis=(0, 1)), axes=(0, 1))

  def _log_abs_dets(self, height, width, dtype):
    return jnp.linalg.slogdet(self._spectrum(height, width, dtype))[1]

  def _convolve(self, x):
    m = self.kernel.shape[0] // 2
    padded = jnp.pad(x, ((0, 0), (m, m), (m, m), (0, 0)), mode="wrap")
    return jax.lax.conv_general_dilated(
      padded, self.kernel[...].astype(x.dtype), (1, 1), "VALID",
      dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=_HIGHEST,
    )  # fmt: skip

  def _deconvolve(self, z):
    height, width = z.shape[1:3]
    spectrum = self._spectrum(height, width, z.dtype)
    # Row vectors per frequency: x F = z, so F^T x^T = z^T, the batch as columns.
    columns = jnp.fft.rfft2(z, axes=(1, 2)).transpose(1, 2, 3, 0)
    solved = jnp.linalg.solve(spectrum.swapaxes(2, 3), columns)
    return jnp.fft.irfft2(solved.transpose(3, 0, 1, 2), s=(height, width), axes=(1, 2))

  def _log_det(self, height, width, dtype):
    column = jnp.arange(width // 2 + 1)
    own_conjugate = (column == 0) | (2 * column == width)
    weight = jnp.where(own_conjugate, 1, 2).astype(dtype).reshape(1, -1)
    return jnp.sum(weight * self._log_abs_dets(height, width, dtype))
