"""Group normalization ("Group Normalization", https://arxiv.org/abs/1803.08494).

What differs from flax: the variance comes from deviations; epsilon is 1e-5, as in the authors' code
and in torch; the mask is one of positions; `group_size` alone is enough, without
`num_groups=None`.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from normjax.norms._affine import apply_affine, check_features, make_param, matching, value_or
from normjax.norms._arguments import (
  as_position_mask,
  check_epsilon,
  floating_dtype,
  prepare,
  statistics_dtype,
)
from normjax.norms._standardize import can_standardize, standardize
from normjax.norms._statistics import Reduction, centered, finite_or_zero

_NUM_GROUPS = 32


def group_norm(
  x: Float[Array, "batch *space c"],
  scale: ArrayLike | None = None,
  bias: ArrayLike | None = None,
  *,
  num_groups: int | None = None,
  group_size: int | None = None,
  epsilon: float = 1e-5,
  mask: Bool[Array, "..."] | None = None,
  axis_name: str | None = None,
  dtype: DTypeLike | None = None,
) -> Float[Array, "batch *space c"]:
  """Normalize groups of channels of each example to mean 0 and variance 1, then scale and shift.

  y = (x - mean) / sqrt(var + epsilon) * scale + bias, with x (batch, ..., c) -> y of that shape,
  and mean and var (batch, groups) over all positions and the c / groups neighbouring channels of a
  group. One group is LayerNorm over positions and channels, c groups are InstanceNorm.

  Args:
    x: floating input, examples first, channels last.
    scale: gain (c,), or with the rank of x and sizes that are 1 or those of x. None: no gain.
    bias: shift, shaped as `scale` may be. None: no shift.
    num_groups: number of groups; 32 if neither this nor `group_size` is given.
    group_size: channels of a group, instead of `num_groups`.
    epsilon: added to the variance. 0 is allowed; a constant group then gives NaN.
    mask: True where a position enters the statistics; (batch, ...), or (batch, ..., 1), of sizes 1
      or those of x. Every position is normalized. An example without any True has mean and
      variance 0.
    axis_name: mapped axis over which the positions of an example are sharded (`jax.shard_map`).
    dtype: dtype of the output; the default is that of x.

  Returns:
    The normalized array.

  Raises:
    ValueError: if x is not floating or has one axis only, the groups do not divide the channels or
      are given twice, epsilon < 0, or scale, bias or mask have another shape.

  Reference:
    Wu and He, "Group Normalization", 2018, arXiv 1803.08494.

  Example:
    >>> group_norm(jnp.array([[1.0, 3.0, 10.0, 30.0]]), num_groups=2).round(3).tolist()
    [[-1.0, 1.0, -1.0, 1.0]]
  """
  x, _ = prepare(x, -1, epsilon)
  check_examples(x)
  groups = _resolve(x.shape[-1], num_groups, group_size)
  mask = as_position_mask(mask, x.shape)
  positions = tuple(range(1, x.ndim - 1))
  reduction = Reduction(positions, x.shape, mask, axis_name, x.shape[-1] // groups)
  return normalize_channels(x, scale, bias, reduction, epsilon=epsilon, dtype=dtype)


def normalize_channels(
  x: Float[Array, "batch *space c"],
  scale: ArrayLike | None,
  bias: ArrayLike | None,
  reduction: Reduction,
  *,
  epsilon: float,
  dtype: DTypeLike | None,
) -> Float[Array, "batch *space c"]:
  """Returns `(x - mean) / sqrt(var + epsilon) * scale + bias`, channels last."""
  dtype = x.dtype if dtype is None else floating_dtype(dtype, "dtype")
  if can_standardize(x, reduction, scale, bias):
    return standardize(x, scale, bias, reduction, epsilon=epsilon, dtype=dtype)[0]
  wide = finite_or_zero(x.astype(statistics_dtype(x)), reduction.mask)
  deviations, variance = centered(wide, reduction)
  y = deviations * jax.lax.rsqrt(variance + epsilon)
  return apply_affine(y, scale, bias, (x.ndim - 1,), dtype)


def check_examples(x: Float[Array, "..."]) -> None:
  """Raise unless `x` has an axis of examples before that of channels, and positions."""
  if x.ndim < 2:
    raise ValueError(f"x must have the axes (batch, ..., c), got shape {x.shape}")
  if 0 in x.shape[1:]:
    raise ValueError(f"x must have at least one position to normalize, got shape {x.shape}")


def _resolve(c: int, num_groups: int | None, group_size: int | None) -> int:
  if num_groups is not None and group_size is not None:
    raise ValueError(
      f"num_groups and group_size exclude each other, got {num_groups} and {group_size}"
    )
  if group_size is not None:
    if group_size < 1 or c % group_size:
      raise ValueError(f"group_size must divide the {c} channels, got {group_size}")
    return c // group_size
  groups = _NUM_GROUPS if num_groups is None else num_groups
  if groups < 1 or c % groups:
    default = " (the default)" if num_groups is None else ""
    raise ValueError(f"num_groups must divide the {c} channels, got {groups}{default}")
  return groups


class GroupNorm(nnx.Module):
  """Normalizes each group of channels of each example, then scales and shifts each channel.

  y = (x - mean) / sqrt(var + epsilon) * scale + bias: `group_norm` with the parameters `scale` and
  `bias`, both (num_features,).

  Args:
    num_features: size of the last axis.
    num_groups: number of groups; 32 if neither this nor `group_size` is given.
    group_size: channels of a group, instead of `num_groups`.
    epsilon: added to the variance.
    use_scale: whether there is a `scale` (ones at first).
    use_bias: whether there is a `bias` (zeros at first).
    dtype: dtype of the output; the default is that of the input.
    param_dtype: dtype of the parameters.
    scale_init: initializer of `scale`.
    bias_init: initializer of `bias`.
    axis_name: mapped axis over which the positions of an example are sharded.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: as `group_norm`, and if the input does not have `num_features` entries.

  Reference:
    Wu and He, "Group Normalization", 2018, arXiv 1803.08494.

  Example:
    >>> norm = GroupNorm(64, rngs=nnx.Rngs(0))
    >>> norm(jnp.ones((2, 8, 8, 64))).shape
    (2, 8, 8, 64)
  """

  def __init__(
    self,
    num_features: int,
    num_groups: int | None = None,
    group_size: int | None = None,
    *,
    epsilon: float = 1e-5,
    use_scale: bool = True,
    use_bias: bool = True,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    scale_init: Initializer = nnx.initializers.ones,
    bias_init: Initializer = nnx.initializers.zeros,
    axis_name: str | None = None,
    rngs: nnx.Rngs,
  ):
    matching(num_features, -1)
    check_epsilon(epsilon)
    self.num_features = num_features
    self.num_groups = _resolve(num_features, num_groups, group_size)
    self.epsilon, self.dtype, self.axis_name = epsilon, dtype, axis_name
    self.scale = make_param(use_scale, scale_init, num_features, param_dtype, rngs)
    self.bias = make_param(use_bias, bias_init, num_features, param_dtype, rngs)

  def __call__(
    self,
    x: Float[Array, "batch *space c"],
    *,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    mask: Bool[Array, "..."] | None = None,
  ) -> Float[Array, "batch *space c"]:
    """Normalize `x`; `scale` and `bias`, if given, stand in for the parameters."""
    check_features(x, self.num_features, -1)
    return group_norm(
      x,
      value_or(scale, self.scale),
      value_or(bias, self.bias),
      num_groups=self.num_groups,
      epsilon=self.epsilon,
      mask=mask,
      axis_name=self.axis_name,
      dtype=self.dtype,
    )
