"""Derf ("Stronger Normalization-Free Transformers", https://arxiv.org/abs/2512.10938).

The element-wise squashing function that the paper's search found better than the tanh of
`dynamic_tanh`. It has one more learned number, a shift inside the function. Written from the
paper's equation; 16 bit input is computed in float32.

`jax.lax.erf` of a sharded array gathers it on every device (jax 0.10), `jax.lax.erfc` does not. It
is the one used here, with the power series near 0, where 1 - erfc would cancel.
"""

import math

import jax
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

# erf(x) = 2 / sqrt(pi) sum_n (-1)^n x^(2n+1) / (n! (2n+1)); the 13th term is below 1e-17 at 1/2.
_SERIES = [
  2 / math.sqrt(math.pi) * (-1) ** n / (math.factorial(n) * (2 * n + 1)) for n in range(13)
]


@jax.custom_jvp
def _erf(x: Float[Array, "..."]) -> Float[Array, "..."]:
  size = jnp.abs(x)
  near = jnp.minimum(size, 0.5)
  series = near * jnp.polyval(jnp.asarray(_SERIES[::-1], x.dtype), near * near)
  return jnp.sign(x) * jnp.where(size < 0.5, series, 1 - jax.lax.erfc(size))


@_erf.defjvp
def _(primals, tangents):
  (x,), (dx,) = primals, tangents
  return _erf(x), 2 / math.sqrt(math.pi) * jnp.exp(-x * x) * dx


def dynamic_erf(
  x: Float[Array, "*batch c"],
  alpha: ArrayLike,
  shift: ArrayLike | None = None,
  scale: ArrayLike | None = None,
  bias: ArrayLike | None = None,
  *,
  dtype: DTypeLike | None = None,
) -> Float[Array, "*batch c"]:
  """Squash each entry by an error function of learned slope and shift, then scale and shift it.

  y = erf(alpha * x + shift) * scale + bias, with x (..., c) -> y (..., c), entry by entry. No
  statistics enter.

  Args:
    x: floating input, channels last.
    alpha: slope, one number of shape (1,) or ().
    shift: what is added inside the function, shaped as alpha. None: 0.
    scale: gain (c,), or with the rank of x and sizes that are 1 or those of x. None: no gain.
    bias: shift (c,) of the output, shaped as `scale` may be. None: no shift.
    dtype: dtype of the output; the default is that of x.

  Returns:
    The squashed array.

  Raises:
    ValueError: if x is not floating, or alpha, shift, scale or bias have another shape.

  Reference:
    Chen et al., "Stronger Normalization-Free Transformers", 2025, arXiv 2512.10938.

  Example:
    >>> print(dynamic_erf(jnp.array([-100.0, 0.0, 100.0]), 0.5))
    [-1.  0.  1.]
  """
  x, axes = prepare(x, -1, 0.0)
  wide = x.astype(statistics_dtype(x))
  inner = as_single(alpha, "alpha", wide) * wide
  if shift is not None:
    inner = inner + as_single(shift, "shift", wide)
  y = _erf(inner)
  return apply_affine(y, scale, bias, axes, x.dtype if dtype is None else dtype)


class DynamicErf(nnx.Module):
  """Squashes each entry by an error function of learned slope and shift, then scales and shifts it.

  y = erf(alpha * x + shift) * scale + bias: `dynamic_erf` with the parameters `alpha` and `shift`,
  both (1,), and `scale` and `bias`, both (num_features,).

  Args:
    num_features: size of the last axis.
    alpha_init: first value of alpha.
    use_shift: whether there is a `shift` (0 at first).
    use_scale: whether there is a `scale` (ones at first).
    use_bias: whether there is a `bias` (zeros at first).
    dtype: dtype of the output; the default is that of the input.
    param_dtype: dtype of the parameters.
    scale_init: initializer of `scale`.
    bias_init: initializer of `bias`.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: as `dynamic_erf`; if alpha_init is not finite or not > 0; if the input does not have
      `num_features` entries.

  Reference:
    Chen et al., "Stronger Normalization-Free Transformers", 2025, arXiv 2512.10938.

  Example:
    >>> norm = DynamicErf(3, rngs=nnx.Rngs(0))
    >>> print(norm(jnp.array([-100.0, 0.0, 100.0])))
    [-1.  0.  1.]
  """

  def __init__(
    self,
    num_features: int,
    *,
    alpha_init: float = 0.5,
    use_shift: bool = True,
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
    self.shift = make_param(use_shift, nnx.initializers.zeros, 1, param_dtype, rngs)
    self.scale = make_param(use_scale, scale_init, num_features, param_dtype, rngs)
    self.bias = make_param(use_bias, bias_init, num_features, param_dtype, rngs)

  def __call__(
    self,
    x: Float[Array, "*batch c"],
    *,
    alpha: ArrayLike | None = None,
    shift: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
  ) -> Float[Array, "*batch c"]:
    """Squash `x`; what is given stands in for the parameters."""
    check_features(x, self.num_features, -1)
    return dynamic_erf(
      x,
      self.alpha[...] if alpha is None else alpha,
      value_or(shift, self.shift),
      value_or(scale, self.scale),
      value_or(bias, self.bias),
      dtype=self.dtype,
    )
