"""Running statistics: how they move, how modules keep them, and which mode a call is in."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Moments = tuple[Float[Array, " c"], Float[Array, " c"]]


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


def check_batch(x: Float[Array, "... c"], allow_single: bool, axis_name: str | None) -> None:
  """Raise unless there are positions to train on, more than one if a single one is not allowed."""
  if x.size < x.shape[-1] or (x.size == x.shape[-1] and not allow_single and axis_name is None):
    raise ValueError(
      f"x must have more than one position to train on, got shape {x.shape}: give a larger batch,"
      " use_running_average=True, or allow_single=True, which accepts a position alone"
    )


def evaluation_affine(
  inverse: Float[Array, " c"],
  scale: nnx.Param[Array] | None,
  bias: nnx.Param[Array] | None,
  mean: Float[Array, " c"] | None = None,
) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
  """Returns the gain and the shift that equal (x - mean) * inverse * scale + bias."""
  gain = inverse
  if scale is not None:
    wide = jnp.promote_types(scale[...].dtype, inverse.dtype)
    gain = inverse * scale[...].astype(wide)
  shift = jnp.zeros_like(gain) if mean is None else -mean * gain
  return gain, shift if bias is None else shift + bias[...].astype(shift.dtype)


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


class RunningMoments(RunningMode):
  """A layer whose running statistics are the mean and the variance of each channel."""

  mean: nnx.BatchStat[Array]
  var: nnx.BatchStat[Array]

  def _begin(self, num_features: int) -> None:
    """Keep a mean of 0 and a variance of 1."""
    self.mean = nnx.BatchStat(jnp.zeros(num_features, jnp.float32))
    self.var = nnx.BatchStat(jnp.ones(num_features, jnp.float32))

  def _moments(self) -> Moments:
    return self.mean[...], self.var[...]

  def _keep(self, state: Moments, evaluates: bool) -> None:
    """Store what a training step leaves."""
    if not evaluates:
      self.mean[...], self.var[...] = state
