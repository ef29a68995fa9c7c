"""Learnable Region Normalization, RN-L (https://arxiv.org/abs/1911.10375).

The layer finds the region itself, as the pixels that it holds important, and predicts one scale
and one bias per pixel from their importance. The gain is 1 + scale, as in the authors' code. The
threshold has no gradient, so that the first convolution learns through scale and bias only.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from normjax.norms._affine import check_features, matching
from normjax.norms._arguments import as_images, check_epsilon, floating_dtype, statistics_dtype
from normjax.norms._convolution import Convolution, Weights, same_convolution
from normjax.norms._region_normalize import StatsAxes, check_stats_axes, region_normalize


def region_importance(
  x: Float[Array, "b h w c"], kernel: Float[Array, "k k 2 1"]
) -> Float[Array, "b h w 1"]:
  """Rate how important each pixel is, by the mean and the maximum of its channels around it.

  sigmoid(conv([mean_c(x), max_c(x)])), with x (b, h, w, c) -> (b, h, w, 1), zero padding, no bias.

  Args:
    x: floating input.
    kernel: of the convolution, (3, 3, 2, 1) or (7, 7, 2, 1); first mean, then maximum.

  Returns:
    Importances in (0, 1), float32 or wider.

  Raises:
    ValueError: if x is not floating (b, h, w, c), or the kernel has another shape.

  Reference:
    Yu et al., "Region Normalization for Image Inpainting", 2020, arXiv 1911.10375.

  Example:
    >>> a = region_importance(jnp.ones((1, 1, 1, 4)), jnp.ones((3, 3, 2, 1)))
    >>> round(a.item(), 3)
    0.881
  """
  x = as_images(x)
  _check_kernel(kernel, "kernel")
  x = x.astype(statistics_dtype(x))
  seen = jnp.concatenate([jnp.mean(x, -1, keepdims=True), jnp.max(x, -1, keepdims=True)], -1)
  return jax.nn.sigmoid(same_convolution(seen, (kernel, None), "kernel", 1))


def learnable_region_norm(
  x: Float[Array, "b h w c"],
  importance: Float[Array, "k k 2 1"],
  scale: Weights | None = None,
  bias: Weights | None = None,
  *,
  threshold: float = 0.8,
  epsilon: float = 1e-5,
  stats_axes: StatsAxes = "batch",
  axis_name: str | None = None,
  dtype: DTypeLike | None = None,
) -> Float[Array, "b h w c"]:
  """Normalize important pixels and the others apart, then scale and shift by their importance.

  y = r * (1 + conv_scale(a)) + conv_bias(a) with the importance a = `region_importance`(x) and r =
  `region_normalize`(x, a >= threshold), with x (b, h, w, c) -> y of the same shape.

  Args:
    x: floating input.
    importance: kernel of `region_importance`.
    scale: `(kernel, bias)` of shapes (k, k, 1, 1) and (1,), k 3 or 7; the bias may be None. None:
      no scale.
    bias: likewise, for the shift.
    threshold: importance from which a pixel is in the foreground, in (0, 1).
    epsilon: added to the variance of a region, times all positions over its own.
    stats_axes: "batch" for statistics over batch and space, "instance" for those of each example.
    axis_name: mapped axis over which a batch is sharded, for stats_axes="batch".
    dtype: dtype of the output; the default is that of x.

  Returns:
    The normalized array.

  Raises:
    ValueError: as `region_normalize` and `region_importance`, and if the threshold is outside of
      (0, 1), or scale or bias have other shapes.

  Reference:
    Yu et al., "Region Normalization for Image Inpainting", 2020, arXiv 1911.10375.

  Example:
    >>> x = jnp.array([-3.0, -1.0, 1.0, 5.0]).reshape(1, 2, 2, 1)
    >>> center = jnp.zeros((3, 3, 2, 1)).at[1, 1].set(1.0)
    >>> print(learnable_region_norm(x, center).ravel().round(3))
    [-1.  1. -1.  1.]
  """
  x = as_images(x)
  _check_threshold(threshold)
  a = region_importance(x, importance)
  y = region_normalize(
    x, a >= threshold, epsilon=epsilon, stats_axes=stats_axes, axis_name=axis_name, dtype=a.dtype
  )
  if scale is not None:
    _check_kernel(scale[0], "scale")
    y = y * (1 + same_convolution(a, scale, "scale", 1))
  if bias is not None:
    _check_kernel(bias[0], "bias")
    y = y + same_convolution(a, bias, "bias", 1)
  return y.astype(floating_dtype(x.dtype if dtype is None else dtype, "dtype"))


def _check_threshold(threshold: float) -> None:
  if not 0 < threshold < 1:
    raise ValueError(f"threshold must be in (0, 1), got {threshold}")


def _check_kernel(kernel: ArrayLike, name: str) -> None:
  if jnp.shape(kernel)[:2] not in ((3, 3), (7, 7)):
    raise ValueError(f"{name} must have a kernel of size 3 or 7, got shape {jnp.shape(kernel)}")


def uniform_fan_in(fan_in: int) -> Initializer:
  """Returns the initializer of torch's convolutions, uniform within 1 / sqrt(fan_in)."""
  edge = fan_in**-0.5

  def init(key, shape, dtype=None, out_sharding=None):
    dtype = jnp.float32 if dtype is None else dtype
    return jax.random.uniform(key, shape, dtype, -edge, edge, out_sharding=out_sharding)

  return init


class LearnableRegionNorm(nnx.Module):
  """Normalizes important pixels and the others apart, then scales and shifts by their importance.

  y = r * (1 + conv_scale(a)) + conv_bias(a): `learnable_region_norm` with the parameters
  `importance_conv` (a `kernel`), `scale_conv` and `bias_conv` (each a `kernel` and a `bias`). There
  are no running statistics: training and evaluation are the same.

  Args:
    num_features: channels of the input.
    threshold: importance from which a pixel is in the foreground, in (0, 1).
    kernel_size: size of the convolutions, 3 or 7.
    epsilon: added to the variance of a region, times all positions over its own.
    stats_axes: "batch" for statistics over batch and space, "instance" for those of each example.
    use_scale: whether there is a scale.
    use_bias: whether there is a bias.
    dtype: dtype of the output; the default is that of the input.
    param_dtype: dtype of the parameters.
    kernel_init: initializer of kernels; the default is torch's, uniform within 1 / sqrt(fan_in).
    bias_init: initializer of the convolutions' biases, likewise.
    axis_name: mapped axis over which the batch is sharded (`jax.shard_map`).
    rngs: source of the parameters' keys.

  Raises:
    ValueError: as `learnable_region_norm`, and if the input does not have `num_features` channels.

  Reference:
    Yu et al., "Region Normalization for Image Inpainting", 2020, arXiv 1911.10375.

  Example:
    >>> norm = LearnableRegionNorm(4, rngs=nnx.Rngs(0))
    >>> norm(jnp.ones((2, 8, 8, 4))).shape
    (2, 8, 8, 4)
  """

  def __init__(
    self,
    num_features: int,
    *,
    threshold: float = 0.8,
    kernel_size: int = 7,
    epsilon: float = 1e-5,
    stats_axes: StatsAxes = "batch",
    use_scale: bool = True,
    use_bias: bool = True,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    kernel_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    axis_name: str | None = None,
    rngs: nnx.Rngs,
  ):
    matching(num_features, -1)
    check_epsilon(epsilon)
    check_stats_axes(stats_axes, axis_name)
    _check_threshold(threshold)
    if kernel_size not in (3, 7):
      raise ValueError(f"kernel_size must be 3 or 7, got {kernel_size}")
    self.num_features, self.threshold, self.epsilon = num_features, threshold, epsilon
    self.stats_axes: StatsAxes = stats_axes
    self.axis_name, self.dtype = axis_name, dtype

    def convolution(in_features: int, use_bias: bool) -> Convolution:
      drawn = uniform_fan_in(kernel_size**2 * in_features)
      return Convolution(
        in_features,
        1,
        kernel_size,
        use_bias=use_bias,
        param_dtype=param_dtype,
        kernel_init=kernel_init or drawn,
        bias_init=bias_init or drawn,
        rngs=rngs,
      )

    self.importance_conv = convolution(2, False)
    self.scale_conv = convolution(1, True) if use_scale else nnx.data(None)
    self.bias_conv = convolution(1, True) if use_bias else nnx.data(None)

  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Normalize `x`."""
    check_features(x, self.num_features, -1)
    return learnable_region_norm(
      x,
      self.importance_conv.kernel[...],
      None if self.scale_conv is None else self.scale_conv.weights(),
      None if self.bias_conv is None else self.bias_conv.weights(),
      threshold=self.threshold,
      epsilon=self.epsilon,
      stats_axes=self.stats_axes,
      axis_name=self.axis_name,
      dtype=self.dtype,
    )
