"""The ordinary convolution, zeros on all sides, as a flow layer: for training without determinants.

Nothing of its matrix is triangular, so the log-determinant and the inverse of images of D entries
take a dense (D, D) matrix. Energy-based flows (https://arxiv.org/abs/2305.15267) need both once,
after training; see `log_normalizer`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from normjax.flows._invertible_conv import InvertibleConv, check_kernel_size
from normjax.flows._tap_conv import tap_conv

_LARGEST = 3072  # D, that of 32 x 32 x 3: a matrix of 38 MB in float32


class PaddedConv(InvertibleConv):
  """Convolves images padded with zeros on all sides.

  z[i, j] = sum_{a, b} x[i + a - m, j + b - m] K[a, b] + bias,  x and z (b, h, w, c), x = 0 outside,
  K (k, k, c, c), m = (k - 1) / 2;  log_det (b,) = log|det T|, T (D, D) the matrix of the map of
  images of D = h w c entries

  `forward_varying` costs a convolution. The determinant costs D^3, and so does `inverse`: once in
  a call, however many images there are. Nothing keeps T from being singular. The layer is the
  identity at first (a Dirac kernel) if `kernel_init` draws zeros.

  Args:
    features: c, the channels.
    kernel_size: k, odd.
    use_bias: learn a bias (c,).
    kernel_init: draws what is added to the Dirac kernel.
    bias_init: draws the bias.
    param_dtype: dtype of the parameters.
    rngs: the stream `params`.

  Raises:
    ValueError: if a size is not a positive int or `kernel_size` is even; and where T is needed, if
      D is above 3072.

  Reference:
    Chao, Sun, Hsu, Kira, Lee, "Training Energy-Based Normalizing Flow with Score-Matching
    Objectives", 2023, arXiv 2305.15267.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from normjax import flows
    >>> conv = flows.PaddedConv(2, rngs=nnx.Rngs(0))
    >>> x = jnp.arange(8.0).reshape(1, 2, 2, 2)
    >>> bool((conv.forward(x)[0] == x).all()), conv.forward(x)[1]
    (True, Array([0.], dtype=float32))
  """

  def __init__(
    self,
    features: int,
    *,
    kernel_size: int = 3,
    use_bias: bool = True,
    kernel_init: Callable[..., Array] = nnx.initializers.zeros,
    bias_init: Callable[..., Array] = nnx.initializers.zeros,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    super().__init__(features, use_bias=use_bias, param_dtype=param_dtype)
    k = check_kernel_size(kernel_size, odd=True)
    kernel = kernel_init(rngs.params(), (k, k, features, features), param_dtype)
    self.kernel = nnx.Param(kernel.at[k // 2, k // 2].add(jnp.eye(features, dtype=param_dtype)))
    if self.bias is not None:
      self.bias[...] = bias_init(rngs.params(), (features,), param_dtype)

  def matrix(self, height: int, width: int, dtype=jnp.float32) -> Float[Array, "D D"]:
    """Return T, rows for inputs and columns for outputs, entries of images in row-major order."""
    size = height * width * self.features
    if size > _LARGEST:
      raise ValueError(
        f"images must have at most {_LARGEST} entries for a dense determinant or inverse, got "
        f"{height} x {width} x {self.features} = {size}"
      )
    units = jnp.eye(size, dtype=dtype).reshape(size, height, width, self.features)
    return self._convolve(units).reshape(size, size)

  def _convolve(self, x):
    side = self.kernel.shape[0] // 2
    padded = jnp.pad(x, ((0, 0), (side, side), (side, side), (0, 0)))
    # In products, whose gradients inside a scan are fast on CPU too.
    return tap_conv(padded, self.kernel[...].astype(x.dtype), precision=jax.lax.Precision.HIGHEST)

  def _deconvolve(self, z):
    batch, height, width, _ = z.shape
    matrix = self.matrix(height, width, z.dtype)
    return jnp.linalg.solve(matrix.T, z.reshape(batch, -1).T).T.reshape(z.shape)

  def _log_det(self, height, width, dtype):
    return jnp.linalg.slogdet(self.matrix(height, width, dtype))[1]
