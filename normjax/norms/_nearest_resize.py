"""Nearest-neighbour resizing of maps: the source of row i is floor(i * rows / new rows).

What differs from `jax.image.resize(method="nearest")`: that one looks from the centers of pixels
and picks other sources when it makes a map smaller, which is the usual case for a layout or a mask
beside features. The implementations of SPADE and Region Normalization take the floor; they compute
the ratio in float32 and are off by one for a few pairs of sizes (14 to 46), where we are exact.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Shaped


def nearest_resize(x: ArrayLike, size: Sequence[int]) -> Shaped[Array, "b *size c"]:
  """Resize the spatial axes of a batch of maps by copying nearest entries.

  y[b, i, j, c] = x[b, floor(i * h / H), floor(j * w / W), c], with x (b, h, w, c) -> y (b, H, W, c)
  and `size` (H, W); other numbers of spatial axes work alike.

  Args:
    x: maps of any dtype, with the batch first and channels last.
    size: new size of each spatial axis.

  Returns:
    The resized maps.

  Raises:
    ValueError: if size does not have one positive int per spatial axis, or x has none.

  Reference:
    standard.

  Example:
    >>> x = jnp.arange(5.0).reshape(1, 5, 1)
    >>> print(nearest_resize(x, (3,)).ravel(), nearest_resize(x, (7,)).ravel())
    [0. 1. 3.] [0. 0. 1. 2. 2. 3. 4.]
  """
  x = jnp.asarray(x)
  if len(size) != x.ndim - 2 or x.ndim < 3 or any(n < 1 for n in (*size, *x.shape[1:-1])):
    raise ValueError(
      f"size must be one positive int per spatial axis of x (b, *spatial, c), got {tuple(size)} "
      f"for shape {x.shape}"
    )
  for axis, new in enumerate(size, 1):
    old = x.shape[axis]
    if old != new:
      x = jnp.take(x, np.arange(new) * old // new, axis, mode="clip")
  return x
