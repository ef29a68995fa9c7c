"""Instance normalization (https://arxiv.org/abs/1607.08022).

What differs from flax: the layer has no scale and no bias unless asked for, as in the code of image
translation; the variance comes from deviations; epsilon is 1e-5, as in torch; positions can be
masked. There are no running statistics: an example is normalized alike in training and evaluation.
"""

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from normjax.norms._affine import check_features, make_param, matching, value_or
from normjax.norms._arguments import as_position_mask, check_epsilon, prepare
from normjax.norms._group_norm import check_examples, normalize_channels
from normjax.norms._statistics import Reduction


def instance_norm(
  x: Float[Array, "batch *space c"],
  scale: ArrayLike | None = None,
  bias: ArrayLike | None = None,
  *,
  epsilon: float = 1e-5,
  mask: Bool[Array, "..."] | None = None,
  axis_name: str | None = None,
  dtype: DTypeLike | None = None,
) -> Float[Array, "batch *space c"]:
  """Normalize each channel of each example to mean 0 and variance 1, then scale and shift it.

  y = (x - mean) / sqrt(var + epsilon) * scale + bias, with x (batch, ..., c) -> y of that shape,
  and mean and var (batch, c) over all positions. An example of one position gives the bias.

  Args:
    x: floating input, examples first, channels last.
    scale: gain (c,), or with the rank of x and sizes that are 1 or those of x. None: no gain.
    bias: shift, shaped as `scale` may be. None: no shift.
    epsilon: added to the variance. 0 is allowed; a constant channel then gives NaN.
    mask: True where a position enters the statistics; (batch, ...), or (batch, ..., 1), of sizes 1
      or those of x. Every position is normalized. An example without any True has mean and
      variance 0.
    axis_name: mapped axis over which the positions of an example are sharded (`jax.shard_map`).
    dtype: dtype of the output; the default is that of x.

  Returns:
    The normalized array.

  Raises:
    ValueError: if x is not floating or has one axis only, epsilon < 0, or scale, bias or mask have
      another shape.

  Reference:
    Ulyanov, Vedaldi and Lempitsky, "Instance Normalization: The Missing Ingredient for Fast
    Stylization", 2016, arXiv 1607.08022.

  Example:
    >>> instance_norm(jnp.array([[[1.0, 10.0], [3.0, 30.0]]])).round(3).tolist()
    [[[-1.0, -1.0], [1.0, 1.0]]]
  """
  x, _ = prepare(x, -1, epsilon)
  check_examples(x)
  mask = as_position_mask(mask, x.shape)
  reduction = Reduction(tuple(range(1, x.ndim - 1)), x.shape, mask, axis_name)
  return normalize_channels(x, scale, bias, reduction, epsilon=epsilon, dtype=dtype)


class InstanceNorm(nnx.Module):
  """Normalizes each channel of each example to mean 0 and variance 1.

  y = (x - mean) / sqrt(var + epsilon) * scale + bias: `instance_norm`, with the parameters `scale`
  and `bias`, both (num_features,), if asked for.

  Args:
    num_features: size of the last axis.
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
    ValueError: as `instance_norm`, and if the input does not have `num_features` entries.

  Reference:
    Ulyanov, Vedaldi and Lempitsky, "Instance Normalization: The Missing Ingredient for Fast
    Stylization", 2016, arXiv 1607.08022.

  Example:
    >>> norm = InstanceNorm(3, rngs=nnx.Rngs(0))
    >>> norm(jnp.ones((2, 8, 8, 3))).shape
    (2, 8, 8, 3)
  """

  def __init__(
    self,
    num_features: int,
    *,
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
    self.num_features, self.epsilon = num_features, epsilon
    self.dtype, self.axis_name = dtype, axis_name
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
    return instance_norm(
      x,
      value_or(scale, self.scale),
      value_or(bias, self.bias),
      epsilon=self.epsilon,
      mask=mask,
      axis_name=self.axis_name,
      dtype=self.dtype,
    )
