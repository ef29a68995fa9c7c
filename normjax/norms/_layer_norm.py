"""Layer normalization ("Layer Normalization", https://arxiv.org/abs/1607.06450).

What differs from flax: the variance comes from deviations and never from E[x^2] - E[x]^2, which
loses every digit when the mean is large (`use_fast_variance`, flax's default); the output has the
dtype of the input and not the one that flax promotes with the parameters; any axes can be
normalized together.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from normjax.norms._affine import (
  apply_affine,
  check_features,
  make_param,
  matching,
  value_or,
)
from normjax.norms._arguments import (
  as_mask,
  check_epsilon,
  floating_dtype,
  prepare,
  statistics_dtype,
)
from normjax.norms._prenormalize import Prenormalizer, check_prenormalize, prenormalized
from normjax.norms._standardize import can_standardize, standardize
from normjax.norms._statistics import Reduction, centered


def layer_norm(
  x: Float[Array, "*shape"],
  scale: ArrayLike | None = None,
  bias: ArrayLike | None = None,
  *,
  axis: int | Sequence[int] = -1,
  epsilon: float = 1e-6,
  mask: Bool[Array, "..."] | None = None,
  axis_name: str | None = None,
  dtype: DTypeLike | None = None,
  prenormalize: bool | Prenormalizer = False,
  compute_dtype: DTypeLike | None = None,
) -> Float[Array, "*shape"]:
  """Normalize each row to mean 0 and variance 1, then scale and shift it.

  y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * scale + bias, with x (..., c) -> y
  (..., c) and the means over `axis`. A constant row gives the bias.

  Args:
    x: floating input.
    scale: gain with the shape of the normalized axes, or with the rank of x and sizes that are 1 or
      those of x, as in (batch, 1, c) for a scale per example. None: no gain.
    bias: shift, shaped as `scale` may be. None: no shift.
    axis: the normalized axes, in increasing order.
    epsilon: added to the variance. 0 is allowed; a constant row then gives NaN.
    mask: True where a position enters the statistics; rank of x, sizes 1 or those of x. Every
      position is normalized. A row without any True has mean and variance 0.
    axis_name: mapped axis over which the normalized axes are sharded (`jax.shard_map`).
    dtype: dtype of the output; the default is that of x.
    prenormalize: compute in `compute_dtype` (float16 by default) with the pre-normalizer of
      `mad_prenormalize`, which does not overflow; True means "mad".
    compute_dtype: dtype of the statistics; the default is float32, and float64 for float64 input.

  Returns:
    The normalized array.

  Raises:
    ValueError: if x is not floating, epsilon < 0, an axis is empty or does not exist, or scale,
      bias or mask have another shape; if `prenormalize` is given with a mask, an axis_name or
      rows of one entry.

  Reference:
    Ba, Kiros and Hinton, "Layer Normalization", 2016, arXiv 1607.06450.

  Example:
    >>> y = layer_norm(jnp.array([[1.0, 2.0, 3.0, 4.0]]))
    >>> [round(float(v), 3) for v in y[0]]
    [-1.342, -0.447, 0.447, 1.342]
  """
  x, axes = prepare(x, axis, epsilon)
  dtype = x.dtype if dtype is None else floating_dtype(dtype, "dtype")
  reduction = Reduction(axes, x.shape, as_mask(mask, x.shape), axis_name)
  if not prenormalize and compute_dtype is None and axes == (x.ndim - 1,):
    if can_standardize(x, reduction, scale, bias):
      return standardize(x, scale, bias, reduction, epsilon=epsilon, dtype=dtype)[0]
  if prenormalize:
    check_prenormalize(mask=mask, axis_name=axis_name)
    y = prenormalized(
      x,
      axes,
      epsilon=epsilon,
      prenormalizer=prenormalize,
      compute_dtype=compute_dtype,
    )
  else:
    c, variance = centered(x.astype(statistics_dtype(x, compute_dtype)), reduction)
    y = c * jax.lax.rsqrt(variance + epsilon)
  return apply_affine(y, scale, bias, axes, dtype)


class LayerNorm(nnx.Module):
  """Normalizes each row to mean 0 and variance 1, then scales and shifts it.

  y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * scale + bias: `layer_norm` with the
  parameters `scale` and `bias`, shaped like the normalized axes.

  Args:
    num_features: size of the normalized axis, or one size per axis if `axis` is a tuple.
    axis: the normalized axes.
    epsilon: added to the variance.
    use_scale: whether there is a `scale` (ones at first).
    use_bias: whether there is a `bias` (zeros at first).
    dtype: dtype of the output; the default is that of the input.
    param_dtype: dtype of the parameters.
    scale_init: initializer of `scale`.
    bias_init: initializer of `bias`.
    axis_name: mapped axis over which the normalized axes are sharded.
    prenormalize: compute in `compute_dtype` with the low-precision pre-normalizer.
    compute_dtype: dtype of the statistics.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: as `layer_norm`, and if the input does not have `num_features` entries.

  Reference:
    Ba, Kiros and Hinton, "Layer Normalization", 2016, arXiv 1607.06450.

  Example:
    >>> norm = LayerNorm(4, rngs=nnx.Rngs(0))
    >>> norm(jnp.arange(8.0).reshape(2, 4)).shape
    (2, 4)
  """

  def __init__(
    self,
    num_features: int | Sequence[int],
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-6,
    use_scale: bool = True,
    use_bias: bool = True,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    scale_init: Initializer = nnx.initializers.ones,
    bias_init: Initializer = nnx.initializers.zeros,
    axis_name: str | None = None,
    prenormalize: bool | Prenormalizer = False,
    compute_dtype: DTypeLike | None = None,
    rngs: nnx.Rngs,
  ):
    check_epsilon(epsilon)
    self.num_features, self.axis = matching(num_features, axis)
    self.epsilon, self.dtype, self.axis_name = epsilon, dtype, axis_name
    self.compute_dtype = compute_dtype
    self.prenormalize: bool | Prenormalizer = prenormalize
    self.scale = make_param(use_scale, scale_init, self.num_features, param_dtype, rngs)
    self.bias = make_param(use_bias, bias_init, self.num_features, param_dtype, rngs)

  def __call__(
    self,
    x: Float[Array, "*shape"],
    *,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    mask: Bool[Array, "..."] | None = None,
  ) -> Float[Array, "*shape"]:
    """Normalize `x`; `scale` and `bias`, if given, stand in for the parameters."""
    check_features(x, self.num_features, self.axis)
    return layer_norm(
      x,
      value_or(scale, self.scale),
      value_or(bias, self.bias),
      axis=self.axis,
      epsilon=self.epsilon,
      mask=mask,
      axis_name=self.axis_name,
      dtype=self.dtype,
      prenormalize=self.prenormalize,
      compute_dtype=self.compute_dtype,
    )
