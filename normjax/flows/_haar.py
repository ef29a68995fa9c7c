"""Haar wavelets as a flow layer: every square of pixels becomes its mean and three differences."""

import jax.numpy as jnp
import numpy as np

from normjax.flows._bijector import Bijector
from normjax.flows._checks import check_batch
from normjax.flows._linear import matmul
from normjax.flows._reshape import Squeeze
from normjax.flows._reversible import log_det_zeros
from normjax.flows._widened import widened

# Rows: the pixels of a square, (0, 0), (0, 1), (1, 0), (1, 1). Columns: what they are summed to.
_WAVELETS = 0.5 * np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])


class HaarSqueeze(Bijector):
  """Halves the sides of images by Haar wavelets, an orthogonal `Squeeze`.

  x (B, H, W, C) -> z (B, H / 2, W / 2, 4 C) = [mean | left - right | top - bottom | diagonals],
  each C channels: sums of a square's four pixels with signs, divided by 2;  log_det (B,) = 0

  Reference:
    Ardizzone, Lüth, Kruse, Rother, Köthe, "Guided image generation with conditional invertible
    neural networks", 2019, arXiv 1907.02392.

  Example:
    >>> from normjax import flows
    >>> z, _ = flows.HaarSqueeze().forward(jnp.ones((1, 2, 2, 1)))
    >>> z[0, 0, 0]
    Array([2., 0., 0., 0.], dtype=float32)
  """

  def __init__(self):
    self.squeeze = Squeeze(2, order="subpixel_major")

  @property
  def constant_logdet(self):
    """True: zero."""
    return True

  def forward(self, x, cond=None):
    """Return `(z, log_det)`, with log_det zero."""
    return _mix(self.squeeze.forward(x)[0], _WAVELETS), log_det_zeros(x)

  def inverse(self, z, cond=None):
    """Put the squares together again; return `(x, log_det)`."""
    check_batch("z", z)
    if z.ndim != 4 or z.shape[3] % 4:
      raise ValueError(f"z must have shape (b, h, w, c), c a multiple of 4, got {z.shape}")
    return self.squeeze.inverse(_mix(z, _WAVELETS.T))[0], log_det_zeros(z)


def _mix(z, matrix):
  """Multiply the four groups of channels by a matrix."""
  groups = jnp.moveaxis(z.reshape(*z.shape[:3], 4, -1), 3, -1)
  mixed = matmul(widened(groups).reshape(-1, 4), jnp.asarray(matrix, widened(z).dtype))
  return jnp.moveaxis(mixed.reshape(groups.shape), -1, 3).reshape(z.shape).astype(z.dtype)
