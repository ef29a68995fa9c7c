"""ScaleNorm: rows of one learned length (https://arxiv.org/abs/1910.05895).

What differs: "Transformers without Tears" writes scale * x / ||x||; as its authors' code we clamp
the norm at epsilon, so rows shorter than epsilon are scaled linearly.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from normjax.norms._affine import apply_affine, check_features, make_param, matching, value_or
from normjax.norms._arguments import check_epsilon, prepare
from normjax.norms._l2_normalize import unit_rows


def scale_norm(
  x: Float[Array, "*shape"],
  scale: ArrayLike | None = None,
  bias: ArrayLike | None = None,
  *,
  axis: int | Sequence[int] = -1,
  epsilon: float = 1e-5,
  mask: Bool[Array, "..."] | None = None,
  axis_name: str | None = None,
  dtype: DTypeLike | None = None,
) -> Float[Array, "*shape"]:
  """Give each row the length `scale`, then shift it.

  y = scale * x / max(||x||_2, epsilon) + bias with one number `scale`; x (..., c) -> y (..., c).

  Args:
    x: floating input.
    scale: a scalar, or an array with the rank of x and sizes that are 1 or those of x, as in
      (batch, 1, 1) for a length per example. None: 1.
    bias: shift with the shape of the normalized axes or the rank of x. None: no shift.
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

  Reference:
    Nguyen and Salazar, "Transformers without Tears: Improving the Normalization of
    Self-Attention", 2019, arXiv 1910.05895.

  Example:
    >>> print(scale_norm(jnp.array([3.0, 4.0]), 10.0))
    [6. 8.]
  """
  x, axes = prepare(x, axis, epsilon)
  y = unit_rows(x, axes, epsilon, mask, axis_name)
  dtype = x.dtype if dtype is None else dtype
  return apply_affine(y, scale, bias, axes, dtype, scalar_scale=True)


class ScaleNorm(nnx.Module):
  """Gives each row one learned length.

  y = scale * x / max(||x||_2, epsilon) + bias: `scale_norm` with one scalar parameter `scale`.

  Args:
    num_features: size of the normalized axis, or one size per axis if `axis` is a tuple.
    axis: the normalized axes.
    epsilon: smallest divisor.
    trainable: False keeps the length at sqrt(num_features), without a parameter.
    use_scale: False gives rows of length 1.
    use_bias: whether there is a `bias` (zeros at first).
    dtype: dtype of the output; the default is that of the input.
    param_dtype: dtype of the parameters.
    scale_init: initializer of `scale`; the default is the constant sqrt(num_features).
    bias_init: initializer of `bias`.
    axis_name: mapped axis over which the normalized axes are sharded.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: as `scale_norm`, and if the input does not have `num_features` entries.

  Reference:
    Nguyen and Salazar, "Transformers without Tears: Improving the Normalization of
    Self-Attention", 2019, arXiv 1910.05895.

  Example:
    >>> norm = ScaleNorm(4, rngs=nnx.Rngs(0))
    >>> print(norm(jnp.full(4, 7.0)))
    [1. 1. 1. 1.]
  """

  def __init__(
    self,
    num_features: int | Sequence[int],
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
    trainable: bool = True,
    use_scale: bool = True,
    use_bias: bool = False,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    scale_init: Initializer | None = None,
    bias_init: Initializer = nnx.initializers.zeros,
    axis_name: str | None = None,
    rngs: nnx.Rngs,
  ):
    check_epsilon(epsilon)
    self.num_features, self.axis = matching(num_features, axis)
    self.epsilon, self.dtype, self.axis_name = epsilon, dtype, axis_name
    sizes = (num_features,) if isinstance(num_features, int) else num_features
    length = math.sqrt(math.prod(sizes))
    self.fixed_scale = length if use_scale and not trainable else None
    scale_init = nnx.initializers.constant(length) if scale_init is None else scale_init
    self.scale = make_param(use_scale and trainable, scale_init, (), param_dtype, rngs)
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
    scale = value_or(scale, self.scale)
    return scale_norm(
      x,
      self.fixed_scale if scale is None else scale,
      value_or(bias, self.bias),
      axis=self.axis,
      epsilon=self.epsilon,
      mask=mask,
      axis_name=self.axis_name,
      dtype=self.dtype,
    )
