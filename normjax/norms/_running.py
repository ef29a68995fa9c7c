"""Running statistics: how they move, how modules keep them, and which mode a call is in."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


def moved(old: Float[Array, "..."], new: Float[Array, "..."], decay: Any) -> Float[Array, "..."]:
  """Returns `decay * old + (1 - decay) * new` in the dtype of the old, without a gradient."""
  new = jax.lax.stop_gradient(new).astype(old.dtype)
  return decay * old + (1 - decay) * new


def per_channel(v: Float[Array, " c"], x: Float[Array, "..."]) -> Float[Array, "..."]:
  """Returns a vector (c,) with the rank and the dtype of `x`, whose last axis is the channel."""
  return jnp.asarray(v, x.dtype).reshape(*(1,) * (x.ndim - 1), -1)


def check_state(state: tuple[Any, ...], names: str, shape: tuple[int, ...]) -> None:
  """Raise unless every part of a state has one shape and a dtype of 32 bits or more."""
  for value, name in zip(state, names.split(", "), strict=True):
    value = jnp.asarray(value)
    wide = jnp.issubdtype(value.dtype, jnp.floating) and value.dtype.itemsize >= 4
    if value.shape != shape or not wide:
      raise ValueError(
        f"state must be ({names}), float32 or wider; {name} must have shape {shape}, got "
        f"{value.dtype}{list(value.shape)}"
      )


class RunningMode(nnx.Module):
  """A layer that normalizes with running statistics when it evaluates.

  `use_running_average` of a call comes first, then that of the layer, which `train()`, `eval()`
  and `nnx.view` set.
  """

  use_running_average: bool | None = False

  def set_view(self, use_running_average: bool | None = None) -> None:
    """Set the mode, for `nnx.view`.

    Args:
      use_running_average: whether to normalize with running statistics and to leave them alone.
    """
    if use_running_average is not None:
      self.use_running_average = use_running_average

  def _evaluates(self, use_running_average: bool | None) -> bool:
    given = self.use_running_average if use_running_average is None else use_running_average
    if given is None:
      raise ValueError(
        "use_running_average must be given to the constructor, to the call or by nnx.view: True "
        "to evaluate, False to train"
      )
    return given
