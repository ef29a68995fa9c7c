"""Training of a flow inside a compiled program: one scan, no loop in Python."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx

M = TypeVar("M", bound=nnx.Module)
Objective = Callable[[Any, jax.Array, jax.Array], jax.Array]


def falling_adam(learning_rate: float, steps: int) -> optax.GradientTransformation:
  """Return Adam, with a learning rate that falls to zero along a cosine."""
  return optax.adam(optax.cosine_decay_schedule(learning_rate, steps))


def stepper(
  model: M, objective: Objective, optimizer: optax.GradientTransformation
) -> tuple[Any, Callable[..., Any], Callable[[Any], M]]:
  """Return `(start, step, merge)`: a carry, a step for `lax.scan`, the model of a carry.

  A step takes `(key, progress)` and descends on `objective(model, key, progress)`.
  """
  graphdef, params, rest = nnx.split(model, nnx.Param, ...)
  params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
  merge = lambda params: nnx.merge(graphdef, params, rest, copy=True)

  def step(carry: Any, xs: tuple[jax.Array, jax.Array]) -> Any:
    params, state = carry
    updates, state = optimizer.update(
      jax.grad(lambda params: objective(merge(params), *xs))(params), state
    )
    return (optax.apply_updates(params, updates), state), None

  return (params, optimizer.init(params)), step, lambda carry: merge(carry[0])


def train(
  model: M,
  objective: Objective,
  steps: int,
  optimizer: optax.GradientTransformation,
  key: jax.Array,
) -> M:
  """Return the model after `steps` on `objective(model, key, progress)`, from 0 to 1."""
  start, step, merge = stepper(model, objective, optimizer)
  xs = jax.random.split(key, steps), jnp.arange(steps) / steps
  return merge(jax.lax.scan(step, start, xs)[0])
