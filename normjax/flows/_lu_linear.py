"""Invertible matrices as products of triangular ones: determinant and inverse for free.

Glow (https://arxiv.org/abs/1807.03039) fixes the permutation and the signs of the diagonal that the
decomposition of its random orthogonal start has. The variant that libraries of neural spline flows
(https://arxiv.org/abs/1906.04032) use has a positive diagonal, no permutation and a bias.
"""

import math

import jax.numpy as jnp
from flax import nnx
from jax import nn
from jax.scipy.linalg import lu
from jax.typing import DTypeLike

from normjax.flows._linear import Linear, check_size, matmul, right_solve


class LULinear(Linear):
  """Multiplies the last axis by P L U, of which L and U are trained.

  z = x P (L + I) (U + diag(sign_s exp(log_s))),  x and z (B, C) or (B, H, W, C)
  log_det (B,) = H W sum(log_s)

  L (C, C) is strictly lower, U strictly upper triangular. They start as the decomposition of a
  random orthogonal matrix, whose permutation P and signs `sign_s` stay fixed.

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
    >>> kernel = flows.LULinear(4, rngs=nnx.Rngs(0)).kernel()
    >>> bool(abs(kernel @ kernel.T - jnp.eye(4)).max() < 1e-5)  # orthogonal at first
    True
  """

  def __init__(self, features: int, *, param_dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
    self.features, self.bias = check_size(features), None
    wide = jnp.promote_types(param_dtype, jnp.float32)
    start = nnx.initializers.orthogonal()(rngs.params(), (features, features), wide)
    permutation, lower, upper = lu(start)
    diagonal = jnp.diagonal(upper)
    # (x P)_j = x_i where P_ij = 1.
    self.order = nnx.Variable(jnp.argmax(permutation, axis=0))
    self.sign_s = nnx.Variable(jnp.sign(diagonal).astype(param_dtype))
    self.lower = nnx.Param(jnp.tril(lower, -1).astype(param_dtype))
    self.upper = nnx.Param(jnp.triu(upper, 1).astype(param_dtype))
    self.log_s = nnx.Param(jnp.log(jnp.abs(diagonal)).astype(param_dtype))

  def _upper(self, dtype):
    diagonal = self.sign_s[...].astype(dtype) * jnp.exp(self.log_s[...].astype(dtype))
    return jnp.triu(self.upper[...].astype(dtype), 1) + jnp.diag(diagonal)

  def _lower(self, dtype):
    return jnp.tril(self.lower[...].astype(dtype), -1) + jnp.eye(self.features, dtype=dtype)

  def multiply(self, x):
    """Return x P L U."""
    return matmul(matmul(x[:, self.order[...]], self._lower(x.dtype)), self._upper(x.dtype))

  def solve(self, z):
    """Return z U^-1 L^-1 P^T, by two substitutions."""
    x = right_solve(z, self._upper(z.dtype), lower=False)
    x = right_solve(x, self._lower(z.dtype), lower=True, unit=True)
    return x[:, jnp.argsort(self.order[...])]

  def log_abs_det(self, dtype):
    """Return sum(log_s)."""
    return jnp.sum(self.log_s[...].astype(dtype))


class SoftplusLULinear(Linear):
  """Applies L U to vectors, with a positive diagonal and a bias.

  z = L (U x) + bias for column vectors x, that is x U^T L^T + bias for our rows, (B, C) or
  (B, H, W, C);  log_det (B,) = H W sum(log diag(U)),  diag(U) = softplus(raw_diagonal) + epsilon

  L has ones on its diagonal. A new layer is the identity.

  Args:
    features: C.
    epsilon: the least diagonal entry of U, in [0, 1).
    use_bias: whether there is a bias.
    param_dtype: dtype of the parameters.
    rngs: not needed, since parameters start as constants; every module takes it.

  Raises:
    ValueError: if `features` is below 1 or `epsilon` out of range.

  Reference:
    Durkan, Bekasov, Murray, Papamakarios, "Neural Spline Flows", 2019, arXiv 1906.04032.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> z, log_det = flows.SoftplusLULinear(3).forward(jnp.array([[1.0, 2.0, 3.0]]))
    >>> bool(abs(z - jnp.array([[1.0, 2.0, 3.0]])).max() < 1e-6)
    True
  """

  def __init__(
    self,
    features: int,
    *,
    epsilon: float = 1e-3,
    use_bias: bool = True,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs | None = None,
  ):
    del rngs
    self.features, self.epsilon = check_size(features), check_epsilon(epsilon)
    self.bias = nnx.Param(jnp.zeros((features,), param_dtype)) if use_bias else None
    self.lower = nnx.Param(jnp.zeros((features, features), param_dtype))
    self.upper = nnx.Param(jnp.zeros((features, features), param_dtype))
    self.raw_diagonal = nnx.Param(jnp.full((features,), raw_of_one(epsilon), param_dtype))

  def _factors(self, dtype):
    """Return U^T and L^T."""
    diagonal = jnp.diag(softplus_diagonal(self.raw_diagonal[...].astype(dtype), self.epsilon))
    upper = jnp.triu(self.upper[...].astype(dtype), 1) + diagonal
    lower = jnp.tril(self.lower[...].astype(dtype), -1) + jnp.eye(self.features, dtype=dtype)
    return upper.T, lower.T

  def multiply(self, x):
    """Return x U^T L^T."""
    upper, lower = self._factors(x.dtype)
    return matmul(matmul(x, upper), lower)

  def solve(self, z):
    """Return z L^-T U^-T, by two substitutions."""
    upper, lower = self._factors(z.dtype)
    return right_solve(right_solve(z, lower, lower=False, unit=True), upper, lower=True)

  def log_abs_det(self, dtype):
    """Return sum(log diag(U))."""
    return jnp.sum(jnp.log(softplus_diagonal(self.raw_diagonal[...].astype(dtype), self.epsilon)))


class TriangularLinear(Linear):
  """Multiplies the last axis by one triangular matrix with a positive diagonal.

  z = x (T + diag(softplus(raw_diagonal) + epsilon)),  x and z (B, C) or (B, H, W, C)
  log_det (B,) = H W sum(log(softplus(raw_diagonal) + epsilon))

  T (C, C) is strictly upper triangular, so that output j is a function of inputs 0 to j, or
  strictly lower. A new layer is the identity.

  Args:
    features: C.
    lower: whether T is lower triangular.
    epsilon: the least diagonal entry, in [0, 1).
    param_dtype: dtype of the parameters.
    rngs: not needed, since parameters start as constants; every module takes it.

  Raises:
    ValueError: if `features` is below 1 or `epsilon` out of range.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> layer = flows.TriangularLinear(2)
    >>> layer.weight[...] = jnp.array([[9.0, 5.0], [9.0, 9.0]])  # only the 5 is read
    >>> round(float(layer.forward(jnp.array([[1.0, 2.0]]))[0][0, 1]), 4)
    7.0
  """

  def __init__(
    self,
    features: int,
    *,
    lower: bool = False,
    epsilon: float = 1e-3,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs | None = None,
  ):
    del rngs
    self.features, self.bias = check_size(features), None
    self.lower, self.epsilon = lower, check_epsilon(epsilon)
    self.weight = nnx.Param(jnp.zeros((features, features), param_dtype))
    self.raw_diagonal = nnx.Param(jnp.full((features,), raw_of_one(epsilon), param_dtype))

  def _matrix(self, dtype):
    weight = self.weight[...].astype(dtype)
    strict = jnp.tril(weight, -1) if self.lower else jnp.triu(weight, 1)
    return strict + jnp.diag(softplus_diagonal(self.raw_diagonal[...].astype(dtype), self.epsilon))

  def multiply(self, x):
    """Return x times the triangular matrix."""
    return matmul(x, self._matrix(x.dtype))

  def solve(self, z):
    """Undo `multiply` by substitution."""
    return right_solve(z, self._matrix(z.dtype), lower=self.lower)

  def log_abs_det(self, dtype):
    """Return the sum of the logs of the diagonal."""
    return jnp.sum(jnp.log(softplus_diagonal(self.raw_diagonal[...].astype(dtype), self.epsilon)))


def softplus_diagonal(raw, epsilon):
  """Return softplus(raw) + epsilon, a positive diagonal."""
  return nn.softplus(raw) + epsilon


def raw_of_one(epsilon: float) -> float:
  """Return the raw value whose `softplus_diagonal` is 1."""
  return math.log(math.expm1(1 - epsilon))


def check_epsilon(epsilon: float) -> float:
  """Return epsilon, or raise ValueError if it is out of range."""
  if not 0 <= epsilon < 1:
    raise ValueError(f"epsilon must be in [0, 1), got {epsilon}")
  return float(epsilon)
