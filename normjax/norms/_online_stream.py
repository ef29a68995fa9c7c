"""The core of Online Normalization: a stream of examples, normalized and controlled one by one.

Only recurrences of one number per channel run through the stream. Whatever concerns the array
itself - moments of each example, normalization, gradients - is computed for all examples at once.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from normjax.norms._recurrence import Method, linear_recurrence
from normjax.norms._running import per_channel
from normjax.norms._statistics import Reduction, moments

Pair = tuple[Float[Array, " c"], Float[Array, " c"]]


@dataclasses.dataclass(frozen=True)
class Stream:
  """The constants of a stream: see `online_norm`."""

  decay: float
  backward_decay: float
  epsilon: float
  method: Method | None
  axis_name: str | None


def _normalize(
  stream: Stream,
  x: Float[Array, "t *space c"],
  state: Pair,
  control: Pair,
  mask: Bool[Array, "..."] | None,
) -> tuple[Float[Array, "t *space c"], Pair]:
  """Returns each example normalized with the statistics of those before it, and the new state.

  `x` is float32 or wider, `mask` (t, *space, 1). The cotangent of `control` is its increment.
  """
  return _forward(stream, x, state, control, mask)[0]


def _forward(stream, x, state, control, mask):
  over_space = _over_space(x, mask)
  mean, var = (per_channel(v, x) for v in state)  # (1, ..., 1, c)
  # Means are kept as differences from the state before: numbers of the size of the deviations,
  # which do not lose the digits that a large mean takes.
  shifted = x - mean
  _, example_mean, example_var = moments(shifted, over_space)  # (t, 1, ..., c)
  fresh = _fresh(stream.decay, example_mean, mask)
  run = functools.partial(linear_recurrence, method=stream.method)
  drift, drifted = run(1 - fresh, fresh * example_mean, jnp.zeros_like(mean[0]))
  surprise = example_mean - drift
  spread = fresh * (example_var + (1 - fresh) * surprise * surprise)
  before, new_var = run(1 - fresh, spread, var[0])
  inverse = jax.lax.rsqrt(before + stream.epsilon)  # 1 / sigma_t
  normalized = (shifted - drift) * inverse
  new_mean = state[0] + drifted.reshape(-1).astype(jnp.result_type(state[0]))
  new = new_mean, new_var.reshape(-1).astype(jnp.result_type(state[1]))
  return (normalized, _averaged(new, stream)), (normalized, inverse, control, mask)


def _backward(stream, saved, cotangents):
  normalized, inverse, control, mask = saved
  gradient, _ = cotangents  # the new state is a constant
  over_space = _over_space(normalized, mask)
  u, v = (per_channel(c, normalized) for c in control)
  kept_gradient, kept = over_space.keep(gradient), over_space.keep(normalized)
  mean = over_space.mean
  power, overlap = mean(kept * kept), mean(kept_gradient * kept)
  fresh = _fresh(stream.backward_decay, power, mask)
  run = functools.partial(linear_recurrence, initial=jnp.zeros_like(u[0]), method=stream.method)
  # v_t = v_{t-1} + mean(a_t * xh_t) and u_t = u_{t-1} + mean(b_t) - fresh * u_{t-1}, both as
  # differences from the state before, whose last ones are the increments.
  v_drift, v_increment = run(1 - fresh * power, overlap - fresh * power * v)
  v = v + v_drift
  push = (mean(kept_gradient) - fresh * v * mean(kept)) * inverse  # mean(b_t)
  u_drift, u_increment = run(1 - fresh, push - fresh * u)
  u = u + u_drift
  dx = over_space.keep((gradient - fresh * v * normalized) * inverse - fresh * u)
  as_given = lambda increment, c: increment.reshape(-1).astype(jnp.result_type(c))
  increments = as_given(u_increment, control[0]), as_given(v_increment, control[1])
  return dx, None, _averaged(increments, stream), None


stream_normalize = jax.custom_vjp(_normalize, nondiff_argnums=(0,))
stream_normalize.defvjp(_forward, _backward)


def _over_space(x: Float[Array, "t *space c"], mask: Bool[Array, "..."] | None) -> Reduction:
  return Reduction(tuple(range(1, x.ndim - 1)), x.shape, mask)


def _fresh(
  decay: float, like: Float[Array, "t ..."], mask: Bool[Array, "..."] | None
) -> Float[Array, "t ..."]:
  """Returns the share of each example in a running value; 0 where the mask leaves nothing of it.

  The share and what is left of 1 are complements as rounded, or running values would end off by
  the rounding of the decay times 1 / (1 - decay).
  """
  share = jnp.full_like(like, 1 - jnp.asarray(decay, like.dtype))
  if mask is None:
    return share
  return share * jnp.any(mask, tuple(range(1, like.ndim)), keepdims=True)


def _averaged(pair: Pair, stream: Stream) -> Pair:
  return pair if stream.axis_name is None else jax.lax.pmean(pair, stream.axis_name)
