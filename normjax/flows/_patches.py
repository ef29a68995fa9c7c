"""Images as sequences of square patches, row by row, and back."""

from collections.abc import Sequence

from jaxtyping import Array, Float


def check_patches(shape: Sequence[int], patch_size: int) -> tuple[int, int, int]:
  """Return `shape` as a tuple, or raise if it is no image's or the patches do not tile it."""
  if len(shape) != 3 or min(shape) < 1:
    raise ValueError(f"shape must be (height, width, channels), got {tuple(shape)}")
  height, width, channels = shape
  if patch_size < 1 or height % patch_size or width % patch_size:
    raise ValueError(f"patch_size must divide height {height} and width {width}, got {patch_size}")
  return height, width, channels


def to_patches(images: Float[Array, "b h w c"], patch_size: int) -> Float[Array, "b n f"]:
  """Return the patches, each with its entries in the order (row, column, channel)."""
  b, height, width, channels = images.shape
  grid = (height // patch_size, width // patch_size)
  x = images.reshape(b, grid[0], patch_size, grid[1], patch_size, channels)
  x = x.swapaxes(2, 3)  # (b, rows, columns, row in patch, column in patch, channel)
  return x.reshape(b, grid[0] * grid[1], -1)


def from_patches(
  patches: Float[Array, "b n f"], shape: tuple[int, int, int], patch_size: int
) -> Float[Array, "b h w c"]:
  """Undo `to_patches`."""
  height, width, channels = shape
  grid = (height // patch_size, width // patch_size)
  x = patches.reshape(-1, *grid, patch_size, patch_size, channels).swapaxes(2, 3)
  return x.reshape(-1, height, width, channels)
