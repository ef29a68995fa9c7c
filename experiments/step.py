"""The mathematics of training, as pure functions of one state: what `train` and `compare` share.

The state is a nested dict: `params`; `rest`, all other Variables; `opt`, that of the optimizer;
`key`; `step`; and `ema`, the running mean of the parameters, if the config asks for one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from normjax import carried, checkpoint


class Steps(NamedTuple):
  """What can be done with a training state.

  Attributes:
    init: `init(seed) -> state`; the seed may be traced.
    start: `start(state, batch) -> state` for a new state, where the task has layers that start from
      data (`task.start`); else None.
    train: `train(state, batch) -> (state, metrics)`, one update.
    score: `score(state, batch, key) -> (b,)`, the task's score of each example in evaluation mode.
  """

  init: Callable[[Any], dict[str, Any]]
  start: Callable[..., dict[str, Any]] | None
  train: Callable[..., tuple[dict[str, Any], dict[str, Any]]]
  score: Callable[..., Any]


def make_steps(task: Any, optimizer: optax.GradientTransformation, ema_decay: float) -> Steps:
  """Return the steps of a task; all of them are pure and none is compiled yet."""
  # The structure does not depend on values, so tracing shapes alone finds it.
  structure = []

  def split(seed):
    graphdef, params, rest = checkpoint.to_state(
      checkpoint.build(task.model, nnx.Rngs(jax.random.key(seed)))
    )
    structure.append(graphdef)
    return params, rest

  jax.eval_shape(split, 0)
  graphdef = structure[0]

  def fresh(params, rest, key):
    state = {
      "params": params,
      "rest": rest,
      "opt": optimizer.init(params),
      "key": key,
      "step": jnp.zeros((), jnp.int32),
    }
    return {**state, "ema": jax.tree.map(jnp.copy, params)} if ema_decay else state

  def init(seed):
    return fresh(*split(seed), jax.random.key(seed))

  def start(state, batch):
    model = checkpoint.from_state(graphdef, state["params"], state["rest"])
    # No training step has this key: theirs fold in the step.
    model = task.start(model, batch, state["key"])
    return fresh(*checkpoint.to_state(model)[1:], state["key"])

  def train(state, batch):
    key = jax.random.fold_in(state["key"], state["step"])
    model = checkpoint.from_state(graphdef, state["params"], state["rest"])
    _, params, written, rest = carried.split(model)

    def loss_fn(params, written):
      model = checkpoint.from_state(graphdef, params, written, rest)
      loss, metrics = task.loss(model, batch, key)
      return loss, (metrics, carried.split(model)[3])

    (_, (metrics, rest)), gradients, increments = carried.value_and_grad(loss_fn)(params, written)
    written = carried.apply(written, increments)
    _, _, rest = checkpoint.to_state(checkpoint.from_state(graphdef, params, written, rest))
    updates, opt = optimizer.update(gradients, state["opt"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    step = state["step"] + 1
    metrics["gradient_norm"] = optax.tree.norm(gradients)
    new = {**state, "params": params, "rest": rest, "opt": opt, "step": step}
    if ema_decay:
      # A young mean forgets faster, so that initial values don't linger in it.
      decay = jnp.minimum(ema_decay, (1 + step) / (10 + step))
      new["ema"] = optax.incremental_update(params, state["ema"], 1 - decay)
    return new, metrics

  def score(state, batch, key):
    weights = state["ema"] if ema_decay else state["params"]
    model = checkpoint.from_state(graphdef, weights, state["rest"])
    model.eval()
    return task.score(model, batch, key, 1)

  return Steps(init, start if getattr(task, "start", None) else None, train, score)
