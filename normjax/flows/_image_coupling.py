"""Couplings of images by a mask of their pixels and channels (Real NVP, arXiv 1605.08803).

What differs from the paper: the network is residual without batch normalization, and sees the mask
as further channels; the transform may be any element-wise one.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import ArrayLike, Int

from normjax._sizes import check_sizes
from normjax.blocks import Repeat
from normjax.flows._checks import check_batch, check_cond, check_shape
from normjax.flows._elementwise_coupling import mask_to_order
from normjax.flows._ordered_coupling import OrderedCoupling
from normjax.flows._transforms import Transform, apply_to_event


def checkerboard_mask(shape: Sequence[int], *, parity: int = 0) -> Int[np.ndarray, "h w c"]:
  """Make a mask in which pixels alternate like the squares of a chessboard.

  mask[i, j, c] = (i + j + parity) mod 2, 1 for pixels that are transformed

  Args:
    shape: (H, W, C).
    parity: 0 or 1; the other one transforms the other pixels.

  Returns:
    The mask (H, W, C) of zeros and ones.

  Raises:
    ValueError: if `shape` is not three positive ints, or `parity` neither 0 nor 1.

  Reference:
    Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2016, arXiv 1605.08803.

  Example:
    >>> checkerboard_mask((2, 2, 1))[..., 0].tolist()
    [[0, 1], [1, 0]]
  """
  height, width, channels = _check(shape, parity)
  board = (np.arange(height)[:, None] + np.arange(width)[None] + parity) % 2
  return np.broadcast_to(board[..., None], (height, width, channels)).copy()


def channel_mask(shape: Sequence[int], *, parity: int = 0) -> Int[np.ndarray, "h w c"]:
  """Make a mask that splits the channels in halves.

  mask[i, j, c] = parity for the first C // 2 channels, 1 - parity for the others; 1 is transformed

  Args:
    shape: (H, W, C), C at least 2.
    parity: 0 or 1; the other one transforms the other half.

  Returns:
    The mask (H, W, C) of zeros and ones.

  Raises:
    ValueError: if `shape` is not three positive ints, C is 1, or `parity` neither 0 nor 1.

  Reference:
    Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2016, arXiv 1605.08803.

  Example:
    >>> channel_mask((1, 1, 4)).tolist()
    [[[0, 0, 1, 1]]]
  """
  height, width, channels = _check(shape, parity)
  if channels < 2:
    raise ValueError(f"shape must have at least two channels to split, got {tuple(shape)}")
  last = (np.arange(channels) >= channels // 2).astype(int)
  return np.broadcast_to(last ^ parity, (height, width, channels)).copy()


class ImageCoupling(OrderedCoupling):
  """Transforms the masked entries of images, with parameters that a network computes from the rest.

  y = x where mask is 0, transform(x; net((1 - mask) x, mask, cond)) where it is 1, entry by entry,
  x and y (B, H, W, C), cond (B, D);  log_det (B,) = sum of the entries' log|dy / dx|

  The network is conv3, `depth` blocks h + conv3(relu(conv3(relu(h)))), relu, conv1; the last kernel
  is zero at first.

  Args:
    transform: what happens to each transformed entry.
    mask: (H, W, C) of zeros and ones, from `checkerboard_mask` or `channel_mask`, say.
    width: channels of the network.
    depth: number of its residual blocks, scanned.
    cond_dim: D, or None; the condition stands in further channels of the network's input.
    param_dtype: dtype of the parameters.
    rngs: the stream `params`.

  Raises:
    ValueError: if `mask` does not hold zeros and ones, both of them, in three axes, or a size is
      below 1.

  Reference:
    Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2016, arXiv 1605.08803.

  Example:
    >>> from normjax import flows
    >>> mask = flows.checkerboard_mask((4, 4, 1))
    >>> layer = ImageCoupling(flows.AffineTransform("tanh"), mask, width=8, rngs=nnx.Rngs(0))
    >>> z, log_det = layer.forward(jnp.ones((2, 4, 4, 1)))  # a new one is the identity
    >>> z.shape, log_det
    ((2, 4, 4, 1), Array([0., 0.], dtype=float32))
  """

  def __init__(
    self,
    transform: Transform,
    mask: ArrayLike,
    *,
    width: int = 64,
    depth: int = 2,
    cond_dim: int | None = None,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.shape = np.shape(mask)
    if len(self.shape) != 3:
      raise ValueError(f"mask must have shape (height, width, channels), got {self.shape}")
    self._set_order(*mask_to_order(mask))
    check_sizes(width=width, depth=depth, cond_dim=cond_dim)
    self.elementwise, self.cond_dim = transform, cond_dim
    self.network = ConvNetwork(
      2 * self.shape[-1] + (cond_dim or 0), self.shape[-1] * transform.num_parameters, width=width,
      depth=depth, param_dtype=param_dtype, rngs=rngs,
    )  # fmt: skip

  def split(self, x):
    """Return the conditioning and the transformed entries, (b, n) each."""
    check_batch("x", x, self.shape)
    return super().split(x.reshape(x.shape[0], -1))

  def join(self, x1, x2):
    """Undo `split`."""
    return super().join(x1, x2).reshape(-1, *self.shape)

  def conditioner(self, x1, cond):
    """Return the raw parameters (b, transformed entries, parameters of one)."""
    check_cond(cond, x1.shape[0], self.cond_dim)
    missing = (x1.shape[0], self.order.size - self.num_conditioning)
    zeros, ones = jnp.zeros(missing, x1.dtype), jnp.ones(missing, x1.dtype)
    channels = [self.join(x1, zeros), self.join(jnp.zeros_like(x1), ones)]
    if self.cond_dim is not None and cond is not None:
      spread = jnp.broadcast_to(cond[:, None, None], (x1.shape[0], *self.shape[:2], self.cond_dim))
      channels.append(spread.astype(x1.dtype))
    raw = self.network(jnp.concatenate(channels, axis=-1))
    raw = raw.reshape(x1.shape[0], self.order.size, self.elementwise.num_parameters)
    return raw[:, self.order[...][self.num_conditioning :]]

  def transform(self, x2, theta):
    """Return `(y2, log_det)`."""
    return apply_to_event(self.elementwise.forward, x2, theta)

  def untransform(self, y2, theta):
    """Undo `transform`."""
    return apply_to_event(self.elementwise.inverse, y2, theta)


class ConvBlock(nnx.Module):
  """h + conv3(relu(conv3(relu(h))))."""

  def __init__(self, width, param_dtype, rngs):
    make = lambda: nnx.Conv(width, width, (3, 3), param_dtype=param_dtype, rngs=rngs)
    self.conv0, self.conv1 = make(), make()

  def __call__(self, h):
    return h + self.conv1(jax.nn.relu(self.conv0(jax.nn.relu(h))))


class ConvNetwork(nnx.Module):
  """Maps images (b, h, w, n) to (b, h, w, m); zero at first."""

  def __init__(self, inputs, outputs, *, width, depth, param_dtype, rngs):
    options = {"param_dtype": param_dtype, "rngs": rngs}
    self.first = nnx.Conv(inputs, width, (3, 3), **options)
    self.blocks = Repeat(lambda rngs: ConvBlock(width, param_dtype, rngs), depth, rngs=rngs)
    self.last = nnx.Linear(width, outputs, kernel_init=nnx.initializers.zeros, **options)

  def __call__(self, x):
    return self.last(jax.nn.relu(self.blocks(self.first(x))))


def _check(shape, parity) -> tuple[int, ...]:
  shape = check_shape(shape)
  if len(shape) != 3:
    raise ValueError(f"shape must be (height, width, channels), got {shape}")
  if parity not in (0, 1):
    raise ValueError(f"parity must be 0 or 1, got {parity}")
  return shape
