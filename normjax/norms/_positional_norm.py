"""Positional normalization ("Positional Normalization", https://arxiv.org/abs/1907.04312).

Each position is normalized over its channels, and the moments that this takes away are re-injected
later, where a generator restores structure: the moment shortcut. The variance divides by c - 1, as
the authors' code does. Their affine acts on positions, not on channels, and is off by default.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from normjax.norms._affine import apply_affine, check_features, make_param, matching, value_or
from normjax.norms._arguments import (
  as_floating,
  as_mask,
  broadcasts_explicitly,
  check_epsilon,
  floating_dtype,
  prepare,
  statistics_dtype,
)
from normjax.norms._statistics import Reduction, moments


def unbiased_moments(
  x: Float[Array, "..."], reduction: Reduction, epsilon: float
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
  """Returns `x` minus its mean, the mean, and sqrt(var + epsilon) with divisor n - 1."""
  centered, mean, var = moments(x, reduction)
  n = reduction.count(x.dtype)
  return centered, mean, jnp.sqrt(var * (n / jnp.maximum(n - 1, 1)) + epsilon)


def positional_norm(
  x: Float[Array, "*batch c"],
  scale: ArrayLike | None = None,
  bias: ArrayLike | None = None,
  *,
  epsilon: float = 1e-5,
  mask: Bool[Array, "..."] | None = None,
  axis_name: str | None = None,
  dtype: DTypeLike | None = None,
) -> tuple[Float[Array, "*batch c"], Float[Array, "*batch 1"], Float[Array, "*batch 1"]]:
  """Normalize each position over its channels, and return the moments that this takes away.

  y = (x - mean) / std * scale + bias with std = sqrt(sum((x - mean)^2) / (c - 1) + epsilon), both
  over the channels: x (..., c) -> y (..., c), mean and std (..., 1).

  Args:
    x: floating input, channels last.
    scale: gain with the rank of x and sizes that are 1 or those of x, as in (1, h, w, 1) for one
      number per position. None: no gain.
    bias: shift, shaped as `scale` may be. None: no shift.
    epsilon: added to the variance. 0 is allowed; a constant position then gives NaN.
    mask: True where a channel enters the statistics; rank of x, sizes 1 or those of x. Every entry
      is normalized. A position with less than two True has variance 0.
    axis_name: mapped axis over which the channels are sharded (`jax.shard_map`).
    dtype: dtype of y; the default is that of x.

  Returns:
    `(y, mean, std)`, the moments in float32 or wider.

  Raises:
    ValueError: if x is not floating, has one channel only, epsilon < 0, or scale, bias or mask have
      another shape.

  Reference:
    Li et al., "Positional Normalization", 2019, arXiv 1907.04312.

  Example:
    >>> y, mean, std = positional_norm(jnp.array([[2.0, 4.0, 6.0]]))
    >>> print(y.round(3), mean, std.round(3))
    [[-1.  0.  1.]] [[4.]] [[2.]]
  """
  x, axes = prepare(x, -1, epsilon)
  if axis_name is None:
    _check_channels(x.shape[-1], f"x must have at least 2 channels, got shape {x.shape}")
  reduction = Reduction(axes, x.shape, as_mask(mask, x.shape), axis_name)
  centered, mean, std = unbiased_moments(x.astype(statistics_dtype(x)), reduction, epsilon)
  y = apply_affine(centered / std, scale, bias, (), x.dtype if dtype is None else dtype)
  return y, mean, std


def _check_channels(c: int, message: str) -> None:
  if c < 2:
    raise ValueError(f"{message}: the variance over channels divides by their number minus 1")


def moment_shortcut(
  x: Float[Array, "*batch c"],
  mean: Float[Array, "..."],
  std: Float[Array, "..."],
  *,
  dtype: DTypeLike | None = None,
) -> Float[Array, "*batch c"]:
  """Give features the moments that a positional norm took away earlier.

  y = x * std + mean, with x (..., c) -> y (..., c) and the moments (..., 1).

  Args:
    x: floating features, channels last; their number of channels may be any.
    mean: means with the rank of x and sizes that are 1 or those of x.
    std: standard deviations, shaped as `mean` may be.
    dtype: dtype of the output; the default is that of x.

  Returns:
    The features with those moments.

  Raises:
    ValueError: if x is not floating, or mean or std have another shape.

  Reference:
    Li et al., "Positional Normalization", 2019, arXiv 1907.04312.

  Example:
    >>> x = jnp.array([[2.0, 4.0, 6.0]])
    >>> print(moment_shortcut(*positional_norm(x)))
    [[2. 4. 6.]]
  """
  x = as_floating(x)
  for name, value in (("mean", mean), ("std", std)):
    if not broadcasts_explicitly(jnp.shape(value), x.shape):
      raise ValueError(
        f"{name} must have {x.ndim} axes, each of size 1 or as in {x.shape}, got {jnp.shape(value)}"
      )
  wide = statistics_dtype(x)
  y = x.astype(wide) * jnp.asarray(std, wide) + jnp.asarray(mean, wide)
  return y.astype(x.dtype if dtype is None else floating_dtype(dtype, "dtype"))


class PositionalNorm(nnx.Module):
  """Normalizes each position over its channels.

  y = (x - mean) / sqrt(var + epsilon) * scale + bias, var with divisor c - 1: the first result of
  `positional_norm`, which has the moments too. `scale` and `bias`, if used, are
  (1, *positions, 1): one number per position.

  Args:
    num_features: size of the last axis, at least 2.
    positions: sizes of the axes between the first and the last, (h, w) say, for an affine.
    epsilon: added to the variance.
    use_scale: whether there is a `scale` (ones at first).
    use_bias: whether there is a `bias` (zeros at first).
    dtype: dtype of the output; the default is that of the input.
    param_dtype: dtype of the parameters.
    scale_init: initializer of `scale`.
    bias_init: initializer of `bias`.
    axis_name: mapped axis over which the channels are sharded.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: as `positional_norm`; if an affine is asked for without `positions`; if the input
      does not have `num_features` entries.

  Reference:
    Li et al., "Positional Normalization", 2019, arXiv 1907.04312.

  Example:
    >>> norm = PositionalNorm(3, rngs=nnx.Rngs(0))
    >>> print(norm(jnp.array([[2.0, 4.0, 6.0]])).round(3))
    [[-1.  0.  1.]]
  """

  def __init__(
    self,
    num_features: int,
    *,
    positions: Sequence[int] | None = None,
    epsilon: float = 1e-5,
    use_scale: bool = False,
    use_bias: bool = False,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    scale_init: Initializer = nnx.initializers.ones,
    bias_init: Initializer = nnx.initializers.zeros,
    axis_name: str | None = None,
    rngs: nnx.Rngs,
  ):
    matching(num_features, -1)
    check_epsilon(epsilon)
    if axis_name is None:
      _check_channels(num_features, f"num_features must be at least 2, got {num_features}")
    if positions is None and (use_scale or use_bias):
      raise ValueError("positions must be given, (h, w) say, for a scale or bias per position")
    self.num_features, self.epsilon, self.dtype = num_features, epsilon, dtype
    self.axis_name = axis_name
    shape = (1, *(positions or ()), 1)
    self.scale = make_param(use_scale, scale_init, shape, param_dtype, rngs)
    self.bias = make_param(use_bias, bias_init, shape, param_dtype, rngs)

  def __call__(
    self,
    x: Float[Array, "*batch c"],
    *,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    mask: Bool[Array, "..."] | None = None,
  ) -> Float[Array, "*batch c"]:
    """Normalize `x`; `scale` and `bias`, if given, stand in for the parameters."""
    check_features(x, self.num_features, -1)
    y, _, _ = positional_norm(
      x,
      value_or(scale, self.scale),
      value_or(bias, self.bias),
      epsilon=self.epsilon,
      mask=mask,
      axis_name=self.axis_name,
      dtype=self.dtype,
    )
    return y
