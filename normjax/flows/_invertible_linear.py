"""The invertible 1x1 convolution, or dense layer, with the matrix itself as its parameter."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from normjax.flows._linear import Linear, check_size, matmul


class InvertibleLinear(Linear):
  """Multiplies the last axis by a free matrix.

  z = x W,  x and z (B, C) or (B, H, W, C), W (C, C);  log_det (B,) = H W log|det W|

  W starts as a random orthogonal matrix. Determinant and inverse cost C^3 in every call; `LULinear`
  has the same matrices without that cost. Nothing keeps W from becoming singular.

  Args:
    features: C.
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

  def __init__(self, features: int, *, param_dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
    self.features, self.bias = check_size(features), None
    init = nnx.initializers.orthogonal()
    self.weight = nnx.Param(init(rngs.params(), (features, features), param_dtype))

  def multiply(self, x):
    """Return x W."""
    return matmul(x, self.weight[...].astype(x.dtype))

  def solve(self, z):
    """Return z W^-1, from an LU decomposition."""
    return jnp.linalg.solve(self.weight[...].astype(z.dtype).T, z.T).T

  def log_abs_det(self, dtype):
    """Return log|det W|, from an LU decomposition."""
    return jnp.linalg.slogdet(self.weight[...].astype(dtype))[1]
