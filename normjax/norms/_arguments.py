"""What every norm accepts: the checks of its arguments, each with the error a user can act on."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float


def as_floating(x: ArrayLike, name: str = "x") -> Float[Array, "..."]:
  """Returns `x` as an array, or raises if its entries are not real floating numbers."""
  x = jnp.asarray(x)
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(f"{name} must be floating, got {x.dtype}: cast it first, to float32 say")
  return x


def as_images(x: ArrayLike, name: str = "x") -> Float[Array, "b h w c"]:
  """Returns `x` as an array, or raises unless it is a floating batch of images."""
  x = as_floating(x, name)
  if x.ndim != 4 or 0 in x.shape:
    raise ValueError(f"{name} must have shape (b, h, w, c), none of them 0, got {x.shape}")
  return x


def entries(x: ArrayLike) -> np.ndarray | None:
  """Returns an argument's values, to check them, or None while it is traced."""
  return None if isinstance(x, Tracer) else np.asarray(x)


def check_epsilon(epsilon: float, name: str = "epsilon") -> None:
  """Raise unless `epsilon` is zero or positive."""
  if not epsilon >= 0:
    raise ValueError(f"{name} must be >= 0, got {epsilon}")


def prepare(
  x: ArrayLike, axis: int | Sequence[int], epsilon: float
) -> tuple[Float[Array, "..."], tuple[int, ...]]:
  """Returns `x` as an array and `axis` as non-negative axes, both checked."""
  x = as_floating(x)
  check_epsilon(epsilon)
  return x, normalized_axes(axis, x.shape)


def check_power(p: float) -> None:
  """Raise unless `p` is a finite power of a norm."""
  if not 1 <= p < float("inf"):
    raise ValueError(f"p must be finite and >= 1, got {p}")


def floating_dtype(dtype: DTypeLike, name: str) -> jnp.dtype:
  """Returns `dtype` as a dtype object, or raises if it is not a floating one."""
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(f"{name} must be a floating dtype, got {jnp.dtype(dtype)}")
  return jnp.dtype(dtype)


def statistics_dtype(x: Float[Array, "..."], compute_dtype: DTypeLike | None = None) -> jnp.dtype:
  """Returns the dtype of statistics of `x`: as asked, else float32, and float64 for float64."""
  if compute_dtype is not None:
    return floating_dtype(compute_dtype, "compute_dtype")
  return jnp.dtype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def normalized_axes(axis: int | Sequence[int], shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns `axis` as increasing non-negative axes of an array of this shape."""
  given = (axis,) if isinstance(axis, int) else tuple(axis)
  ndim = len(shape)
  if not given or any(not -ndim <= a < ndim for a in given):
    raise ValueError(f"axis must name axes of an input of shape {shape}, got {axis}")
  axes = tuple(a % ndim for a in given)
  if list(axes) != sorted(set(axes)):
    raise ValueError(f"axis must be distinct and in increasing order, got {axis} for {shape}")
  if any(shape[a] == 0 for a in axes):
    raise ValueError(f"axis must hold at least one entry to normalize, got shape {shape}")
  return axes


def single_axis(axis: int | Sequence[int], shape: tuple[int, ...], why: str) -> int:
  """Returns `axis` as one non-negative axis, or raises and says what needs it to be single."""
  axes = normalized_axes(axis, shape)
  if len(axes) != 1:
    raise ValueError(f"axis must be a single axis for {why}, got {axis}")
  return axes[0]


def as_mask(mask: ArrayLike | None, shape: tuple[int, ...]) -> Bool[Array, "..."] | None:
  """Returns `mask` as a boolean array with the rank of the input, or raises."""
  if mask is None:
    return None
  mask = _as_boolean(mask)
  if not broadcasts_explicitly(mask.shape, shape):
    raise ValueError(
      f"mask must have {len(shape)} axes, each of size 1 or as in {shape}, got {mask.shape}"
    )
  return mask


def as_position_mask(mask: ArrayLike | None, shape: tuple[int, ...]) -> Bool[Array, "..."] | None:
  """Returns the mask of positions as a boolean array (..., 1), or raises.

  `shape` is (..., c). The mask has all its axes but the last, or also that one, at size 1; each
  axis has size 1 or that of the input.
  """
  if mask is None:
    return None
  mask = _as_boolean(mask)
  full = mask[..., None] if mask.ndim == len(shape) - 1 else mask
  if not broadcasts_explicitly(full.shape, (*shape[:-1], 1)):
    raise ValueError(
      f"mask must have the shape {shape[:-1]} of the positions of x, or that with a last axis of "
      f"size 1, or sizes 1 in it, got {mask.shape}"
    )
  return full


def _as_boolean(mask: ArrayLike) -> Bool[Array, "..."]:
  mask = jnp.asarray(mask)
  if mask.dtype != jnp.bool_:
    raise ValueError(f"mask must be boolean (True: enters the statistics), got {mask.dtype}")
  return mask


def check_decay(decay: float, name: str = "decay") -> None:
  """Raise unless `decay`, the share of the old value that a running mean keeps, is in [0, 1)."""
  if not 0 <= decay < 1:
    raise ValueError(f"{name} must be in [0, 1), got {decay}: it is the share of the old value")


def broadcasts_explicitly(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
  """Returns whether `shape` has the rank of `target` and differs from it in axes of size 1 only."""
  return len(shape) == len(target) and all(s in (1, t) for s, t in zip(shape, target, strict=True))
