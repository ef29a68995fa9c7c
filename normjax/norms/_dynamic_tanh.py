"""Dynamic Tanh ("Transformers without Normalization", https://arxiv.org/abs/2503.10622).

The authors' code agrees with the paper; its flag for channels first is not needed here. Language
models of the paper have no bias, and their alpha depends on the site: 0.8 in front of attention and
0.2 elsewhere at 7B parameters, 0.6 / 0.15 at 13B, 0.2 / 0.05 at 34B and 70B. `alpha_init` and
`use_bias` are therefore arguments of each layer.

The tanh is that of float32 for 16 bit input: alpha * x rounded to bfloat16 would lose the gradient
of the scale.
"""

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from normjax.norms._affine import (
  apply_affine,
  check_features,
  make_param,
  matching,
  new_param,
  value_or,
)
from normjax.norms._arguments import prepare, statistics_dtype
from normjax.norms._elementwise import as_single, check_positive


def dynamic_tanh(
  x: Float[Array, "*batch c"],
  alpha: ArrayLike,
  scale: ArrayLike | None = None,
  bias: ArrayLike | None = None,
  *,
  dtype: DTypeLike | None = None,
) -> Float[Array, "*batch c"]:
  """Squash each entry by a tanh of learned slope, then scale and shift it.

  y = tanh(alpha * x) * scale + bias, with x (..., c) -> y (..., c), entry by entry. No statistics
  enter. For small x it is linear, scale * alpha * x + bias.

  Args:
    x: floating input, channels last.
    alpha: slope, one number of shape (1,) or ().
    scale: gain (c,), or with the rank of x and sizes that are 1 or those of x. None: no gain.
    bias: shift, shaped as `scale` may be. None: no shift.
    dtype: dtype of the output; the default is that of x.

  Returns:
    The squashed array.

  Raises:
    ValueError: if x is not floating, or alpha, scale or bias have another shape.

  Reference:
    Zhu et al., "Transformers without Normalization", 2025, arXiv 2503.10622.

  Example:
    >>> print(dynamic_tanh(jnp.array([-100.0, 0.0, 100.0]), 0.5))
    [-1.  0.  1.]
  """
  x, axes = prepare(x, -1, 0.0)
  wide = x.astype(statistics_dtype(x))
  y = jnp.tanh(as_single(alpha, "alpha", wide) * wide)
  return apply_affine(y, scale, bias, axes, x.dtype if dtype is None else dtype)


class DynamicTanh(nnx.Module):
  """Squashes each entry by a tanh of learned slope, then scales and shifts it.

  y = tanh(alpha * x) * scale + bias: `dynamic_tanh` with the parameters `alpha` (1,) and `scale`
  and `bias`, both (num_features,).

  Args:
    num_features: size of the last axis.
    alpha_init: first value of alpha, which the paper chooses by site in large language models.
    use_scale: whether there is a `scale` (ones at first).
    use_bias: whether there is a `bias` (zeros at first).
    dtype: dtype of the output; the default is that of the input.
    param_dtype: dtype of the parameters.
    scale_init: initializer of `scale`.
    bias_init: initializer of `bias`.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: as `dynamic_tanh`; if alpha_init is not finite or not > 0; if the input does not
      have `num_features` entries.

  Reference:
    Zhu et al., "Transformers without Normalization", 2025, arXiv 2503.10622.

  Example:
    >>> norm = DynamicTanh(3, rngs=nnx.Rngs(0))
    >>> print(norm(jnp.array([-100.0, 0.0, 100.0])))
    [-1.  0.  1.]
  """

  def __init__(
    self,
    num_features: int,
    *,
    alpha_init: float = 0.5,
    use_scale: bool = True,
    use_bias: bool = True,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    scale_init: Initializer = nnx.initializers.ones,
    bias_init: Initializer = nnx.initializers.zeros,
    rngs: nnx.Rngs,
  ):
    matching(num_features, -1)
    check_positive(alpha_init, "alpha_init")
    self.num_features, self.dtype = num_features, dtype
    self.alpha = new_param(nnx.initializers.constant(alpha_init), (1,), param_dtype, rngs)
    self.scale = make_param(use_scale, scale_init, num_features, param_dtype, rngs)
    self.bias = make_param(use_bias, bias_init, num_features, param_dtype, rngs)

  def __call__(
    self,
    x: Float[Array, "*batch c"],
    *,
    alpha: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
  ) -> Float[Array, "*batch c"]:
    """Squash `x`; `alpha`, `scale` and `bias`, if given, stand in for the parameters."""
    check_features(x, self.num_features, -1)
    return dynamic_tanh(
      x,
      self.alpha[...] if alpha is None else alpha,
      value_or(scale, self.scale),
      value_or(bias, self.bias),
      dtype=self.dtype,
    )
