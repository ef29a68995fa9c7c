"""The discrete cosine transform as a flow layer: a fixed orthogonal map of one axis."""

import jax.numpy as jnp
import numpy as np

from normjax.flows._bijector import Bijector
from normjax.flows._checks import check_batch
from normjax.flows._linear import matmul
from normjax.flows._reversible import log_det_zeros
from normjax.flows._widened import widened


class DiscreteCosine(Bijector):
  """Applies the orthonormal discrete cosine transform along one axis.

  z_k = c_k sum_n x_n cos(pi (2 n + 1) k / (2 N)),  c_0 = sqrt(1 / N), others sqrt(2 / N)
  x and z (B, ...), N entries on the axis;  log_det (B,) = 0

  Args:
    axis: which axis, not that of the batch.

  Raises:
    ValueError: if `axis` is 0.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> z, _ = flows.DiscreteCosine().forward(jnp.ones((1, 4)))
    >>> z.round(3) + 0.0
    Array([[2., 0., 0., 0.]], dtype=float32)
  """

  def __init__(self, *, axis: int = -1):
    if axis == 0:
      raise ValueError("axis must not be 0, the axis of the batch, got 0")
    self.axis = axis

  @property
  def constant_logdet(self):
    """True: zero."""
    return True

  def forward(self, x, cond=None):
    """Return `(z, log_det)`, with log_det zero."""
    return self._multiply("x", x, lambda matrix: matrix.T)

  def inverse(self, z, cond=None):
    """Apply the transposed matrix; return `(x, log_det)`."""
    return self._multiply("z", z, lambda matrix: matrix)

  def _multiply(self, name, x, of):
    check_batch(name, x)
    axis = self.axis if self.axis > 0 else x.ndim + self.axis
    if not 0 < axis < x.ndim:
      raise ValueError(f"{name} must have shape (b, ...) with an axis {self.axis}, got {x.shape}")
    rows = jnp.moveaxis(widened(x), axis, -1)
    matrix = jnp.asarray(of(_cosines(x.shape[axis])), rows.dtype)
    z = matmul(rows.reshape(-1, x.shape[axis]), matrix).reshape(rows.shape)
    return jnp.moveaxis(z, -1, axis).astype(x.dtype), log_det_zeros(x)


def _cosines(n: int) -> np.ndarray:
  """Return the matrix C of z = C x."""
  k, place = np.arange(n)[:, None], np.arange(n)[None]
  matrix = np.sqrt(2 / n) * np.cos(np.pi * (2 * place + 1) * k / (2 * n))
  matrix[0] /= np.sqrt(2)
  return matrix
