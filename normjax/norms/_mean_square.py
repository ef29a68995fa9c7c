"""The running mean square of channels: taken over a batch, and as a constant map in evaluation."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from normjax.norms._running import per_channel
from normjax.norms._statistics import Reduction


def check_positions(x: Float[Array, "..."]) -> None:
  """Raise unless `x` has axes of positions in front of its channels."""
  if x.ndim < 2:
    raise ValueError(f"x must have 2 axes or more, the last one the channels, got shape {x.shape}")


def check_warmup(warmup: int, name: str = "warmup_iters") -> None:
  """Raise unless a number of steps is an integer >= 0."""
  if not isinstance(warmup, int) or warmup < 0:
    raise ValueError(f"{name} must be an integer >= 0, got {warmup}")


def as_counter(value: ArrayLike, name: str) -> Int[Array, ""]:
  """Returns a step counter as an array, or raises."""
  value = jnp.asarray(value)
  if value.shape != () or not jnp.issubdtype(value.dtype, jnp.integer):
    raise ValueError(f"state must hold {name} as one integer, got {value.dtype}{list(value.shape)}")
  return value


def over_positions(
  x: Float[Array, "..."], mask: Bool[Array, "..."] | None, axis_name: str | None
) -> Reduction:
  """Returns the reduction over all axes of `x` but the last one."""
  return Reduction(tuple(range(x.ndim - 1)), x.shape, mask, axis_name)


def mean_square(
  x: Float[Array, "..."], valid: Reduction, phi: Float[Array, " c"]
) -> tuple[Float[Array, "..."], Bool[Array, ""]]:
  """Returns mean(x^2) of the valid positions (1, ..., c), and whether there is any.

  Where there is none it returns the running value `phi`, so that nobody meets 0 / 0.
  """
  kept = valid.keep(x)
  filled = jnp.any(valid.count(x.dtype) > 0)
  return jnp.where(filled, valid.mean(kept * kept), per_channel(phi, x)), filled


def evaluated(
  x: Float[Array, "..."], phi: Float[Array, " c"], epsilon: float
) -> Float[Array, "..."]:
  """Returns x / sqrt(phi + epsilon), which no other position enters."""
  return x * jax.lax.rsqrt(per_channel(phi, x) + epsilon)
