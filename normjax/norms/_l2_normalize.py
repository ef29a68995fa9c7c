"""Division by the Euclidean norm.

The norm is clamped from below, as in torch's `normalize`: epsilon changes nothing in rows that are
longer than it, and shorter ones are divided by epsilon. The gradient at a row of zeros is that of
the second branch; a plain `x / jnp.linalg.norm(x)` has NaN there.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from normjax.norms._affine import apply_affine, check_features, make_param, matching, value_or
from normjax.norms._arguments import as_mask, check_epsilon, prepare, statistics_dtype
from normjax.norms._statistics import Reduction, safe_root


def unit_rows(
  x: Float[Array, "*shape"],
  axes: tuple[int, ...],
  epsilon: float,
  mask: Bool[Array, "..."] | None,
  axis_name: str | None,
) -> Float[Array, "*shape"]:
  """Returns x / max(||x||, epsilon) in the dtype of the statistics."""
  wide = x.astype(statistics_dtype(x))
  reduction = Reduction(axes, x.shape, as_mask(mask, x.shape), axis_name)
  kept = reduction.keep(wide)
  return wide / jnp.maximum(safe_root(reduction.sum(kept * kept)), epsilon)


def l2_normalize(
  x: Float[Array, "*shape"],
  scale: ArrayLike | None = None,
  bias: ArrayLike | None = None,
  *,
  axis: int | Sequence[int] = -1,
  epsilon: float = 1e-12,
  mask: Bool[Array, "..."] | None = None,
  axis_name: str | None = None,
  dtype: DTypeLike | None = None,
) -> Float[Array, "*shape"]:
  """Divide each row by its Euclidean norm, then scale and shift it.

  y = x / max(||x||_2, epsilon) * scale + bias, with x (..., c) -> y (..., c) and the norm over
  `axis`.

  Args:
    x: floating input.
    scale: gain with the shape of the normalized axes, or with the rank of x and sizes that are 1 or
      those of x. None: no gain.
    bias: shift, shaped as `scale` may be. None: no shift.
    axis: the normalized axes, in increasing order.
    epsilon: smallest divisor. 0 is allowed; a row of zeros then gives NaN.
    mask: True where a position enters the norm; rank of x, sizes 1 or those of x. Every position is
      normalized. The norm of a row without any True is 0.
    axis_name: mapped axis over which the normalized axes are sharded (`jax.shard_map`).
    dtype: dtype of the output; the default is that of x.

  Returns:
    The normalized array.

  Raises:
    ValueError: if x is not floating, epsilon < 0, an axis is empty or does not exist, or scale,
      bias or mask have another shape.

  Example:
    >>> print(l2_normalize(jnp.array([3.0, 4.0])))
    [0.6 0.8]
  """
  x, axes = prepare(x, axis, epsilon)
  y = unit_rows(x, axes, epsilon, mask, axis_name)
  return apply_affine(y, scale, bias, axes, x.dtype if dtype is None else dtype)


class L2Normalize(nnx.Module):
  """Divides each row by its Euclidean norm.

  y = x / max(||x||_2, epsilon) * scale + bias: `l2_normalize`, without parameters unless asked.

  Args:
    num_features: size of the normalized axis, or one size per axis if `axis` is a tuple.
    axis: the normalized axes.
    epsilon: smallest divisor.
    use_scale: whether there is a `scale` (ones at first).
    use_bias: whether there is a `bias` (zeros at first).
    dtype: dtype of the output; the default is that of the input.
    param_dtype: dtype of the parameters.
    scale_init: initializer of `scale`.
    bias_init: initializer of `bias`.
    axis_name: mapped axis over which the normalized axes are sharded.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: as `l2_normalize`, and if the input does not have `num_features` entries.

  Example:
    >>> norm = L2Normalize(2, rngs=nnx.Rngs(0))
    >>> print(norm(jnp.array([3.0, 4.0])))
    [0.6 0.8]
  """

  def __init__(
    self,
    num_features: int | Sequence[int],
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-12,
    use_scale: bool = False,
    use_bias: bool = False,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    scale_init: Initializer = nnx.initializers.ones,
    bias_init: Initializer = nnx.initializers.zeros,
    axis_name: str | None = None,
    rngs: nnx.Rngs,
  ):
    check_epsilon(epsilon)
    self.num_features, self.axis = matching(num_features, axis)
    self.epsilon, self.dtype, self.axis_name = epsilon, dtype, axis_name
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
    return l2_normalize(
      x,
      value_or(scale, self.scale),
      value_or(bias, self.bias),
      axis=self.axis,
      epsilon=self.epsilon,
      mask=mask,
      axis_name=self.axis_name,
      dtype=self.dtype,
    )
