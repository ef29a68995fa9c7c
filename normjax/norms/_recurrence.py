"""Linear recurrences along the first axis: one after the other, or in parallel."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Method = Literal["scan", "associative"]


def check_method(method: str | None) -> None:
  """Raise unless `method` names a way to run a recurrence, or leaves the choice open."""
  if method not in ("scan", "associative", None):
    raise ValueError(f"method must be 'scan', 'associative' or None, got {method!r}")


def linear_recurrence(
  factor: Float[Array, "t ..."],
  offset: Float[Array, "t ..."],
  initial: Float[Array, "..."],
  method: Method | None = None,
) -> tuple[Float[Array, "t ..."], Float[Array, "..."]]:
  """Returns h_0 ... h_{t-1} and h_t of h_s = factor_s * h_{s-1} + offset_s, where h_0 = `initial`.

  A scan is the faster way on a CPU. Elsewhere each of its steps costs a launch, and the parallel
  form needs log2(t) of them. By default the platform that the program is lowered for decides, which
  need not be the default one.
  """
  factor, offset = _gathered(factor), _gathered(offset)
  if method == "scan":
    return _scan(factor, offset, initial)
  if method == "associative":
    return _associative(factor, offset, initial)
  return jax.lax.platform_dependent(factor, offset, initial, cpu=_scan, default=_associative)


def _scan(factor, offset, initial):
  # The first step is outside, so that under `jax.shard_map` the carry differs between devices, as
  # offsets do, from the start.
  step = lambda h, line: (line[0] * h + line[1], h)
  first = factor[0] * initial + offset[0]
  last, before = jax.lax.scan(step, first, (factor[1:], offset[1:]))
  return jnp.concatenate([initial[None], before]), last


def _associative(factor, offset, initial):
  # The initial value is the line with slope 0 at the start, h -> 0 * h + initial.
  first = jax.tree.map(lambda v: v[None], (jnp.zeros_like(initial), initial))
  lines = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, (factor, offset))
  then = lambda a, b: (b[0] * a[0], b[0] * a[1] + b[1])
  _, states = jax.lax.associative_scan(then, lines)
  return states[:-1], states[-1]


def _gathered(v: Float[Array, "t ..."]) -> Float[Array, "t ..."]:
  """Returns `v` on every device of a mesh with explicit axes, as neither form may split time."""
  explicit = any(axis is not None for axis in jax.typeof(v).sharding.spec)
  return jax.sharding.reshard(v, jax.P()) if explicit else v
