"""Checks of arguments that flow layers and distributions share, each with one wording."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def is_concrete(*values) -> bool:
  """Return whether no value is being traced, so that entries may be looked at."""
  return not any(isinstance(value, Tracer) for value in values)


def check_shape(shape) -> tuple[int, ...]:
  """Return the event shape as a tuple; lists (from JSON) are welcome."""
  if not isinstance(shape, (tuple, list)) or not all(
    isinstance(side, (int, np.integer)) and side >= 1 for side in shape
  ):
    raise ValueError(f"shape must be a tuple or list of positive ints, got {shape!r}")
  return tuple(int(side) for side in shape)


def check_batch(name: str, x, shape: tuple[int, ...] | None = None) -> None:
  """Raise unless `x` is a floating (b, *shape) with b >= 1; any event goes if `shape` is None."""
  expected = "(b, ...)" if shape is None else f"(b, {', '.join(map(str, shape))})"
  if x.ndim < 1 or x.shape[0] < 1 or (shape is not None and x.shape[1:] != shape):
    raise ValueError(f"{name} must have shape {expected} with b >= 1, got {x.shape}")
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      f"{name} must be floating, got {x.dtype}: use flows.dequantize to make images continuous"
    )


def check_features(name: str, x, features: int) -> None:
  """Raise unless `x` is a floating (b, ..., features) with b >= 1."""
  if x.ndim < 2 or x.shape[0] < 1 or x.shape[-1] != features:
    raise ValueError(f"{name} must have shape (b, ..., {features}) with b >= 1, got {x.shape}")
  check_batch(name, x)


def check_sampling(n: int, temperature: float | jax.Array = 1.0) -> None:
  """Raise unless `n` >= 1 is an int and `temperature` a scalar >= 0 (if it can be looked at)."""
  if not isinstance(n, (int, np.integer)) or n < 1:
    raise ValueError(f"n must be an int of at least 1, got {n!r}")
  if jnp.ndim(temperature) != 0:
    raise ValueError(f"temperature must be a scalar, got shape {jnp.shape(temperature)}")
  if is_concrete(temperature) and not temperature >= 0:
    raise ValueError(f"temperature must be at least 0, got {temperature}")


def constant(name: str, value, shape: tuple[int, ...], dtype) -> jax.Array:
  """Return `value`, a scalar or (*shape), as an array (*shape): nothing else is broadcast."""
  value = jnp.asarray(value, dtype)
  if value.shape not in ((), shape):
    raise ValueError(f"{name} must be a scalar or have shape {shape}, got {value.shape}")
  return jnp.broadcast_to(value, shape)
