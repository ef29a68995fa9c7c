"""CInC Flow's convolution: one k x k kernel, invertible if and only if one tap of it is.

Paper: "CInC Flow: Characterizable Invertible 3x3 Convolution", arXiv 2107.01358. The authors' code
keeps a (2k-1)^2 kernel and slices the k^2 taps that matter; here there are no others. Its condition
speaks of diagonal entries, which is that of the triangular tap; the general one is det T != 0. It
never keeps the diagonal from zero except through log_det: "unit" (FInC Flow, arXiv 2301.09266) and
"exp" do.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from normjax.flows._causal_conv import (
  Order,
  check_dilation,
  corner_flips,
  ordered_conv,
  ordered_conv_inverse,
)
from normjax.flows._checks import is_concrete
from normjax.flows._invertible_conv import (
  SMALL,
  InvertibleConv,
  check_invertible,
  check_kernel_size,
)

TAPS = ("triangular", "full", "unit", "exp")


class CInCConv(InvertibleConv):
  """Convolves images that are padded on one corner, which is invertible.

  z = causal_conv(x, K) + bias,  x and z (b, h, w, c), K (k, k, c, c);  log_det (b,) =
  h w log|det T|,  T = K[k-1, k-1] the tap of the pixel itself. `inverse` takes h + w - 1 steps.

  `tap` says which T there are, with entries T[in, out]:
    "triangular": T[c, o] = 0 for c < o, as in the paper; log_det = h w sum_o log|T[o, o]|. Zeros of
      the diagonal have probability 0, and log_det is the only barrier in front of them.
    "full": any matrix, at first a random orthogonal one.
    "unit": triangular with ones on the diagonal; log_det = 0.
    "exp": triangular with diagonal sign * exp(log_scale), `sign` (c,) fixed and `log_scale` (c,)
      learned; never singular.

  Entries of `kernel` that do not enter start as zeros, have gradient zero, and stay zeros.

  Args:
    features: c, the channels.
    kernel_size: k.
    tap: the kind of T.
    corner: the padded one: "top_left", "top_right", "bottom_left" or "bottom_right".
    dilation: distance between taps.
    use_bias: learn a bias (c,), at first zero.
    kernel_init: draws the kernel, to whose T the identity is added unless `tap` says otherwise.
    param_dtype: dtype of the parameters.
    rngs: the stream `params`.

  Raises:
    ValueError: if a size is not a positive int, a name is unknown, or T is singular at first.

  Reference:
    Nagar, Dufraisse, Varma, "CInC Flow: Characterizable Invertible 3x3 Convolution", 2021,
    arXiv 2107.01358.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from normjax import flows
    >>> conv = flows.CInCConv(2, tap="unit", rngs=nnx.Rngs(0))
    >>> x = jnp.ones((1, 3, 3, 2))
    >>> bool(conv.reconstruction_error(x)[0] < 1e-5), float(conv.forward(x)[1][0])
    (True, 0.0)
  """

  def __init__(
    self,
    features: int,
    *,
    kernel_size: int = 3,
    tap: str = "triangular",
    corner: str = "top_left",
    dilation: int = 1,
    use_bias: bool = True,
    kernel_init: Callable[..., Array] = SMALL,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    super().__init__(features, use_bias=use_bias, param_dtype=param_dtype)
    k = check_kernel_size(kernel_size)
    if tap not in TAPS:
      raise ValueError(f"tap must be one of {TAPS}, got {tap!r}")
    self.tap, self.order = tap, Order(corner_flips(corner), dilation=check_dilation(dilation))
    kernel = kernel_init(rngs.params(), (k, k, features, features), param_dtype)
    if tap == "full":
      own = nnx.initializers.orthogonal()(rngs.params(), (features, features), param_dtype)
    elif tap == "triangular":
      own = jnp.tril(kernel[-1, -1]) + jnp.eye(features, dtype=param_dtype)
    else:
      own = jnp.tril(kernel[-1, -1], -1)
    self.kernel = nnx.Param(kernel.at[-1, -1].set(own))
    self.log_scale = nnx.Param(jnp.zeros((features,), param_dtype)) if tap == "exp" else None
    self.sign = nnx.Variable(jnp.ones((features,), param_dtype)) if tap == "exp" else None
    if is_concrete(own):
      self.check()

  def effective_kernel(self, dtype: DTypeLike | None = None) -> Float[Array, "k k c c"]:
    """Return the kernel that is applied, as `causal_conv` takes it."""
    kernel = self.kernel[...] if dtype is None else self.kernel[...].astype(dtype)
    own = kernel[-1, -1]
    if self.tap == "triangular":
      own = jnp.tril(own)
    elif self.tap == "unit":
      own = jnp.tril(own, -1) + jnp.eye(self.features, dtype=own.dtype)
    elif self.log_scale is not None and self.sign is not None:
      diagonal = self.sign[...].astype(own.dtype) * jnp.exp(self.log_scale[...].astype(own.dtype))
      own = jnp.tril(own, -1) + jnp.diag(diagonal)
    return kernel.at[-1, -1].set(own)

  def check(self) -> None:
    """Raise a ValueError if T is singular; looks at values, so not for traced code."""
    own = self.effective_kernel()[-1, -1]
    if self.tap == "full":
      singular = jnp.linalg.svd(own, compute_uv=False)
      rounding = self.features * jnp.finfo(own.dtype).eps * jnp.max(singular)
      smallest = jnp.min(jnp.where(singular > rounding, singular, 0))
    else:
      smallest = jnp.min(jnp.abs(jnp.diag(own)))
    check_invertible(float(smallest), "kernel[-1, -1]")

  def _convolve(self, x):
    return ordered_conv(x, self.effective_kernel(x.dtype), self.order)

  def _deconvolve(self, z):
    return ordered_conv_inverse(z, self.effective_kernel(z.dtype), self.order)

  def _log_det(self, height, width, dtype) -> jax.Array:
    own = self.kernel[-1, -1].astype(dtype)
    if self.tap == "full":
      per_pixel = jnp.linalg.slogdet(own)[1]
    elif self.tap == "triangular":
      per_pixel = jnp.sum(jnp.log(jnp.abs(jnp.diag(own))))
    else:
      per_pixel = 0.0 if self.log_scale is None else jnp.sum(self.log_scale[...].astype(dtype))
    return jnp.asarray(height * width * per_pixel, dtype)
