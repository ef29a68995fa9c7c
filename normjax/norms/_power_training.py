"""The training pass of power normalization: its constants, its statistics and its backward rule."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from normjax.norms._arguments import check_decay, check_epsilon
from normjax.norms._mean_square import check_warmup, mean_square, over_positions
from normjax.norms._running import moved, per_channel


@dataclasses.dataclass(frozen=True)
class PowerRule:
  """The constants of a layer that its training passes read."""

  num_groups: int | None = 1
  warmup_iters: int = 10_000
  epsilon: float = 1e-5
  group_epsilon: float = 1e-5
  decay: float = 0.9
  backward_decay: float = 0.9
  backward_denominator: Literal["batch", "running"] = "batch"
  warmup_backward: Literal["carried", "exact"] = "carried"
  mask_backward: bool = False
  axis_name: str | None = None

  def check(self, c: int) -> None:
    """Raise if the constants do not fit each other or c channels."""
    for name in ("epsilon", "group_epsilon"):
      check_epsilon(getattr(self, name), name)
    check_decay(self.decay)
    check_decay(self.backward_decay, "backward_decay")
    check_warmup(self.warmup_iters)
    if self.num_groups is not None and (self.num_groups < 1 or c % self.num_groups):
      raise ValueError(f"num_groups must divide the {c} channels, got {self.num_groups}")
    if self.backward_denominator not in ("batch", "running"):
      raise ValueError(
        f"backward_denominator must be 'batch' or 'running', got {self.backward_denominator!r}"
      )
    if self.warmup_backward not in ("carried", "exact"):
      raise ValueError(
        f"warmup_backward must be 'carried' or 'exact', got {self.warmup_backward!r}"
      )


def train(
  rule: PowerRule,
  h: Float[Array, "..."],
  phi: Float[Array, " c"],
  iters: Int[Array, ""],
  err: Float[Array, " c"],
  mask: Bool[Array, "..."] | None,
) -> tuple[Float[Array, "..."], Float[Array, " c"], Int[Array, ""]]:
  """Returns z, and phi and iters after this step."""
  valid = over_positions(h, mask, rule.axis_name)
  batch, filled = mean_square(jax.lax.stop_gradient(h), valid, phi)
  k = iters + 1
  forward = jnp.where(k <= rule.warmup_iters, batch, per_channel(phi, h))
  z = _normalize(rule, h, err, forward, batch, mask, k <= rule.warmup_iters, filled)
  b, share = batch.reshape(-1).astype(phi.dtype), 1 / k.astype(phi.dtype)
  new = jnp.where(k < rule.warmup_iters, phi * (1 - share) + b * share, phi)
  new = moved(new, b, rule.decay)
  return z, jnp.where(filled, new, phi), jnp.where(filled, k, iters)


def _plain(rule, h, err, forward, batch, mask, warm, filled) -> Array:
  return h * jax.lax.rsqrt(forward + rule.epsilon)


def _forward(rule: PowerRule, h, err, forward, batch, mask, warm, filled):
  z = _plain(rule, h, err, forward, batch, mask, warm, filled)
  return z, (z, err, forward, batch, mask, warm, filled)


def _backward(rule: PowerRule, saved: Any, dz: Float[Array, "..."]):
  z, err, forward, batch, mask, warm, filled = saved
  everywhere = over_positions(z, mask if rule.mask_backward else None, rule.axis_name)
  a = dz - (1 - rule.backward_decay) * per_channel(err, z) * z
  increment = everywhere.mean(everywhere.keep(a * z)).reshape(-1)
  if rule.warmup_backward == "exact":
    # dz of every position moves the mean square, which only the valid positions make up.
    valid = over_positions(z, mask, rule.axis_name)
    total = over_positions(z, None, rule.axis_name).sum(dz * z)
    share = total / jnp.maximum(valid.count(z.dtype), 1)
    a = jnp.where(warm, dz - valid.keep(share * z), a)
    increment = jnp.where(warm, jnp.zeros_like(increment), increment)
  a = jnp.where(filled, a, dz)
  increment = jnp.where(filled, increment, jnp.zeros_like(increment))
  square = batch if rule.backward_denominator == "batch" else forward
  dh = a * jax.lax.rsqrt(square + rule.epsilon)
  return dh, increment.astype(err.dtype), None, None, None, None, None


_normalize = jax.custom_vjp(_plain, nondiff_argnums=(0,))
_normalize.defvjp(_forward, _backward)
