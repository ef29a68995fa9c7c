"""Checks of arguments that flow layers and distributions share, each with one wording."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from normjax._sizes import check_sizes


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


def check_vectors(name: str, x) -> None:
  """Raise unless `x` is a floating (b, d) with b >= 1."""
  if x.ndim != 2:
    raise ValueError(f"{name} must have shape (b, d), got {x.shape}")
  check_batch(name, x)


def check_features(name: str, x, features: int) -> None:
  """Raise unless `x` is a floating (b, ..., features) with b >= 1."""
  if x.ndim < 2 or x.shape[0] < 1 or x.shape[-1] != features:
    raise ValueError(f"{name} must have shape (b, ..., {features}) with b >= 1, got {x.shape}")
  check_batch(name, x)


def check_above_zero(**values: float | jax.Array) -> None:
  """Raise unless every number is above 0 and finite, if it can be looked at."""
  for name, value in values.items():
    if is_concrete(value) and not 0 < float(value) < math.inf:
      raise ValueError(f"{name} must be above 0 and finite, got {value}")


def check_parts(name: str, parts, kind: type, each: str, *, least: int = 0) -> None:
  """Raise unless `parts` is a list of at least so many different objects of a kind."""
  if isinstance(parts, kind) or len(parts) < least or not all(isinstance(p, kind) for p in parts):
    raise ValueError(f"{name} must be a list of {kind.__name__}s, got {parts!r}")
  # Modules share no parameters.
  if len({id(part) for part in parts}) < len(parts):
    raise ValueError(f"{name} holds the same object twice: make one object per {each}")


def check_blocks(sizes, count: int) -> tuple[int, ...]:
  """Return the sizes of the blocks of an axis as a tuple, if there are `count` of them."""
  if len(sizes) != count:
    raise ValueError(f"sizes must have {count} entries, got {sizes}")
  check_sizes(**{f"sizes[{i}]": size for i, size in enumerate(sizes)})
  return tuple(int(size) for size in sizes)


def check_cond(cond, batch: int, cond_dim: int | None) -> None:
  """Raise unless `cond` is (batch, cond_dim), where there is a condition."""
  shape = None if cond is None else cond.shape
  if cond_dim is not None and shape != (batch, cond_dim):
    raise ValueError(f"cond must have shape {(batch, cond_dim)}, got {shape}")


def as_labels(cond, batch: int, num_classes: int, null: int) -> jax.Array:
  """Return `cond` as integer labels (batch,) of classes, or `null`, which all are if it is None."""
  labels = jnp.full((batch,), null) if cond is None else jnp.asarray(cond)
  if labels.shape != (batch,) or not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(
      f"cond must be integer labels of shape ({batch},), got {labels.dtype} {labels.shape}"
    )
  # Through numpy: under jit even operations on known labels would be traced.
  if is_concrete(labels) and not np.all(np.isin(np.asarray(labels), [null, *range(num_classes)])):
    raise ValueError(
      f"cond must be labels 0 to {num_classes - 1}, or {null} for none, got {np.asarray(labels)}"
    )
  return labels


def as_order(order) -> jax.Array:
  """Return `order` as an array (d,), a permutation of 0 to d - 1; it may be traced."""
  order = jnp.asarray(order)
  if order.ndim != 1 or not order.size or not jnp.issubdtype(order.dtype, jnp.integer):
    raise ValueError(f"order must be a list of the features, got {order}")
  if is_concrete(order) and not np.array_equal(np.sort(order), np.arange(order.size)):
    raise ValueError(f"order must be a permutation of 0 to {order.size - 1}, got {order}")
  return order


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
