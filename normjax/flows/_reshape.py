"""Bijectors that only move entries: reshaping events, and trading image size for channels."""

import math
from collections.abc import Sequence
from typing import Literal

from normjax._sizes import check_sizes
from normjax.flows._bijector import Bijector
from normjax.flows._checks import check_batch, check_shape
from normjax.flows._reversible import log_det_zeros

# In which order the axes (b, i, dy, j, dx, c) of the cut image stand in the latent.
_ORDERS = {"channel_major": (0, 1, 3, 5, 2, 4), "subpixel_major": (0, 1, 3, 2, 4, 5)}


class Reshape(Bijector):
  """Gives events another shape.

  x (B, *shape) -> z (B, *latent_shape), entries in row-major order;  log_det (B,) = 0

  Args:
    shape: the event shape of data, a tuple or list of ints.
    latent_shape: that of latents, with as many entries.

  Raises:
    ValueError: if a shape is no sequence of positive ints, or their sizes differ.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> flows.Reshape((8, 8, 1), (64,)).forward(jnp.ones((2, 8, 8, 1)))[0].shape
    (2, 64)
  """

  def __init__(self, shape: Sequence[int], latent_shape: Sequence[int]):
    self.shape, self.latent_shape = check_shape(shape), check_shape(latent_shape)
    if math.prod(self.shape) != math.prod(self.latent_shape):
      raise ValueError(
        f"latent_shape must have as many entries as shape {self.shape}, got {self.latent_shape}"
      )

  @property
  def constant_logdet(self):
    """True: entries only move."""
    return True

  def forward(self, x, cond=None):
    """Return `(z, log_det)`, with log_det zero."""
    check_batch("x", x, self.shape)
    return x.reshape(-1, *self.latent_shape), log_det_zeros(x)

  def inverse(self, z, cond=None):
    """Give the first shape back; return `(x, log_det)`."""
    check_batch("z", z, self.latent_shape)
    return z.reshape(-1, *self.shape), log_det_zeros(z)


class Squeeze(Bijector):
  """Moves every square of pixels into the channels of one pixel.

  x (B, H, W, C) -> z (B, H / f, W / f, f^2 C), f = factor;  log_det (B,) = 0
  "channel_major": z[b, i, j, (c f + dy) f + dx] = x[b, f i + dy, f j + dx, c], Glow's order;
  "subpixel_major": the same entry is channel (dy f + dx) C + c.

  Args:
    factor: side of the squares, at least 1.
    order: which of the two orders the new channels have.

  Raises:
    ValueError: if `factor` or `order` is out of range.

  Reference:
    Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2016, arXiv 1605.08803.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> flows.Squeeze().forward(jnp.ones((2, 8, 8, 1)))[0].shape
    (2, 4, 4, 4)
  """

  def __init__(
    self,
    factor: int = 2,
    *,
    order: Literal["channel_major", "subpixel_major"] = "channel_major",
  ):
    check_sizes(factor=factor)
    if order not in _ORDERS:
      raise ValueError(f"order must be one of {sorted(_ORDERS)}, got {order!r}")
    self.factor, self.order = factor, order

  @property
  def constant_logdet(self):
    """True: entries only move."""
    return True

  def forward(self, x, cond=None):
    """Return `(z, log_det)`, with log_det zero."""
    check_batch("x", x)
    f = self.factor
    if x.ndim != 4 or x.shape[1] % f or x.shape[2] % f:
      raise ValueError(f"x must have shape (b, h, w, c), h and w multiples of {f}, got {x.shape}")
    b, height, width, c = x.shape
    z = x.reshape(b, height // f, f, width // f, f, c)  # axes (b, i, dy, j, dx, c)
    z = z.transpose(_ORDERS[self.order])
    return z.reshape(b, height // f, width // f, f * f * c), log_det_zeros(x)

  def inverse(self, z, cond=None):
    """Move the channels back into squares of pixels; return `(x, log_det)`."""
    check_batch("z", z)
    f = self.factor
    if z.ndim != 4 or z.shape[3] % f**2:
      raise ValueError(f"z must have shape (b, h, w, c), c a multiple of {f**2}, got {z.shape}")
    b, height, width, c = z.shape
    split = (c // f**2, f, f) if self.order == "channel_major" else (f, f, c // f**2)
    x = z.reshape(b, height, width, *split)
    x = x.transpose([_ORDERS[self.order].index(axis) for axis in range(6)])
    return x.reshape(b, f * height, f * width, c // f**2), log_det_zeros(z)
