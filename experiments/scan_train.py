"""Training of a flow inside a compiled program: one scan, no loop in Python."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from normjax import flows


def falling_adam(learning_rate: float, steps: int) -> optax.GradientTransformation:
  """Return Adam, with a learning rate that falls to zero along a cosine."""
  return optax.adam(optax.cosine_decay_schedule(learning_rate, steps))


def train(
  flow: flows.Flow,
  objective: Callable[[flows.Flow, jax.Array, jax.Array], jax.Array],
  steps: int,
  optimizer: optax.GradientTransformation,
  key: jax.Array,
) -> flows.Flow:
  """Return the flow after `steps` on `objective(flow, key, progress)`, from 0 to 1."""
  graphdef, params, rest = nnx.split(flow, nnx.Param, ...)
  params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
  merge = lambda params: nnx.merge(graphdef, params, rest, copy=True)

  def step(carry: Any, xs: tuple[jax.Array, jax.Array]) -> Any:
    params, state = carry
    updates, state = optimizer.update(
      jax.grad(lambda params: objective(merge(params), *xs))(params), state
    )
    return (optax.apply_updates(params, updates), state), None

  xs = jax.random.split(key, steps), jnp.arange(steps) / steps
  (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), xs)
  return merge(params)
