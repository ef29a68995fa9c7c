"""The invertible 1x1 convolution, or dense layer, with the matrix itself as its parameter."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array

from normjax.flows._linear import Linear, check_size, matmul

ORTHOGONAL = nnx.initializers.orthogonal()


class InvertibleLinear(Linear):
  """Multiplies the last axis by a free matrix.

  z = x W + bias,  x and z (B, C) or (B, H, W, C), W (C, C), bias (C,) or none
  log_det (B,) = H W log|det W|

  W starts as a random orthogonal matrix. Determinant and inverse cost C^3 in every call; `LULinear`
  has the same matrices without that cost, and `forward_varying` needs neither. Nothing keeps W from
  becoming singular.

  Args:
    features: C.
    weight_init: draws W in place of the orthogonal one.
    bias_init: draws the bias; None: there is none.
    param_dtype: dtype of the parameters.
    rngs: the stream `params`.

  Raises:
    ValueError: if `features` is below 1.

  Reference:
    Kingma, Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions", 2018,
    arXiv 1807.03039.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from normjax import flows
    >>> layer = flows.InvertibleLinear(4, rngs=nnx.Rngs(0))
    >>> z, log_det = layer.forward(jnp.ones((2, 8, 8, 4)))
    >>> bool(abs(log_det).max() < 1e-4)  # orthogonal at first
    True
  """

  def __init__(
    self,
    features: int,
    *,
    weight_init: Callable[..., Array] = ORTHOGONAL,
    bias_init: Callable[..., Array] | None = None,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.features = check_size(features)
    self.weight = nnx.Param(weight_init(rngs.params(), (features, features), param_dtype))
    draw = lambda init: nnx.Param(init(rngs.params(), (features,), param_dtype))
    self.bias = None if bias_init is None else draw(bias_init)

  def multiply(self, x):
    """Return x W."""
    return matmul(x, self.weight[...].astype(x.dtype))

  def solve(self, z):
    """Return z W^-1, from an LU decomposition."""
    return jnp.linalg.solve(self.weight[...].astype(z.dtype).T, z.T).T

  def log_abs_det(self, dtype):
    """Return log|det W|, from an LU decomposition."""
    return jnp.linalg.slogdet(self.weight[...].astype(dtype))[1]
