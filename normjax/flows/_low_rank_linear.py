"""Matrices that are diagonal plus low rank: products, determinants and inverses in O(C R)."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from normjax.flows._linear import Linear, check_size, matmul


class LowRankLinear(Linear):
  """Multiplies the last axis by a diagonal plus a matrix of low rank.

  z = x (diag(s) + U V^T),  U and V (C, R), s (C,),  x and z (B, C) or (B, H, W, C)
  log_det (B,) = H W (sum log|s| + log|det S|),  S = I + V^T diag(1 / s) U (R, R)
  x = y - (y U S^-1) V^T diag(1 / s),  y = z diag(1 / s)

  U starts at random, V at zero and s at one: a new layer is the identity. Like that of
  `InvertibleLinear`, the matrix is invertible but for a set of measure zero.

  Args:
    features: C.
    rank: R, at most C.
    param_dtype: dtype of the parameters.
    rngs: the stream `params`.

  Raises:
    ValueError: if `features` is below 1, or `rank` not 1 to `features`.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from normjax import flows
    >>> layer = flows.LowRankLinear(4, rank=1, rngs=nnx.Rngs(0))
    >>> layer.u[...], layer.v[...] = jnp.ones((4, 1)), jnp.ones((4, 1))
    >>> z, log_det = layer.forward(jnp.array([[1.0, 2.0, 3.0, 4.0]]))
    >>> z, round(float(log_det[0]), 4)  # log 5
    (Array([[11., 12., 13., 14.]], dtype=float32), 1.6094)
  """

  def __init__(
    self,
    features: int,
    *,
    rank: int = 1,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.features, self.bias = check_size(features), None
    if not 1 <= rank <= features:
      raise ValueError(f"rank must be 1 to features = {features}, got {rank}")
    init = nnx.initializers.normal(features**-0.5)
    self.u = nnx.Param(init(rngs.params(), (features, rank), param_dtype))
    self.v = nnx.Param(jnp.zeros((features, rank), param_dtype))
    self.s = nnx.Param(jnp.ones((features,), param_dtype))

  def _factors(self, dtype):
    """Return s (1, C), U, V^T and the small matrix S."""
    u, v, s = (p[...].astype(dtype) for p in (self.u, self.v, self.s))
    small = jnp.eye(u.shape[1], dtype=dtype) + matmul(v.T / s[None], u)
    return s[None], u, v.T, small

  def multiply(self, x):
    """Return x diag(s) + (x U) V^T."""
    s, u, v, _ = self._factors(x.dtype)
    return x * s + matmul(matmul(x, u), v)

  def solve(self, z):
    """Undo `multiply` by the identity of Woodbury."""
    s, u, v, small = self._factors(z.dtype)
    y = z / s
    return y - matmul(jnp.linalg.solve(small.T, matmul(y, u).T).T, v) / s

  def log_abs_det(self, dtype):
    """Return sum log|s| + log|det S|, by the matrix determinant lemma."""
    s, _, _, small = self._factors(dtype)
    return jnp.sum(jnp.log(jnp.abs(s))) + jnp.linalg.slogdet(small)[1]
