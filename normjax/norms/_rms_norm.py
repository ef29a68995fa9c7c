"""Root mean square normalization, full and partial (https://arxiv.org/abs/1910.07467).

What differs: the authors add epsilon to the root (1e-8) and most frameworks to the mean under it
(1e-6); `epsilon_placement` offers both and defaults to the second. The partial form takes its
statistics from the first int(c * partial) features, rounded down as in the authors' code. As in all
norms here, the output has the dtype of the input.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from normjax.norms._affine import apply_affine, check_features, make_param, matching, value_or
from normjax.norms._arguments import (
  as_mask,
  check_epsilon,
  floating_dtype,
  prepare,
  single_axis,
  statistics_dtype,
)
from normjax.norms._prenormalize import Prenormalizer, check_prenormalize, prenormalized
from normjax.norms._standardize import can_standardize, standardize
from normjax.norms._statistics import Reduction, safe_root

EpsilonPlacement = Literal["inside", "outside"]


def rms_norm(
  x: Float[Array, "*shape"],
  scale: ArrayLike | None = None,
  bias: ArrayLike | None = None,
  *,
  axis: int | Sequence[int] = -1,
  epsilon: float = 1e-6,
  epsilon_placement: EpsilonPlacement = "inside",
  partial: float | None = None,
  mask: Bool[Array, "..."] | None = None,
  axis_name: str | None = None,
  dtype: DTypeLike | None = None,
  prenormalize: bool | Prenormalizer = False,
  compute_dtype: DTypeLike | None = None,
) -> Float[Array, "*shape"]:
  """Divide each row by its root mean square, then scale and shift it.

  y = x / sqrt(mean(x^2) + epsilon) * scale + bias ("inside"), or
  y = x / (sqrt(mean(x^2)) + epsilon) * scale + bias ("outside"), with x (..., c) -> y (..., c) and
  the mean over `axis`, or over its first int(c * partial) entries. A row of zeros gives the bias.

  Args:
    x: floating input.
    scale: gain with the shape of the normalized axes, or with the rank of x and sizes that are 1 or
      those of x. None: no gain.
    bias: shift, shaped as `scale` may be. None: no shift.
    axis: the normalized axes, in increasing order.
    epsilon: 0 is allowed; a row of zeros then gives NaN.
    epsilon_placement: "inside" or "outside" the root. The authors use "outside" with 1e-8.
    partial: fraction in (0, 1] of the features that enter the mean; the authors recommend 0.0625.
      None: all of them.
    mask: True where a position enters the statistics; rank of x, sizes 1 or those of x. Every
      position is normalized. The mean of a row without any True is 0.
    axis_name: mapped axis over which the normalized axes are sharded (`jax.shard_map`).
    dtype: dtype of the output; the default is that of x.
    prenormalize: compute in `compute_dtype` (float16 by default) with the pre-normalizer of
      `mad_prenormalize`, which does not overflow; True means "mad".
    compute_dtype: dtype of the statistics; the default is float32, and float64 for float64 input.

  Returns:
    The normalized array.

  Raises:
    ValueError: if x is not floating, epsilon < 0, an axis is empty or does not exist, or scale,
      bias or mask have another shape; if `partial` is outside (0, 1], leaves no feature, or comes
      with several axes or an axis_name; if `prenormalize` is given with `partial`, a mask, an
      axis_name or rows of one entry.

  Reference:
    Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv 1910.07467.

  Example:
    >>> rms_norm(jnp.array([3.0, -3.0, 3.0]), epsilon=0.0)
    Array([ 1., -1.,  1.], dtype=float32)
  """
  x, axes = prepare(x, axis, epsilon)
  if epsilon_placement not in ("inside", "outside"):
    raise ValueError(f"epsilon_placement must be 'inside' or 'outside', got {epsilon_placement!r}")
  outside = epsilon_placement == "outside"
  dtype = x.dtype if dtype is None else floating_dtype(dtype, "dtype")
  mask = as_mask(mask, x.shape)
  reduction = Reduction(axes, x.shape, mask, axis_name)
  plain = partial is None and compute_dtype is None and not outside and not prenormalize
  if plain and axes == (x.ndim - 1,) and can_standardize(x, reduction, scale, bias):
    return standardize(x, scale, bias, reduction, epsilon=epsilon, center=False, dtype=dtype)[0]
  if prenormalize:
    check_prenormalize(mask=mask, axis_name=axis_name, partial=partial)
    y = prenormalized(
      x,
      axes,
      center=False,
      epsilon=epsilon,
      outside=outside,
      prenormalizer=prenormalize,
      compute_dtype=compute_dtype,
    )
  else:
    wide = x.astype(statistics_dtype(x, compute_dtype))
    measured = wide
    if partial is not None:
      measured, mask = _first_features(wide, mask, partial, axis, axis_name)
      reduction = Reduction(axes, measured.shape, mask, axis_name)
    kept = reduction.keep(measured)
    mean = reduction.mean(kept * kept)
    y = wide / (safe_root(mean) + epsilon) if outside else wide * jax.lax.rsqrt(mean + epsilon)
  return apply_affine(y, scale, bias, axes, dtype)


def _first_features(x, mask, partial, axis, axis_name):
  """Return the features that enter the partial statistics, and their part of the mask."""
  if not 0 < partial <= 1:
    raise ValueError(f"partial must be in (0, 1], got {partial}")
  if axis_name is not None:
    raise ValueError("partial needs the first features on this device: axis_name must be None")
  axis = single_axis(axis, x.shape, "partial statistics")
  k = int(x.shape[axis] * partial)
  if k < 1:
    raise ValueError(f"partial={partial} keeps none of {x.shape[axis]} features")
  if mask is not None and mask.shape[axis] > 1:
    mask = jax.lax.slice_in_dim(mask, 0, k, axis=axis)
  return jax.lax.slice_in_dim(x, 0, k, axis=axis), mask


class RMSNorm(nnx.Module):
  """Divides each row by its root mean square, then scales it.

  y = x / sqrt(mean(x^2) + epsilon) * scale + bias: `rms_norm` with the parameters `scale` and
  `bias`, shaped like the normalized axes.

  Args:
    num_features: size of the normalized axis, or one size per axis if `axis` is a tuple.
    axis: the normalized axes.
    epsilon: see `epsilon_placement`.
    epsilon_placement: add epsilon "inside" the root, or "outside" as the authors do.
    partial: fraction of the features that enter the mean; None: all of them.
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
    ValueError: as `rms_norm`, and if the input does not have `num_features` entries.

  Reference:
    Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv 1910.07467.

  Example:
    >>> norm = RMSNorm(4, partial=0.5, rngs=nnx.Rngs(0))
    >>> norm(jnp.ones((2, 4))).shape
    (2, 4)
  """

  def __init__(
    self,
    num_features: int | Sequence[int],
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-6,
    epsilon_placement: EpsilonPlacement = "inside",
    partial: float | None = None,
    use_scale: bool = True,
    use_bias: bool = False,
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
    self.epsilon, self.partial = epsilon, partial
    self.epsilon_placement: EpsilonPlacement = epsilon_placement
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
    return rms_norm(
      x,
      value_or(scale, self.scale),
      value_or(bias, self.bias),
      axis=self.axis,
      epsilon=self.epsilon,
      epsilon_placement=self.epsilon_placement,
      partial=self.partial,
      mask=mask,
      axis_name=self.axis_name,
      dtype=self.dtype,
      prenormalize=self.prenormalize,
      compute_dtype=self.compute_dtype,
    )
