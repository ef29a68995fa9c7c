"""Basic Region Normalization, RN-B (https://arxiv.org/abs/1911.10375): the mask is given.

Each region has its own gain 1 + scale and bias. As in the authors' code both biases are added at
every pixel; `masked_bias` keeps each in its region, as the paper has it. Larger masks are resized
by `nearest_resize`.
"""

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Shaped

from normjax.norms._affine import apply_affine, check_features, make_param, matching, value_or
from normjax.norms._arguments import as_images, check_epsilon, floating_dtype, statistics_dtype
from normjax.norms._nearest_resize import nearest_resize
from normjax.norms._region_normalize import (
  StatsAxes,
  as_region,
  check_stats_axes,
  region_normalize,
)


def region_norm(
  x: Float[Array, "b h w c"],
  mask: Shaped[Array, "b h2 w2 ..."],
  foreground_scale: ArrayLike | None = None,
  foreground_bias: ArrayLike | None = None,
  background_scale: ArrayLike | None = None,
  background_bias: ArrayLike | None = None,
  *,
  epsilon: float = 1e-5,
  stats_axes: StatsAxes = "batch",
  masked_bias: bool = False,
  soft: bool = False,
  axis_name: str | None = None,
  dtype: DTypeLike | None = None,
) -> Float[Array, "b h w c"]:
  """Normalize the hole of an image and its surroundings apart, then scale and shift each.

  y = r * (m * (1 + s_f) + (1 - m) * (1 + s_b)) + b_f + b_b with m = resize(mask) and r =
  `region_normalize`(x, m), with x (b, h, w, c) -> y of the same shape, mask (b, h2, w2, 1) and the
  parameters (c,).

  Args:
    x: floating input.
    mask: 1 or True in the foreground (the hole), of any size; a last axis of size 1 may be absent.
      Every pixel is normalized, and no gradient passes through the mask.
    foreground_scale: s_f (c,), or with 4 axes of sizes that are 1 or those of x. None: 0.
    foreground_bias: b_f, likewise.
    background_scale: s_b, likewise.
    background_bias: b_b, likewise.
    epsilon: added to the variance of a region, times all positions over its own.
    stats_axes: "batch" for statistics over batch and space, "instance" for those of each example.
    masked_bias: whether each bias is added in its region only.
    soft: whether masks between 0 and 1 are meant, as weights.
    axis_name: mapped axis over which a batch is sharded, for stats_axes="batch".
    dtype: dtype of the output; the default is that of x.

  Returns:
    The normalized array.

  Raises:
    ValueError: as `region_normalize`, and if a parameter has another shape.

  Reference:
    Yu et al., "Region Normalization for Image Inpainting", 2020, arXiv 1911.10375.

  Example:
    >>> x, hole = jnp.array([1.0, 3.0, 10.0, 30.0]), jnp.array([True, True, False, False])
    >>> y = region_norm(x.reshape(1, 4, 1, 1), hole.reshape(1, 4, 1), jnp.ones(1))
    >>> print(y.ravel().round(3))
    [-2.  2. -1.  1.]
  """
  x = as_images(x)
  wide = statistics_dtype(x)
  m = _fitted(mask, x.shape, wide, soft)
  r = region_normalize(
    x,
    m,
    epsilon=epsilon,
    stats_axes=stats_axes,
    soft=True,  # checked
    axis_name=axis_name,
    dtype=wide,
  )

  def region(weight, scale, bias):
    gain = None if scale is None else 1 + jnp.asarray(scale)
    if masked_bias:
      return weight * apply_affine(r, gain, bias, (3,), wide)
    return apply_affine(weight * r, gain, bias, (3,), wide)

  y = region(m, foreground_scale, foreground_bias)
  y = y + region(1 - m, background_scale, background_bias)
  return y.astype(floating_dtype(x.dtype if dtype is None else dtype, "dtype"))


def _fitted(
  mask: ArrayLike, shape: tuple[int, ...], dtype: jnp.dtype, soft: bool
) -> Float[Array, "b h w 1"]:
  mask = mask if jnp.ndim(mask) == 4 else jnp.asarray(mask)[..., None]
  if jnp.ndim(mask) != 4 or jnp.shape(mask)[0] not in (1, shape[0]) or jnp.shape(mask)[-1] != 1:
    raise ValueError(
      f"mask must have shape ({shape[0]}, h, w) or ({shape[0]}, h, w, 1), or batch size 1, got "
      f"{jnp.shape(mask)}"
    )
  return as_region(nearest_resize(mask, shape[1:3]), shape, dtype, soft, "mask")


class RegionNorm(nnx.Module):
  """Normalizes the hole of an image and its surroundings apart, then scales and shifts each.

  y = r * (m * (1 + s_f) + (1 - m) * (1 + s_b)) + b_f + b_b: `region_norm` with the parameters
  `foreground_scale`, `foreground_bias`, `background_scale` and `background_bias`, all
  (num_features,). There are no running statistics: training and evaluation are the same.

  Args:
    num_features: channels of the input.
    epsilon: added to the variance of a region, times all positions over its own.
    stats_axes: "batch" for statistics over batch and space, "instance" for those of each example.
    masked_bias: whether each bias is added in its region only.
    soft: whether masks between 0 and 1 are meant, as weights.
    use_scale: whether there are scales (zeros at first: the gain is 1 + scale).
    use_bias: whether there are biases (zeros at first).
    dtype: dtype of the output; the default is that of the input.
    param_dtype: dtype of the parameters.
    scale_init: initializer of the scales.
    bias_init: initializer of the biases.
    axis_name: mapped axis over which the batch is sharded (`jax.shard_map`).
    rngs: source of the parameters' keys.

  Raises:
    ValueError: as `region_norm`, and if the input does not have `num_features` channels.

  Reference:
    Yu et al., "Region Normalization for Image Inpainting", 2020, arXiv 1911.10375.

  Example:
    >>> norm = RegionNorm(4, rngs=nnx.Rngs(0))
    >>> norm(jnp.ones((2, 8, 8, 4)), jnp.zeros((2, 32, 32, 1), bool)).shape
    (2, 8, 8, 4)
  """

  def __init__(
    self,
    num_features: int,
    *,
    epsilon: float = 1e-5,
    stats_axes: StatsAxes = "batch",
    masked_bias: bool = False,
    soft: bool = False,
    use_scale: bool = True,
    use_bias: bool = True,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    scale_init: Initializer = nnx.initializers.zeros,
    bias_init: Initializer = nnx.initializers.zeros,
    axis_name: str | None = None,
    rngs: nnx.Rngs,
  ):
    matching(num_features, -1)
    check_epsilon(epsilon)
    check_stats_axes(stats_axes, axis_name)
    self.num_features, self.epsilon, self.dtype = num_features, epsilon, dtype
    self.stats_axes: StatsAxes = stats_axes
    self.masked_bias, self.soft, self.axis_name = masked_bias, soft, axis_name
    scale = lambda: make_param(use_scale, scale_init, num_features, param_dtype, rngs)
    bias = lambda: make_param(use_bias, bias_init, num_features, param_dtype, rngs)
    self.foreground_scale, self.foreground_bias = scale(), bias()
    self.background_scale, self.background_bias = scale(), bias()

  def __call__(
    self,
    x: Float[Array, "b h w c"],
    mask: Shaped[Array, "b h2 w2 ..."],
    *,
    foreground_scale: ArrayLike | None = None,
    foreground_bias: ArrayLike | None = None,
    background_scale: ArrayLike | None = None,
    background_bias: ArrayLike | None = None,
  ) -> Float[Array, "b h w c"]:
    """Normalize `x` in and around the mask; values that are given stand in for the parameters."""
    check_features(x, self.num_features, -1)
    return region_norm(
      x,
      mask,
      value_or(foreground_scale, self.foreground_scale),
      value_or(foreground_bias, self.foreground_bias),
      value_or(background_scale, self.background_scale),
      value_or(background_bias, self.background_bias),
      epsilon=self.epsilon,
      stats_axes=self.stats_axes,
      masked_bias=self.masked_bias,
      soft=self.soft,
      axis_name=self.axis_name,
      dtype=self.dtype,
    )
