"""Matrices made of Householder reflections: orthogonal ones, QR and singular value decompositions.

What differs from implementations that reflect each input: the orthogonal matrix is multiplied out
once per call, so images cost one product, however many reflections there are.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from normjax._sizes import check_sizes
from normjax.flows._linear import Linear, check_size, householder_product, matmul, right_solve


class HouseholderLinear(Linear):
  """Multiplies the last axis by an orthogonal matrix.

  z = x Q,  Q = prod_i (I - 2 v_i v_i^T / |v_i|^2),  x and z (B, C) or (B, H, W, C);  log_det = 0

  Args:
    features: C.
    num_reflections: how many vectors v there are; None: C, with which Q can be every orthogonal
      matrix of its determinant, (-1)^num_reflections.
    param_dtype: dtype of the parameters.
    rngs: the stream `params`; the v_i start as normal numbers, so Q is random.

  Raises:
    ValueError: if `features` or `num_reflections` is below 1.

  Reference:
    Tomczak, Welling, "Improving Variational Auto-Encoders using Householder Flow", 2016,
    arXiv 1611.09630.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from normjax import flows
    >>> q = flows.HouseholderLinear(4, rngs=nnx.Rngs(0)).kernel()
    >>> bool(abs(q @ q.T - jnp.eye(4)).max() < 1e-5)
    True
  """

  def __init__(
    self,
    features: int,
    *,
    num_reflections: int | None = None,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.features, self.bias = check_size(features), None
    self.vectors = _vectors(features, num_reflections, param_dtype, rngs)

  def _q(self, dtype):
    return householder_product(self.vectors[...].astype(dtype))

  def multiply(self, x):
    """Return x Q."""
    return matmul(x, self._q(x.dtype))

  def solve(self, z):
    """Return z Q^T."""
    return matmul(z, self._q(z.dtype).T)

  def log_abs_det(self, dtype):
    """Return zero."""
    return jnp.zeros((), dtype)


class QRLinear(Linear):
  """Multiplies the last axis by Q R, an orthogonal times an upper triangular matrix.

  z = x Q (U + diag(s)),  Q as in `HouseholderLinear`, U (C, C) strictly upper triangular, s (C,),
  x and z (B, C) or (B, H, W, C);  log_det (B,) = H W sum(log|s|)

  U starts at 0 and s at 1. Every invertible matrix has this form.

  Args:
    features: C.
    num_reflections: as in `HouseholderLinear`.
    param_dtype: dtype of the parameters.
    rngs: the stream `params`.

  Raises:
    ValueError: if `features` or `num_reflections` is below 1.

  Reference:
    Hoogeboom, van den Berg, Welling, "Emerging Convolutions for Generative Normalizing Flows",
    2019, arXiv 1901.11137.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from normjax import flows
    >>> layer = flows.QRLinear(4, rngs=nnx.Rngs(0))
    >>> layer.forward(jnp.ones((1, 4)))[1]
    Array([0.], dtype=float32)
  """

  def __init__(
    self,
    features: int,
    *,
    num_reflections: int | None = None,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.features, self.bias = check_size(features), None
    self.vectors = _vectors(features, num_reflections, param_dtype, rngs)
    self.upper = nnx.Param(jnp.zeros((features, features), param_dtype))
    self.s = nnx.Param(jnp.ones((features,), param_dtype))

  def _factors(self, dtype):
    upper = jnp.triu(self.upper[...].astype(dtype), 1) + jnp.diag(self.s[...].astype(dtype))
    return householder_product(self.vectors[...].astype(dtype)), upper

  def multiply(self, x):
    """Return x Q R."""
    q, upper = self._factors(x.dtype)
    return matmul(matmul(x, q), upper)

  def solve(self, z):
    """Return z R^-1 Q^T."""
    q, upper = self._factors(z.dtype)
    return matmul(right_solve(z, upper, lower=False), q.T)

  def log_abs_det(self, dtype):
    """Return sum(log|s|)."""
    return jnp.sum(jnp.log(jnp.abs(self.s[...].astype(dtype))))


class SVDLinear(Linear):
  """Multiplies the last axis by U diag(exp(log_s)) V^T, with orthogonal U and V.

  z = x U diag(exp(log_s)) V^T,  U and V as Q in `HouseholderLinear`, x and z (B, C) or
  (B, H, W, C);  log_det (B,) = H W sum(log_s)

  log_s (C,) starts at 0: the matrix is orthogonal at first.

  Args:
    features: C.
    num_reflections: as in `HouseholderLinear`, of U and of V.
    param_dtype: dtype of the parameters.
    rngs: the stream `params`.

  Raises:
    ValueError: if `features` or `num_reflections` is below 1.

  Reference:
    Zhang, Lei, Dhillon, "Stabilizing Gradients for Deep Neural Networks via Efficient SVD
    Parameterization", 2018, arXiv 1803.09327.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from normjax import flows
    >>> layer = flows.SVDLinear(4, rngs=nnx.Rngs(0))
    >>> layer.log_s[...] = jnp.full((4,), 0.5)
    >>> layer.forward(jnp.ones((1, 4)))[1]
    Array([2.], dtype=float32)
  """

  def __init__(
    self,
    features: int,
    *,
    num_reflections: int | None = None,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.features, self.bias = check_size(features), None
    self.u_vectors = _vectors(features, num_reflections, param_dtype, rngs)
    self.v_vectors = _vectors(features, num_reflections, param_dtype, rngs)
    self.log_s = nnx.Param(jnp.zeros((features,), param_dtype))

  def _factors(self, dtype):
    u, v = (householder_product(p[...].astype(dtype)) for p in (self.u_vectors, self.v_vectors))
    return u, self.log_s[...].astype(dtype)[None], v

  def multiply(self, x):
    """Return x U diag(exp(log_s)) V^T."""
    u, log_s, v = self._factors(x.dtype)
    return matmul(matmul(x, u) * jnp.exp(log_s), v.T)

  def solve(self, z):
    """Return z V diag(exp(-log_s)) U^T."""
    u, log_s, v = self._factors(z.dtype)
    return matmul(matmul(z, v) * jnp.exp(-log_s), u.T)

  def log_abs_det(self, dtype):
    """Return sum(log_s)."""
    return jnp.sum(self.log_s[...].astype(dtype))


def _vectors(features, num_reflections, param_dtype, rngs):
  check_sizes(num_reflections=num_reflections)
  count = features if num_reflections is None else num_reflections
  return nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), (count, features), param_dtype))
