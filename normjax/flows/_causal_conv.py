"""Convolutions padded on one corner, and their inverses in H + W - 1 sequential steps.

A pixel of such a convolution depends on itself and on pixels nearer the padded corner only: the
linear system is triangular, and substitution solves it (Nagar, Dufraisse, Varma, arXiv 2107.01358;
Hoogeboom et al., arXiv 1901.11137). The authors' code substitutes number by number; here all pixels
of an anti-diagonal are solved by one matrix product, with the pixel's own tap multiplied into the
right-hand side and into the other taps beforehand. With many channels or a large batch a CPU
goes row by row instead: more steps, but no work on the idle ends of the diagonals.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from normjax.flows._checks import check_batch

# Axes of (b, h, w, c) along which an image is flipped so that its padding comes to the top left.
CORNERS = {"top_left": (), "top_right": (2,), "bottom_left": (1,), "bottom_right": (1, 2)}
_LAYOUT = ("NHWC", "HWIO", "NHWC")
# b c^3 from which a CPU of two cores is faster row by row. At 32x32 diagonals win by 1.6 at
# (b, c) = (1, 12) and by 1.1 at (16, 12), rows by 1.1 at (64, 12), 1.4 at (1, 48), 2.6 at (16, 48).
_ROWS_FROM = 50_000


class Order(NamedTuple):
  """Which pixels a pixel depends on, and so the order in which they are solved.

  Flipped along `flips`, an image's pixel depends on itself, on pixels to its left in its row, and
  in rows above on pixels up to `right` taps to its right. The kernel's last row is that of the
  pixel itself, whose own tap is kernel[-1, -1 - right]; the taps after it must be zero.
  """

  flips: tuple[int, ...]
  right: int = 0
  dilation: int = 1

  def own(self, kernel):
    """Return the (c, c) tap of the pixel itself."""
    return kernel[-1, kernel.shape[1] - 1 - self.right]

  def opposite(self):
    """Return the order of the transposed system."""
    return self._replace(flips=tuple(axis for axis in (1, 2) if axis not in self.flips))


def causal_conv(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "k k c c"],
  *,
  corner: str = "top_left",
  dilation: int = 1,
) -> Float[Array, "b h w c"]:
  """Convolve images that are padded with zeros on the two sides of one corner.

  z[i, j] = sum_{p, q = 0..k-1} x[i - p d, j - q d] K[k-1-p, k-1-q],  x and z (b, h, w, c), K
  (k, k, c, c) = (height, width, in, out), d = dilation, x = 0 outside;  for the other corners image
  and kernel are flipped together: "top_right" has j + q d, "bottom_left" i + p d.

  Whatever the corner, K[k-1, k-1] is the tap of the pixel itself: the map is invertible if and only
  if that matrix T is, and log|det dz/dx| = h w log|det T|. Computed in float32 or wider at the
  highest precision.

  Args:
    x: images (b, h, w, c).
    kernel: (k, k, c, c).
    corner: the padded one: "top_left", "top_right", "bottom_left" or "bottom_right".
    dilation: distance between taps, at least 1.

  Returns:
    (b, h, w, c) of the dtype of `x`.

  Raises:
    ValueError: if the shapes do not fit, images are no floats, or `corner` or `dilation` is out of
      range.

  Reference:
    Nagar, Dufraisse, Varma, "CInC Flow: Characterizable Invertible 3x3 Convolution", 2021,
    arXiv 2107.01358.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> z = flows.causal_conv(jnp.ones((1, 2, 3, 1)), jnp.ones((2, 2, 1, 1)))
    >>> z[0, :, :, 0]
    Array([[1., 2., 2.],
           [2., 4., 4.]], dtype=float32)
  """
  order = _check("x", x, kernel, corner, dilation)
  return ordered_conv(*_widen(x, kernel), order).astype(x.dtype)


def causal_conv_inverse(
  z: Float[Array, "b h w c"],
  kernel: Float[Array, "k k c c"],
  *,
  corner: str = "top_left",
  dilation: int = 1,
) -> Float[Array, "b h w c"]:
  """Invert `causal_conv` by substitution over anti-diagonals.

  x[i, j] = (z[i, j] - sum_{(p, q) != 0} x[i - p d, j - q d] K[k-1-p, k-1-q]) T^-1,  x and z
  (b, h, w, c), T = K[k-1, k-1]: h + w - 1 sequential steps, each for all pixels of one i + j.

  Derivatives of any order and both modes are implicit: the tangent solves the same system, the
  cotangent its transpose (the same substitution from the opposite corner with the channels of K
  transposed), so that no step is stored. Errors grow along the image like products of the taps:
  large taps beside T make the inverse ill-conditioned however good T is. A singular T gives
  infinities or NaN.

  Args:
    z: what `causal_conv` returned, (b, h, w, c).
    kernel: its kernel (k, k, c, c).
    corner: its corner.
    dilation: its dilation.

  Returns:
    (b, h, w, c) of the dtype of `z`; computed in float32 or wider at the highest precision.

  Raises:
    ValueError: if the shapes do not fit, images are no floats, or `corner` or `dilation` is out of
      range.

  Reference:
    Nagar, Dufraisse, Varma, "CInC Flow: Characterizable Invertible 3x3 Convolution", 2021,
    arXiv 2107.01358.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> z = jnp.array([[1.0, 2.0, 2.0], [2.0, 4.0, 4.0]]).reshape(1, 2, 3, 1)
    >>> flows.causal_conv_inverse(z, jnp.ones((2, 2, 1, 1)))[0, :, :, 0]
    Array([[1., 1., 1.],
           [1., 1., 1.]], dtype=float32)
  """
  order = _check("z", z, kernel, corner, dilation)
  return ordered_conv_inverse(*_widen(z, kernel), order).astype(z.dtype)


def ordered_conv(x, kernel, order: Order):
  """Convolve with a kernel whose taps reach back in `order` only."""
  height, width, d = kernel.shape[0], kernel.shape[1], order.dilation
  padding = (((height - 1) * d, 0), ((width - 1 - order.right) * d, order.right * d))
  z = _conv(jnp.flip(x, order.flips), kernel, padding, d)
  return jnp.flip(z, order.flips)


def ordered_conv_inverse(z, kernel, order: Order):
  """Invert `ordered_conv`, with implicit derivatives."""
  return jax.lax.custom_linear_solve(
    lambda x: ordered_conv(x, kernel, order),
    z,
    solve=lambda _, z: _substitute(z, kernel, order),
    transpose_solve=lambda _, z: _substitute(z, kernel.swapaxes(2, 3), order.opposite()),
  )


def _substitute(z, kernel, order):
  """Solve x * kernel = z for x, pixel after pixel in `order`."""
  inverse_tap = jnp.linalg.inv(order.own(kernel))
  kernel = -_matmul(kernel, inverse_tap)
  z = _matmul(jnp.flip(z, order.flips), inverse_tap)  # now x = z + (taps of pixels before) * x
  b, _, _, c = z.shape
  by_rows = jax.default_backend() == "cpu" and b * c**3 >= _ROWS_FROM and kernel.shape[0] > 1
  x = (_by_rows if by_rows else _by_diagonals)(z, kernel, order)
  return jnp.flip(x, order.flips)


def _by_diagonals(z, kernel, order):
  """Return x (b, h, w, c) = z + taps * x, all pixels of one s = j + (1 + right) i at once."""
  b, h, w, c = z.shape
  d, stride = order.dilation, 1 + order.right
  height, width = kernel.shape[:2]
  own = width - 1 - order.right
  # Pixel (i, j) needs (i - p, j - q) for each of these (p, q), and it must lie inside the image.
  taps = {
    ((height - 1 - i) * d, (own - j) * d): kernel[i, j]
    for i in range(height)
    for j in range(width if i < height - 1 else own)
  }
  taps = {(p, q): tap for (p, q), tap in taps.items() if p < h and abs(q) < w}
  if not taps:
    return z
  lags = {(p, q): p * stride + q for p, q in taps}  # how many steps earlier it was solved
  reach, above = max(lags.values()), max(p for p, _ in taps)
  stacked = jnp.concatenate(list(taps.values()))
  skewed = _skew(z.transpose(1, 2, 0, 3), stride)
  steps = skewed.shape[0]
  column = jnp.arange(steps)[:, None] - stride * jnp.arange(h)[None]
  inside = ((column >= 0) & (column < w)).reshape(steps, 1, h, 1, 1)

  def step(solved, now):
    s, z_s, inside_s = now
    # Row s + reach, entry above + i of `solved` is the pixel of row i with index s; zeros around.
    past = lambda p, lag: (s + reach - lag, above - p, 0, 0)
    known = [jax.lax.dynamic_slice(solved, past(p, lags[p, q]), z_s.shape) for p, q in taps]
    x_s = z_s + _matmul(jnp.concatenate(known, axis=-1), stacked)
    x_s = jnp.where(inside_s, x_s, jnp.zeros_like(x_s))
    return jax.lax.dynamic_update_slice(solved, x_s, past(0, 0)), None

  solved = jnp.zeros((reach + steps, above + h, b, c), z.dtype)
  solved, _ = jax.lax.scan(step, solved, (jnp.arange(steps), skewed[:, None], inside))
  return _unskew(solved[reach:, above:], w).transpose(2, 0, 1, 3)


def _by_rows(z, kernel, order):
  """Return the same x row by row: the rows above by a convolution, then pixel by pixel."""
  b, _, w, c = z.shape
  d, right = order.dilation, order.right
  sides = (kernel.shape[1] - 1 - right) * d, right * d

  def row(above, z_row):
    # Taps of rows i - (k-1) d, ..., i - d of the rows i - (k-1) d, ..., i - 1 that are carried.
    known = _conv(above[:, : above.shape[1] - d + 1], kernel[:-1], ((0, 0), sides), d)
    x_row = _by_diagonals(z_row[:, None] + known, kernel[-1:], order)
    return jnp.concatenate([above, x_row], axis=1)[:, 1:], x_row[:, 0]

  above = jnp.zeros((b, (kernel.shape[0] - 1) * d, w, c), z.dtype)
  _, x = jax.lax.scan(row, above, z.swapaxes(0, 1))
  return x.swapaxes(0, 1)


def _skew(rows, stride):
  """Shift row i of (h, w, ...) right by stride * i; return (w + stride (h - 1), h, ...)."""
  h, w = rows.shape[:2]
  steps = w + stride * (h - 1)
  padded = jnp.pad(rows, ((0, 0), (0, steps + stride - w), (0, 0), (0, 0)))
  # Read in rows that are shorter by `stride`, each begins `stride` entries earlier.
  flat = padded.reshape(-1, *rows.shape[2:])[: h * steps]
  return flat.reshape(h, steps, *rows.shape[2:]).swapaxes(0, 1)


def _unskew(skewed, w):
  """Undo `_skew`."""
  steps, h = skewed.shape[:2]
  flat = skewed.swapaxes(0, 1).reshape(h * steps, *skewed.shape[2:])
  stride = (steps - w) // (h - 1) if h > 1 else 0
  flat = jnp.pad(flat, ((0, h * stride), (0, 0), (0, 0)))
  return flat.reshape(h, steps + stride, *skewed.shape[2:])[:, :w]


def _conv(x, kernel, padding, dilation):
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), padding, rhs_dilation=(dilation, dilation), dimension_numbers=_LAYOUT,
    precision=jax.lax.Precision.HIGHEST,
  )  # fmt: skip


def _matmul(a, b):
  return jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)


def _widen(x, kernel) -> tuple[Array, Array]:
  dtype = jnp.promote_types(jnp.result_type(x, kernel), jnp.float32)
  return x.astype(dtype), kernel.astype(dtype)


def _check(name, x, kernel, corner, dilation):
  if kernel.ndim != 4 or kernel.shape[0] != kernel.shape[1] or kernel.shape[2] != kernel.shape[3]:
    raise ValueError(f"kernel must have shape (k, k, c, c), got {kernel.shape}")
  if min(kernel.shape) < 1:
    raise ValueError(f"kernel must have k >= 1 and c >= 1, got shape {kernel.shape}")
  if x.ndim != 4 or x.shape[-1] != kernel.shape[-1] or min(x.shape) < 1:
    raise ValueError(
      f"{name} must have shape (b, h, w, {kernel.shape[-1]}), none of it zero, got {x.shape}"
    )
  check_batch(name, x)
  return Order(corner_flips(corner), dilation=check_dilation(dilation))


def corner_flips(corner):
  """Return the axes to flip for a corner's name, or raise."""
  if corner not in CORNERS:
    raise ValueError(f"corner must be one of {sorted(CORNERS)}, got {corner!r}")
  return CORNERS[corner]


def check_dilation(dilation):
  """Return `dilation`, or raise unless it is an int of at least 1."""
  if not isinstance(dilation, int) or dilation < 1:
    raise ValueError(f"dilation must be an int of at least 1, got {dilation!r}")
  return dilation
