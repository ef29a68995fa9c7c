"""What all linear bijectors share: they act on the last axis, at every position alike.

On images (B, H, W, C) that makes them the invertible 1x1 convolutions of Glow, on vectors (B, C)
dense layers. How the matrix is parametrized is what the subclasses differ in.
"""

import abc
import math

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from normjax.flows._bijector import Bijector
from normjax.flows._checks import check_features
from normjax.flows._reversible import log_det_zeros
from normjax.flows._safe_length import direction_and_length
from normjax.flows._widened import widened


class Linear(Bijector):
  """Multiplies the last axis by an invertible matrix: z = x W + bias, log_det = H W log|det W|.

  A subclass sets `features` and `bias`, a Param (C,) or None, and implements the abstract methods
  on rows (N, C), which come in float32 or wider.
  """

  features: int
  bias: nnx.Param | None

  @abc.abstractmethod
  def multiply(self, x: Float[Array, "n c"]) -> Float[Array, "n c"]:
    """Return x W."""

  @abc.abstractmethod
  def solve(self, z: Float[Array, "n c"]) -> Float[Array, "n c"]:
    """Return z W^-1."""

  @abc.abstractmethod
  def log_abs_det(self, dtype) -> Float[Array, ""]:
    """Return log|det W|."""

  def kernel(self, dtype=jnp.float32) -> Float[Array, "c c"]:
    """Return the matrix W, rows for inputs and columns for outputs."""
    return self.multiply(jnp.eye(self.features, dtype=dtype))

  @property
  def constant_logdet(self):
    """True: that of a matrix."""
    return True

  def forward(self, x, cond=None):
    """Return `(x W + bias, log_det)`."""
    return self._affine(x), self._log_det(x)

  def inverse(self, z, cond=None):
    """Return `((z - bias) W^-1, log_det)`."""
    return self._undone(z), -self._log_det(z)

  def forward_varying(self, x, cond=None):
    """Return `(x W + bias, 0)`, without the determinant."""
    return self._affine(x), log_det_zeros(x)

  def inverse_varying(self, z, cond=None):
    """Return `((z - bias) W^-1, 0)`, without the determinant."""
    return self._undone(z), log_det_zeros(z)

  def _affine(self, x):
    check_features("x", x, self.features)
    z = self.multiply(self._rows(x))
    if self.bias is not None:
      z = z + self.bias[...].astype(z.dtype)[None]
    return z.reshape(x.shape).astype(x.dtype)

  def _undone(self, z):
    check_features("z", z, self.features)
    rows = self._rows(z)
    if self.bias is not None:
      rows = rows - self.bias[...].astype(rows.dtype)[None]
    return self.solve(rows).reshape(z.shape).astype(z.dtype)

  def _rows(self, x):
    return widened(x).reshape(-1, self.features)

  def _log_det(self, x):
    log_abs_det = self.log_abs_det(log_det_zeros(x).dtype)
    return jnp.broadcast_to(math.prod(x.shape[1:-1]) * log_abs_det, x.shape[:1])


def check_size(features: int) -> int:
  """Return the number of features, or raise ValueError if it is below 1."""
  if features < 1:
    raise ValueError(f"features must be at least 1, got {features}")
  return features


def matmul(a: Float[Array, "n c"], b: Float[Array, "c d"]) -> Float[Array, "n d"]:
  """Return a @ b in the full precision of its dtype: half of it would not invert."""
  return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def right_solve(
  z: Float[Array, "n c"], matrix: Float[Array, "c c"], *, lower: bool, unit: bool = False
) -> Float[Array, "n c"]:
  """Return z T^-1 of a triangular T, by substitution; only its triangle is read."""
  return solve_triangular(matrix, z.T, trans=1, lower=lower, unit_diagonal=unit).T


def householder_product(vectors: Float[Array, "k c"]) -> Float[Array, "c c"]:
  """Return the orthogonal prod_i (I - 2 v_i v_i^T / |v_i|^2), the first factor leftmost.

  A zero vector reflects nothing.
  """

  def reflect(q, normal):
    return q - 2 * matmul(q, normal[:, None]) * normal[None], None

  start = jnp.eye(vectors.shape[1], dtype=vectors.dtype)
  return lax.scan(reflect, start, direction_and_length(vectors)[0])[0]
