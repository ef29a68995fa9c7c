"""Elementwise layer normalization (ELN, DyISRU: https://arxiv.org/abs/2503.21708).

Why it looks so. Of the c entries of a row let all but x have mean m, variance v and sum of squares
q. Then exactly

    LayerNorm(x) = sqrt(c - 1) (x - m) / sqrt(c v + (x - m)^2)
    RMSNorm(x)   = sqrt(c) x / sqrt(q + x^2)

The element-wise layer keeps these functions of x, with one learned b in place of c v (or q) and 0
in place of m. The slope of LayerNorm is (c - 1) / (c sigma) (1 - y^2 / (c - 1)): to hold sigma
constant in it and integrate gives sqrt(c - 1) tanh(alpha x), the `dynamic_tanh`. That further
approximation is what this layer does without, and why it stays close to LayerNorm on outliers.

There is no layer in the authors' code, and no training in the paper. From its equations: b is one
number, as alpha is, and positive by construction (`parametrization`). Inferred: the default bound
is 1, as the scale absorbs any other, with b = 4 at first, the slope 1/2 of `dynamic_tanh`; the
other bounds start at b = c, the slope of LayerNorm for entries of variance 1.

x / sqrt(b) is formed before it is squared, and clipped where no square is finite, so that an
infinite x gives the bound.
"""

import math
from typing import Literal

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

Bound = Literal["unit", "sqrt_c", "sqrt_c_minus_1"]
Parametrization = Literal["softplus", "exp"]

_SMALLEST_B = 1e-6


def elementwise_layer_norm(
  x: Float[Array, "*batch c"],
  b: ArrayLike,
  scale: ArrayLike | None = None,
  bias: ArrayLike | None = None,
  *,
  bound: Bound = "unit",
  dtype: DTypeLike | None = None,
) -> Float[Array, "*batch c"]:
  """Squash each entry by an inverse square root unit, then scale and shift it.

  y = A x / sqrt(b + x^2) * scale + bias, with x (..., c) -> y (..., c), entry by entry, and A = 1,
  sqrt(c) or sqrt(c - 1). No statistics enter. |x / sqrt(b + x^2)| < 1 with slope 1 / sqrt(b) at 0.

  Args:
    x: floating input, channels last.
    b: positive number of shape (1,) or (); below 1e-6 it counts as 1e-6, without a gradient.
    scale: gain (c,), or with the rank of x and sizes that are 1 or those of x. None: no gain.
    bias: shift, shaped as `scale` may be. None: no shift.
    bound: the largest magnitude A: "unit", "sqrt_c" (RMSNorm's) or "sqrt_c_minus_1" (LayerNorm's).
    dtype: dtype of the output; the default is that of x.

  Returns:
    The squashed array.

  Raises:
    ValueError: if x is not floating, the bound is unknown or 0 (one channel and "sqrt_c_minus_1"),
      or b, scale or bias have another shape.

  Reference:
    Stollenwerk, "Elementwise Layer Normalization", 2025, arXiv 2503.21708.

  Example:
    >>> print(elementwise_layer_norm(jnp.array([-jnp.inf, 0.0, 3.0]), 16.0))
    [-1.   0.   0.6]
  """
  x, axes = prepare(x, -1, 0.0)
  peak = _peak(bound, x.shape[-1])
  wide = x.astype(statistics_dtype(x))
  b = jnp.maximum(as_single(b, "b", wide), _SMALLEST_B)
  limit = 1e-4 * math.sqrt(float(jnp.finfo(wide.dtype).max))
  u = jnp.clip(wide, -limit, limit) / jnp.sqrt(b)
  y = peak * (u / jnp.sqrt(1 + u * u))
  return apply_affine(y, scale, bias, axes, x.dtype if dtype is None else dtype)


def _peak(bound: str, c: int) -> float:
  squares = {"unit": 1, "sqrt_c": c, "sqrt_c_minus_1": c - 1}
  if bound not in squares:
    raise ValueError(f"bound must be 'unit', 'sqrt_c' or 'sqrt_c_minus_1', got {bound!r}")
  if squares[bound] == 0:
    raise ValueError(f"bound must not be {bound!r} for a single channel: every output would be 0")
  return math.sqrt(squares[bound])


class ElementwiseLayerNorm(nnx.Module):
  """Squashes each entry by an inverse square root unit, then scales and shifts it.

  y = A x / sqrt(b + x^2) * scale + bias with b = softplus(raw_b) or exp(raw_b):
  `elementwise_layer_norm` with the parameters `raw_b` (1,) and `scale` and `bias`, both
  (num_features,).

  Args:
    num_features: size of the last axis.
    bound: the largest magnitude A: "unit", "sqrt_c" (RMSNorm's) or "sqrt_c_minus_1" (LayerNorm's).
    b_init: first value of b. None: 4 for "unit", else num_features.
    parametrization: "softplus" or "exp", how b comes from `raw_b`.
    use_scale: whether there is a `scale` (ones at first).
    use_bias: whether there is a `bias` (zeros at first).
    dtype: dtype of the output; the default is that of the input.
    param_dtype: dtype of the parameters.
    scale_init: initializer of `scale`.
    bias_init: initializer of `bias`.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: as `elementwise_layer_norm`; if b_init is not finite or not > 0, or the
      parametrization is unknown; if the input does not have `num_features` entries.

  Reference:
    Stollenwerk, "Elementwise Layer Normalization", 2025, arXiv 2503.21708.

  Example:
    >>> norm = ElementwiseLayerNorm(3, rngs=nnx.Rngs(0))
    >>> print(norm(jnp.array([-jnp.inf, 0.0, 1.5])))
    [-1.   0.   0.6]
  """

  def __init__(
    self,
    num_features: int,
    *,
    bound: Bound = "unit",
    b_init: float | None = None,
    parametrization: Parametrization = "softplus",
    use_scale: bool = True,
    use_bias: bool = True,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    scale_init: Initializer = nnx.initializers.ones,
    bias_init: Initializer = nnx.initializers.zeros,
    rngs: nnx.Rngs,
  ):
    matching(num_features, -1)
    _peak(bound, num_features)
    if parametrization not in ("softplus", "exp"):
      raise ValueError(f"parametrization must be 'softplus' or 'exp', got {parametrization!r}")
    if b_init is None:
      b_init = 4.0 if bound == "unit" else float(num_features)
    check_positive(b_init, "b_init")
    self.num_features, self.dtype = num_features, dtype
    self.bound: Bound = bound
    self.parametrization: Parametrization = parametrization
    # The inverse of softplus is log(e^b - 1) = b + log(1 - e^-b).
    raw = math.log(b_init) if parametrization == "exp" else b_init + math.log(-math.expm1(-b_init))
    self.raw_b = new_param(nnx.initializers.constant(raw), (1,), param_dtype, rngs)
    self.scale = make_param(use_scale, scale_init, num_features, param_dtype, rngs)
    self.bias = make_param(use_bias, bias_init, num_features, param_dtype, rngs)

  def __call__(
    self,
    x: Float[Array, "*batch c"],
    *,
    b: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
  ) -> Float[Array, "*batch c"]:
    """Squash `x`; `b` (itself, not `raw_b`), `scale` and `bias` stand in for the parameters."""
    check_features(x, self.num_features, -1)
    if b is None:
      raw = self.raw_b[...]
      raw = raw.astype(jnp.promote_types(raw.dtype, jnp.float32))
      b = jax.nn.softplus(raw) if self.parametrization == "softplus" else jnp.exp(raw)
    return elementwise_layer_norm(
      x,
      b,
      value_or(scale, self.scale),
      value_or(bias, self.bias),
      bound=self.bound,
      dtype=self.dtype,
    )
