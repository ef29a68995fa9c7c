"""The training pass of unified normalization: smoothing, outliers, and the backward rule."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from normjax.norms._arguments import check_decay, check_epsilon
from normjax.norms._mean_square import check_warmup, mean_square, over_positions
from normjax.norms._running import moved, per_channel


@dataclasses.dataclass(frozen=True)
class UnifiedRule:
  """The constants of a layer that its training passes read."""

  window: int | tuple[int, int] = 4
  warmup_iters: int = 4000
  outlier_filtration: bool = False
  variance_scope: Literal["layer", "channel"] = "layer"
  ratio_warmup: int = 1000
  epsilon: float = 1e-5
  decay: float = 0.9
  mask_backward: bool = False
  axis_name: str | None = None

  def check(self) -> None:
    """Raise if a constant is out of its range."""
    check_epsilon(self.epsilon)
    check_decay(self.decay)
    check_warmup(self.warmup_iters)
    check_warmup(self.ratio_warmup, "ratio_warmup")
    pair = isinstance(self.window, int) or len(self.window) == 2
    if not pair or any(not isinstance(w, int) or w < 1 for w in self.windows):
      raise ValueError(f"window must be an integer >= 1 or a pair of them, got {self.window}")
    if self.variance_scope not in ("layer", "channel"):
      raise ValueError(f"variance_scope must be 'layer' or 'channel', got {self.variance_scope!r}")

  @property
  def windows(self) -> tuple[int, int]:
    """Numbers of steps that the forward and the backward statistics are smoothed over."""
    return (self.window, self.window) if isinstance(self.window, int) else self.window


class UnifiedState(NamedTuple):
  """What the forward pass of training leaves behind.

  phi (c,): running mean square. recent (w, c): mean squares of the last w steps. iters: training
  steps done. skips: steps that the filtration kept out.
  """

  phi: Float[Array, " c"]
  recent: Float[Array, "w c"]
  iters: Int[Array, ""]
  skips: Int[Array, ""]


class _Step(NamedTuple):
  """What the backward pass reads: the step k, and how the forward pass treated the batch."""

  k: Int[Array, ""]
  skip: Bool[Array, ""]
  filled: Bool[Array, ""]


def geometric_mean(recent: Float[Array, "w c"]) -> Float[Array, " c"]:
  """Returns the geometric means over a window; 0 where an entry is 0."""
  positive = jnp.all(recent > 0, 0)
  logs = jnp.log(jnp.maximum(recent, jnp.finfo(recent.dtype).tiny))
  return jnp.where(positive, jnp.exp(jnp.mean(logs, 0)), jnp.zeros_like(positive, recent.dtype))


def breaks_bound(
  recent: Float[Array, "w c"], recorded: Float[Array, "w c"], rule: UnifiedRule
) -> Bool[Array, ""]:
  """Returns whether a window with the new batch is off the bound that the recorded one predicts.

  w numbers have AM - GM <= w * Var(sqrt), so that a difference beyond the variance recorded before
  marks an outlier. What AM - GM of equal numbers is rounded to does not.
  """
  w = recent.shape[0]
  if w == 1:
    return jnp.zeros((), bool)
  axis = None if rule.variance_scope == "layer" else 0
  variance = jnp.var(jnp.sqrt(recorded), axis, ddof=1)
  mean = jnp.mean(recent, 0)
  rounding = 8 * jnp.finfo(recent.dtype).eps * mean
  broken = jnp.any(mean - geometric_mean(recent) > w * variance + rounding)
  if rule.axis_name is None:
    return broken
  return jax.lax.pmax(broken.astype(jnp.int32), rule.axis_name) > 0


def train(
  rule: UnifiedRule,
  x: Float[Array, "..."],
  state: UnifiedState,
  err: tuple[Float[Array, " c"], Float[Array, "v c"]],
  mask: Bool[Array, "..."] | None,
) -> tuple[Float[Array, "..."], Float[Array, "..."], UnifiedState]:
  """Returns z, the factor of its cotangent, and the state after this step."""
  phi, recent, iters, skips = state
  w, dtype = recent.shape[0], recent.dtype
  valid = over_positions(x, mask, rule.axis_name)
  batch, filled = mean_square(jax.lax.stop_gradient(x), valid, phi)
  square = batch.reshape(-1)
  k = iters + 1
  slot = k % w
  outlier = jnp.zeros((), bool)
  if rule.outlier_filtration:
    outlier = (k >= rule.warmup_iters) & breaks_bound(
      recent.at[slot].set(square.astype(dtype)), recent, rule
    )
  skip = outlier | (w <= 1)
  inserted = jnp.where(outlier, phi.astype(dtype), square.astype(dtype))
  new_recent = jnp.where(filled, recent.at[slot].set(inserted), recent)
  # A row of zeros was not written yet: the counter was set from outside.
  unwritten = jnp.any(jnp.all(new_recent == 0, 1))
  plain = (k <= w) | (k < rule.warmup_iters) | skip | unwritten | ~filled
  square = jnp.where(plain, square, geometric_mean(new_recent).astype(square.dtype))
  ratio = jnp.sqrt((square + rule.epsilon) / (phi.astype(square.dtype) + rule.epsilon))
  steady = (k <= max(rule.ratio_warmup, rule.warmup_iters)) | skip | ~filled
  ratio = jnp.where(steady, jnp.ones_like(ratio), jnp.clip(ratio, 1 / 5, 5.0))
  z = _normalize(rule, x, err, per_channel(square, x), mask, _Step(k, skip, filled))
  new = UnifiedState(
    jnp.where(filled, moved(phi, square, rule.decay), phi),
    new_recent,
    jnp.where(filled, k, iters),
    skips + (outlier & filled),
  )
  return z, per_channel(ratio, x), new


def _plain(rule, x, err, square, mask, step) -> Array:
  return x * jax.lax.rsqrt(square + rule.epsilon)


def _forward(rule: UnifiedRule, x, err, square, mask, step):
  z = _plain(rule, x, err, square, mask, step)
  return z, (z, err, square, mask, step)


def _backward(rule: UnifiedRule, saved: Any, g: Float[Array, "..."]):
  z, (err, recent), square, mask, step = saved
  k, skip, filled = step
  everywhere = over_positions(z, mask if rule.mask_backward else None, rule.axis_name)
  product = everywhere.mean(everywhere.keep(g * z)).reshape(-1).astype(err.dtype)
  v = recent.shape[0]
  slot = k % v
  new_recent = recent.at[slot].set(jnp.where(skip, err, product).astype(recent.dtype))
  plain = (k <= v) | (k < rule.warmup_iters) | skip
  smooth = jnp.where(plain, product, jnp.mean(new_recent, 0).astype(err.dtype))
  new_err = moved(err, smooth, rule.decay)
  coefficient = per_channel(jnp.where(skip, smooth, new_err), z)
  dx = jnp.where(filled, g - coefficient * z, g) * jax.lax.rsqrt(square + rule.epsilon)
  increments = new_err - err, new_recent - recent
  return dx, tuple(jnp.where(filled, v, jnp.zeros_like(v)) for v in increments), None, None, None


_normalize = jax.custom_vjp(_plain, nondiff_argnums=(0,))
_normalize.defvjp(_forward, _backward)


@jax.custom_vjp
def scaled_backward(y: Float[Array, "..."], ratio: Float[Array, "..."]) -> Float[Array, "..."]:
  """Returns y; its cotangent is multiplied by `ratio`."""
  return y


scaled_backward.defvjp(lambda y, ratio: (y, ratio), lambda ratio, dy: (dy * ratio, None))
