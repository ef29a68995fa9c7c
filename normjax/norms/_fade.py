"""FADE, feature-adaptive denormalization of TSIT (https://arxiv.org/abs/2007.12072).

Scale and bias of each pixel come from features of another stream at the same size. The scale is
1 + gamma, as in the authors' code and that of SPADE; the papers write gamma. Our `decay` is the
share of the old running value, so that the code's 0.1 is 0.9 here.
"""

import functools
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from normjax.norms._affine import check_features, matching
from normjax.norms._arguments import (
  as_images,
  check_decay,
  check_epsilon,
  floating_dtype,
  statistics_dtype,
)
from normjax.norms._batch_norm import batch_norm
from normjax.norms._convolution import Convolution, Weights, default_kernel_init, same_convolution
from normjax.norms._instance_norm import instance_norm
from normjax.norms._running import Moments, RunningMoments

Norm = Literal["instance", "batch"]


def fade(
  x: Float[Array, "b h w c"],
  features: Float[Array, "b h w k"],
  scale: Weights,
  bias: Weights,
  state: Moments | None = None,
  *,
  norm: Norm = "instance",
  use_running_average: bool = False,
  epsilon: float = 1e-5,
  decay: float = 0.9,
  mask: Bool[Array, "..."] | None = None,
  axis_name: str | None = None,
  dtype: DTypeLike | None = None,
) -> tuple[Float[Array, "b h w c"], Moments | None]:
  """Normalize without parameters, then scale and shift each pixel as features of its place say.

  y = norm(x) * (1 + conv_scale(features)) + conv_bias(features), with x (b, h, w, c) -> y of the
  same shape, features (b, h, w, k), and convolutions of size 1 with zero padding.

  Args:
    x: floating input.
    features: what decides scale and bias, at the size of x.
    scale: `(kernel, bias)` of shapes (s, s, k, c) and (c,) with odd s; the bias may be None.
    bias: likewise, for the shift.
    state: running `(mean, var)` of norm="batch", each (c,); None: zeros and ones.
    norm: "instance" (statistics of each example) or "batch" (as `batch_norm`).
    use_running_average: evaluate norm="batch" with the running values, which stay as they are.
    epsilon: added to the variance, which is the biased one.
    decay: share of the old running value in the new one.
    mask: True where a position of x enters the statistics; (b, h, w), or with a last axis 1.
    axis_name: mapped axis over which a batch is sharded, for norm="batch".
    dtype: dtype of the output; the default is that of x.

  Returns:
    The modulated array, and the new state (None for norm="instance").

  Raises:
    ValueError: as `batch_norm`, and if x is not (b, h, w, c), features have another size, norm is
      unknown, a kernel has an even size or does not fit, or a state comes with norm="instance".

  Reference:
    Jiang et al., "TSIT: A Simple and Versatile Framework for Image-to-Image Translation", 2020,
    arXiv 2007.12072.

  Example:
    >>> x, features = jnp.array([-1.0, 1.0]).reshape(1, 2, 1, 1), jnp.ones((1, 2, 1, 1))
    >>> kernel = jnp.ones((1, 1, 1, 1))
    >>> print(fade(x, features, (kernel, None), (3 * kernel, None))[0].ravel().round(3))
    [1. 5.]
  """
  x = as_images(x, "x")
  features = as_images(features, "features")
  if features.shape[:3] != x.shape[:3]:
    raise ValueError(
      f"features must have the batch and the size {x.shape[:3]} of x, got shape {features.shape}"
    )
  wide = statistics_dtype(x)
  y, state = _normalized(
    x.astype(wide), state, norm, use_running_average, epsilon, decay, mask, axis_name
  )
  features = features.astype(wide)
  gain = same_convolution(features, scale, "scale", x.shape[-1])
  y = y * (1 + gain) + same_convolution(features, bias, "bias", x.shape[-1])
  return y.astype(floating_dtype(x.dtype if dtype is None else dtype, "dtype")), state


def check_norm(norm: str) -> None:
  """Raise unless `norm` names a norm without parameters."""
  if norm not in ("instance", "batch"):
    raise ValueError(f"norm must be 'instance' or 'batch', got {norm!r}")


def _normalized(
  x: Float[Array, "b h w c"],
  state: Moments | None,
  norm: Norm,
  use_running_average: bool,
  epsilon: float,
  decay: float,
  mask: Bool[Array, "..."] | None,
  axis_name: str | None,
) -> tuple[Float[Array, "b h w c"], Moments | None]:
  check_norm(norm)
  if norm == "batch":
    return batch_norm(
      x,
      state=state,
      use_running_average=use_running_average,
      epsilon=epsilon,
      decay=decay,
      mask=mask,
      axis_name=axis_name,
    )
  if state is not None:
    raise ValueError("state must be None with norm='instance', which keeps no statistics")
  return instance_norm(x, epsilon=epsilon, mask=mask), None


class Denormalization(RunningMoments):
  """Keeps what SPADE and FADE share: the norm without parameters, its options and its state."""

  def __init__(
    self,
    num_features: int,
    *,
    norm: Norm,
    use_running_average: bool | None,
    epsilon: float,
    decay: float,
    axis_name: str | None,
    dtype: DTypeLike | None,
  ):
    matching(num_features, -1)
    check_norm(norm)
    check_epsilon(epsilon)
    check_decay(decay)
    self.num_features, self.use_running_average = num_features, use_running_average
    self.norm: Norm = norm
    self.epsilon, self.decay, self.axis_name, self.dtype = epsilon, decay, axis_name, dtype
    if norm == "batch":
      self._begin(num_features)

  def _arguments(self, x: ArrayLike, use_running_average: bool | None) -> dict[str, Any]:
    """Returns the arguments of the function that the constructor and the mode decide."""
    check_features(jnp.asarray(x), self.num_features, -1)
    evaluates = self._evaluates(use_running_average) if self.norm == "batch" else False
    return dict(
      state=self._moments() if self.norm == "batch" else None,
      norm=self.norm,
      use_running_average=evaluates,
      epsilon=self.epsilon,
      decay=self.decay,
      axis_name=self.axis_name,
      dtype=self.dtype,
    )


class FADE(Denormalization):
  """Normalizes without parameters, then scales and shifts each pixel as features of its place say.

  y = norm(x) * (1 + conv_scale(features)) + conv_bias(features): `fade` with the parameters
  `scale_conv` and `bias_conv` (each a `kernel` and a `bias`), and with norm="batch" the running
  statistics `mean` and `var`.

  Args:
    num_features: channels of x.
    condition_features: channels of the features that modulate.
    norm: "instance" or "batch".
    kernel_size: size of the convolutions, odd.
    use_running_average: whether norm="batch" evaluates with the running values; a call, `train()`,
      `eval()` and `nnx.view` may set it later.
    epsilon: added to the variance.
    decay: share of the old running value in the new one.
    dtype: dtype of the output; the default is that of the input.
    param_dtype: dtype of the parameters.
    kernel_init: initializer of the kernels.
    bias_init: initializer of the convolutions' biases.
    axis_name: mapped axis over which the batch is sharded (`jax.shard_map`).
    rngs: source of the parameters' keys.

  Raises:
    ValueError: as `fade`, and if the input does not have `num_features` channels.

  Reference:
    Jiang et al., "TSIT: A Simple and Versatile Framework for Image-to-Image Translation", 2020,
    arXiv 2007.12072.

  Example:
    >>> layer = FADE(4, 6, norm="batch", rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((2, 8, 8, 4)), jnp.ones((2, 8, 8, 6))).shape
    (2, 8, 8, 4)
  """

  def __init__(
    self,
    num_features: int,
    condition_features: int,
    *,
    norm: Norm = "instance",
    kernel_size: int = 3,
    use_running_average: bool | None = False,
    epsilon: float = 1e-5,
    decay: float = 0.9,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    kernel_init: Initializer = default_kernel_init,
    bias_init: Initializer = nnx.initializers.zeros,
    axis_name: str | None = None,
    rngs: nnx.Rngs,
  ):
    super().__init__(
      num_features,
      norm=norm,
      use_running_average=use_running_average,
      epsilon=epsilon,
      decay=decay,
      axis_name=axis_name,
      dtype=dtype,
    )
    convolution = functools.partial(
      Convolution,
      kernel_size=kernel_size,
      kernel_init=kernel_init,
      bias_init=bias_init,
      param_dtype=param_dtype,
      rngs=rngs,
    )
    self.scale_conv = convolution(condition_features, num_features)
    self.bias_conv = convolution(condition_features, num_features)

  def __call__(
    self,
    x: Float[Array, "b h w c"],
    features: Float[Array, "b h w k"],
    use_running_average: bool | None = None,
    *,
    mask: Bool[Array, "..."] | None = None,
  ) -> Float[Array, "b h w c"]:
    """Normalize `x` and modulate it as `features` say."""
    arguments = self._arguments(x, use_running_average)
    scale, bias = self.scale_conv.weights(), self.bias_conv.weights()
    y, state = fade(x, features, scale, bias, mask=mask, **arguments)
    if state is not None:
      self._keep(state, arguments["use_running_average"])
    return y
