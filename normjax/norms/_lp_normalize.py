"""Layer normalization by the mean p-th power of the deviations.

p = 2 is layer normalization, p = 1 divides by the mean absolute deviation; without centering p = 2
is RMS normalization. This is the function that the low-precision pre-normalizer of
"Conformer-Based Speech Recognition On Extreme Edge-Computing Devices"
(https://arxiv.org/abs/2312.10359) evaluates. Powers are taken of the row divided by its largest
magnitude, so that no p overflows.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from normjax.norms._affine import apply_affine, check_features, make_param, matching, value_or
from normjax.norms._arguments import (
  as_mask,
  check_epsilon,
  check_power,
  prepare,
  statistics_dtype,
)
from normjax.norms._prenormalize import Prenormalizer, check_prenormalize, prenormalized
from normjax.norms._statistics import Reduction, add_powers, centered, mean_power


def lp_normalize(
  x: Float[Array, "*shape"],
  scale: ArrayLike | None = None,
  bias: ArrayLike | None = None,
  *,
  p: float = 2.0,
  center: bool = True,
  axis: int | Sequence[int] = -1,
  epsilon: float = 1e-6,
  mask: Bool[Array, "..."] | None = None,
  axis_name: str | None = None,
  dtype: DTypeLike | None = None,
  prenormalize: bool | Prenormalizer = False,
  compute_dtype: DTypeLike | None = None,
) -> Float[Array, "*shape"]:
  """Divide deviations from the mean by the p-th root of their mean p-th power.

  y = c / (mean(|c|^p) + epsilon)^(1/p) * scale + bias with c = x - mean(x), or c = x without
  centering; x (..., c) -> y (..., c) and the means over `axis`.

  Args:
    x: floating input.
    scale: gain with the shape of the normalized axes, or with the rank of x and sizes that are 1 or
      those of x. None: no gain.
    bias: shift, shaped as `scale` may be. None: no shift.
    p: power, finite and at least 1.
    center: subtract the mean first.
    axis: the normalized axes, in increasing order.
    epsilon: added to the mean power. 0 is allowed; a row with c = 0 then gives NaN.
    mask: True where a position enters the statistics; rank of x, sizes 1 or those of x. Every
      position is normalized. The means of a row without any True are 0.
    axis_name: mapped axis over which the normalized axes are sharded (`jax.shard_map`).
    dtype: dtype of the output; the default is that of x.
    prenormalize: compute in `compute_dtype` (float16 by default) with the pre-normalizer of
      `mad_prenormalize`, which does not overflow; True means "mad", "max" is tighter for p >= 3.
    compute_dtype: dtype of the statistics; the default is float32, and float64 for float64 input.

  Returns:
    The normalized array.

  Raises:
    ValueError: if x is not floating, p < 1, epsilon < 0, an axis is empty or does not exist, or
      scale, bias or mask have another shape; if `prenormalize` is given with a mask, an axis_name
      or rows of one entry.

  Reference:
    Xu et al., "Conformer-Based Speech Recognition On Extreme Edge-Computing Devices", 2023,
    arXiv 2312.10359.

  Example:
    >>> lp_normalize(jnp.array([0.0, 1.0, 3.0, 4.0]), p=1, epsilon=0.0).tolist()
    [-1.3333333730697632, -0.6666666865348816, 0.6666666865348816, 1.3333333730697632]
  """
  x, axes = prepare(x, axis, epsilon)
  check_power(p)
  if prenormalize:
    check_prenormalize(mask=mask, axis_name=axis_name)
    y = prenormalized(
      x,
      axes,
      p=p,
      center=center,
      epsilon=epsilon,
      prenormalizer=prenormalize,
      compute_dtype=compute_dtype,
    )
  else:
    reduction = Reduction(axes, x.shape, as_mask(mask, x.shape), axis_name)
    wide = x.astype(statistics_dtype(x, compute_dtype))
    c = centered(wide, reduction)[0] if center else wide
    y = c / add_powers(mean_power(reduction.keep(c), reduction, p), epsilon ** (1 / p), p)
  return apply_affine(y, scale, bias, axes, x.dtype if dtype is None else dtype)


class LpNormalize(nnx.Module):
  """Divides deviations from the mean by the p-th root of their mean p-th power.

  y = c / (mean(|c|^p) + epsilon)^(1/p) * scale + bias with c = x - mean(x): `lp_normalize` with the
  parameters `scale` and `bias`, shaped like the normalized axes.

  Args:
    num_features: size of the normalized axis, or one size per axis if `axis` is a tuple.
    p: power, finite and at least 1.
    center: subtract the mean first.
    axis: the normalized axes.
    epsilon: added to the mean power.
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
    ValueError: as `lp_normalize`, and if the input does not have `num_features` entries.

  Reference:
    Xu et al., "Conformer-Based Speech Recognition On Extreme Edge-Computing Devices", 2023,
    arXiv 2312.10359.

  Example:
    >>> norm = LpNormalize(2, p=3, rngs=nnx.Rngs(0))
    >>> print(norm(jnp.array([-5.0, 5.0])))
    [-1.  1.]
  """

  def __init__(
    self,
    num_features: int | Sequence[int],
    *,
    p: float = 2.0,
    center: bool = True,
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
    check_power(p)
    self.num_features, self.axis = matching(num_features, axis)
    self.p, self.center, self.epsilon = p, center, epsilon
    self.dtype, self.axis_name = dtype, axis_name
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
    return lp_normalize(
      x,
      value_or(scale, self.scale),
      value_or(bias, self.bias),
      p=self.p,
      center=self.center,
      axis=self.axis,
      epsilon=self.epsilon,
      mask=mask,
      axis_name=self.axis_name,
      dtype=self.dtype,
      prenormalize=self.prenormalize,
      compute_dtype=self.compute_dtype,
    )
