"""The single learned numbers of element-wise norms: how they are checked and aligned."""

import math

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float


def check_positive(value: float, name: str) -> None:
  """Raise unless an initial value is finite and above 0."""
  if not (math.isfinite(value) and value > 0):
    raise ValueError(f"{name} must be finite and > 0, got {value}")


def as_single(value: ArrayLike, name: str, x: Float[Array, "..."]) -> Float[Array, "..."]:
  """Returns one number of shape () or (1,) with the rank and the dtype of `x`, or raises."""
  value = jnp.asarray(value)
  if value.shape not in ((), (1,)):
    raise ValueError(f"{name} must be one number of shape (1,) or (), got shape {value.shape}")
  return value.astype(x.dtype).reshape((1,) * x.ndim)
