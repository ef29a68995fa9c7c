"""Emerging convolutions: two masked convolutions with opposite orders see a full neighbourhood.

Paper: "Emerging Convolutions for Generative Normalizing Flows", arXiv 1901.11137. The authors' code
masks k x k kernels; here only the taps that the masks leave are kept, and the padding is on their
side. Like there, one bias is added after the second convolution.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array

from normjax.flows._causal_conv import Order, check_dilation, ordered_conv, ordered_conv_inverse
from normjax.flows._checks import is_concrete
from normjax.flows._invertible_conv import (
  SMALL,
  InvertibleConv,
  check_invertible,
  check_kernel_size,
)

MASKS = ("quadrant", "raster")


class EmergingConv(InvertibleConv):
  """Convolves images by two masked kernels in turn, the one looking down, the other up.

  z = conv(conv(x, K1), K2) + bias,  x and z (b, h, w, c);  log_det (b,) =
  h w (sum_o log|T1[o, o]| + sum_o log|T2[o, o]|),  T1 and T2 the triangular taps of a pixel itself.

  With m = (k - 1) / 2, `mask` says what of a k x k kernel is kept:
    "quadrant": K1 at rows and columns 0..m below and to the right of the pixel, K2 above and to the
      left; together a k x k neighbourhood. `inverse` takes 2 (h + w - 1) steps.
    "raster": all pixels later (K1) or earlier (K2) in reading order; 2 (w + (h - 1)(m + 1)) steps.

  `kernel1` is (m+1, m+1, c, c) or (m+1, k, c, c) in the orientation of `kernel2`, that is rotated
  by 180 degrees, with its T upper triangular (in, out) where that of `kernel2` is lower triangular.
  Entries that do not enter start as zeros, have gradient zero, and stay zeros.

  Args:
    features: c, the channels.
    kernel_size: k, odd.
    mask: which taps there are.
    dilation: distance between taps.
    use_bias: learn a bias (c,), at first zero.
    kernel_init: draws both kernels, to whose T the identity is added.
    param_dtype: dtype of the parameters.
    rngs: the stream `params`.

  Raises:
    ValueError: if a size is not a positive int, `kernel_size` is even, a name is unknown, or a T is
      singular at first.

  Reference:
    Hoogeboom, van den Berg, Welling, "Emerging Convolutions for Generative Normalizing Flows",
    2019, arXiv 1901.11137.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from normjax import flows
    >>> conv = flows.EmergingConv(2, rngs=nnx.Rngs(0))
    >>> conv.kernel1.shape, bool(conv.reconstruction_error(jnp.ones((1, 3, 3, 2)))[0] < 1e-5)
    ((2, 2, 2, 2), True)
  """

  def __init__(
    self,
    features: int,
    *,
    kernel_size: int = 3,
    mask: str = "quadrant",
    dilation: int = 1,
    use_bias: bool = True,
    kernel_init: Callable[..., Array] = SMALL,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    super().__init__(features, use_bias=use_bias, param_dtype=param_dtype)
    m = (check_kernel_size(kernel_size, odd=True) - 1) // 2
    if mask not in MASKS:
      raise ValueError(f"mask must be one of {MASKS}, got {mask!r}")
    right = m if mask == "raster" else 0
    self.order = Order((), right=right, dilation=check_dilation(dilation))
    shape = (m + 1, m + 1 + right, features, features)
    identity = jnp.zeros(shape, param_dtype).at[-1, m].set(jnp.eye(features, dtype=param_dtype))
    draw = lambda: kernel_init(rngs.params(), shape, param_dtype)
    self.kernel1 = nnx.Param(self._masked(draw() + identity, jnp.triu))
    self.kernel2 = nnx.Param(self._masked(draw() + identity, jnp.tril))
    if is_concrete(self.kernel1[...]):
      self.check()

  def effective_kernels(self, dtype: DTypeLike | None = None) -> tuple[Array, Array]:
    """Return both kernels as they are applied; with "quadrant", as `causal_conv` takes them.

    The corner of the first is "bottom_right", that of the second "top_left".
    """
    cast = lambda kernel: kernel[...] if dtype is None else kernel[...].astype(dtype)
    first = self._masked(cast(self.kernel1), jnp.triu)
    return first, self._masked(cast(self.kernel2), jnp.tril)

  def check(self) -> None:
    """Raise a ValueError if a T is singular; looks at values, so not for traced code."""
    for name, kernel in (("kernel1", self.kernel1), ("kernel2", self.kernel2)):
      smallest = jnp.min(jnp.abs(jnp.diag(self.order.own(kernel[...]))))
      check_invertible(float(smallest), f"the tap of {name} at the pixel itself")

  def _masked(self, kernel, triangle):
    own = kernel.shape[1] - 1 - self.order.right
    kernel = kernel.at[-1, own].set(triangle(kernel[-1, own]))
    return kernel.at[-1, own + 1 :].set(0)

  def _convolve(self, x):
    first, second = self.effective_kernels(x.dtype)
    return ordered_conv(ordered_conv(x, first, self.order.opposite()), second, self.order)

  def _deconvolve(self, z):
    first, second = self.effective_kernels(z.dtype)
    middle = ordered_conv_inverse(z, second, self.order)
    return ordered_conv_inverse(middle, first, self.order.opposite())

  def _log_det(self, height, width, dtype):
    taps = [self.order.own(kernel[...]).astype(dtype) for kernel in (self.kernel1, self.kernel2)]
    return height * width * sum(jnp.sum(jnp.log(jnp.abs(jnp.diag(tap)))) for tap in taps)
