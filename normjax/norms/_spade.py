"""SPADE, spatially adaptive denormalization (https://arxiv.org/abs/1903.07291).

Scale and bias of each pixel come from the layout there, which an ordinary norm would wash away: of
a layout of one label it leaves zeros. The scale is 1 + gamma, as in the authors' code; the paper
writes gamma. Layouts are resized by `nearest_resize`, as there. The official generators draw the
kernels from a Xavier normal of gain 0.02; here they are flax's.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Shaped

from normjax.norms._arguments import as_images, entries, statistics_dtype
from normjax.norms._convolution import Convolution, Weights, default_kernel_init, same_convolution
from normjax.norms._fade import Denormalization, Norm, fade
from normjax.norms._nearest_resize import nearest_resize
from normjax.norms._running import Moments


def spade(
  x: Float[Array, "b h w c"],
  segmap: Shaped[Array, "b h2 w2 *k"],
  shared: Weights,
  scale: Weights,
  bias: Weights,
  state: Moments | None = None,
  *,
  num_classes: int | None = None,
  norm: Norm = "instance",
  use_running_average: bool = False,
  epsilon: float = 1e-5,
  decay: float = 0.9,
  mask: Bool[Array, "..."] | None = None,
  axis_name: str | None = None,
  dtype: DTypeLike | None = None,
) -> tuple[Float[Array, "b h w c"], Moments | None]:
  """Normalize without parameters, then scale and shift each pixel as a layout says.

  a = relu(conv_shared(resize(segmap))) and y = norm(x) * (1 + conv_scale(a)) + conv_bias(a), with x
  (b, h, w, c) -> y of the same shape, segmap (b, h2, w2, k), a (b, h, w, m), and convolutions with
  zero padding: `fade` of the features a.

  Args:
    x: floating input.
    segmap: layout of k floating or boolean channels, of any size; or integer labels (b, h2, w2).
    shared: `(kernel, bias)` of shapes (s, s, k, m) and (m,) with odd s; the bias may be None.
    scale: likewise, (s, s, m, c) and (c,), for the gain.
    bias: likewise, for the shift.
    state: running `(mean, var)` of norm="batch", each (c,); None: zeros and ones.
    num_classes: k, where segmap holds labels. Under `jit` a label outside [0, k) is no class at
      all; elsewhere it is an error.
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
    ValueError: as `fade`, and if segmap has another batch or shape, or holds labels without
      num_classes or outside of it.

  Reference:
    Park et al., "Semantic Image Synthesis with Spatially-Adaptive Normalization", 2019,
    arXiv 1903.07291.

  Example:
    >>> x, labels = jnp.array([-1.0, 1.0]).reshape(1, 2, 1, 1), jnp.array([[[0]]])
    >>> one = (jnp.ones((1, 1, 1, 1)), None)
    >>> y, _ = spade(x, labels, one, one, one, num_classes=1)
    >>> [round(float(v), 3) for v in y.ravel()]
    [-1.0, 3.0]
  """
  x = as_images(x, "x")
  layout = _layout(segmap, num_classes, x.shape, statistics_dtype(x))
  hidden = jax.nn.relu(same_convolution(layout, shared, "shared"))
  return fade(
    x,
    hidden,
    scale,
    bias,
    state,
    norm=norm,
    use_running_average=use_running_average,
    epsilon=epsilon,
    decay=decay,
    mask=mask,
    axis_name=axis_name,
    dtype=dtype,
  )


def _layout(
  segmap: ArrayLike, num_classes: int | None, shape: tuple[int, ...], dtype: jnp.dtype
) -> Float[Array, "b h w k"]:
  """Returns the layout at the size of x; labels are resized before they become channels."""
  segmap = jnp.asarray(segmap)
  labels = jnp.issubdtype(segmap.dtype, jnp.integer)
  if segmap.ndim != (3 if labels else 4) or segmap.shape[0] != shape[0] or 0 in segmap.shape:
    raise ValueError(
      f"segmap must be integer labels ({shape[0]}, h, w), or floating or boolean channels "
      f"({shape[0]}, h, w, k), got {segmap.dtype} of shape {segmap.shape}"
    )
  if not labels:
    return nearest_resize(segmap, shape[1:3]).astype(dtype)
  if num_classes is None or num_classes < 1:
    raise ValueError(f"num_classes must be positive if segmap holds labels, got {num_classes}")
  values = entries(segmap)
  if values is not None and (values.min() < 0 or values.max() >= num_classes):
    raise ValueError(
      f"segmap must hold labels in [0, {num_classes}), got some from {values.min()} to "
      f"{values.max()}"
    )
  resized = nearest_resize(segmap[..., None], shape[1:3])[..., 0]
  return jax.nn.one_hot(resized, num_classes, dtype=dtype)


class SPADE(Denormalization):
  """Normalizes without parameters, then scales and shifts each pixel as a layout says.

  a = relu(conv_shared(resize(segmap))) and y = norm(x) * (1 + conv_scale(a)) + conv_bias(a):
  `spade` with the parameters `shared_conv`, `scale_conv` and `bias_conv` (each a `kernel` and a
  `bias`), and with norm="batch" the running statistics `mean` and `var`.

  Args:
    num_features: channels of x.
    num_classes: channels of the layout, or the number of its labels.
    hidden_features: channels between layout and modulation.
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
    ValueError: as `spade`, and if the input does not have `num_features` channels.

  Reference:
    Park et al., "Semantic Image Synthesis with Spatially-Adaptive Normalization", 2019,
    arXiv 1903.07291.

  Example:
    >>> layer = SPADE(4, 10, hidden_features=8, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((2, 8, 8, 4)), jnp.zeros((2, 32, 32), int)).shape
    (2, 8, 8, 4)
  """

  def __init__(
    self,
    num_features: int,
    num_classes: int,
    *,
    hidden_features: int = 128,
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
    self.num_classes = num_classes
    convolution = functools.partial(
      Convolution,
      kernel_size=kernel_size,
      kernel_init=kernel_init,
      bias_init=bias_init,
      param_dtype=param_dtype,
      rngs=rngs,
    )
    self.shared_conv = convolution(num_classes, hidden_features)
    self.scale_conv = convolution(hidden_features, num_features)
    self.bias_conv = convolution(hidden_features, num_features)

  def __call__(
    self,
    x: Float[Array, "b h w c"],
    segmap: Shaped[Array, "b h2 w2 *k"],
    use_running_average: bool | None = None,
    *,
    mask: Bool[Array, "..."] | None = None,
  ) -> Float[Array, "b h w c"]:
    """Normalize `x` and modulate it as the layout says."""
    arguments = self._arguments(x, use_running_average)
    y, state = spade(
      x,
      segmap,
      self.shared_conv.weights(),
      self.scale_conv.weights(),
      self.bias_conv.weights(),
      num_classes=self.num_classes,
      mask=mask,
      **arguments,
    )
    if state is not None:
      self._keep(state, arguments["use_running_average"])
    return y
