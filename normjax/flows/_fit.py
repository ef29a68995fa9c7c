"""Training in one call: a flow is fitted to a table in memory.

The loop of `experiments/train.py` saves, resumes and shards; this one is for notebooks. An epoch is
one compiled scan over shuffled batches, and one number per batch comes back to the host.
"""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, PyTree

from normjax._sizes import check_sizes
from normjax.flows._batch_norm_flow import update_statistics
from normjax.flows._checks import check_batch
from normjax.flows._distribution import Distribution
from normjax.flows._flow import Flow

T = TypeVar("T", bound=nnx.Module)


class FitResult(NamedTuple, Generic[T]):
  """Holds what `fit` returns.

  Attributes:
    flow: the fitted flow, of the best epoch on held-out data if there are any.
    train_losses: (epochs,) the mean loss of each epoch, while it was trained.
    validation_losses: (epochs,) that of the held-out examples at the end of it; (0,) without any.
    best_epoch: which epoch `flow` is from, counted from 0.

  Example:
    >>> FitResult(nnx.Dict(), np.zeros(2), np.zeros(0), best_epoch=1).best_epoch
    1
  """

  flow: T
  train_losses: np.ndarray
  validation_losses: np.ndarray
  best_epoch: int


def fit(
  flow: T,
  x: Array | np.ndarray,
  cond: PyTree | None = None,
  *,
  key: Array,
  objective: Callable[..., Array] | None = None,
  optimizer: optax.GradientTransformation | None = None,
  epochs: int = 100,
  batch_size: int = 256,
  validation_fraction: float = 0.1,
  patience: int | None = 10,
  callback: Callable[[int, float, float | None], Any] | None = None,
) -> FitResult[T]:
  """Fit a flow to examples by maximum likelihood, with early stopping.

  minimize mean_i objective_i,  objective (b,) = -log p(x | cond) in nats,  x (n, ...)

  Only `nnx.Param`s are trained. Running statistics (`nnx.BatchStat`) move as an `objective` of
  one's own leaves them; else `update_statistics` moves those of a flow. Every epoch shuffles;
  examples that do not fill the last batch sit it out. Standardize the data, or start the flow by
  `init_from_data`, before. A stream `dropout` is reseeded in each step; held-out examples see the
  flow in evaluation mode, in which it returns.

  Args:
    flow: what to fit, a `flows.Distribution`; it is left as it is. Any `nnx.Module` goes with an
      `objective`.
    x: examples (n, ...), floating for the default objective.
    cond: a tree of arrays (n, ...), one row per example, or None.
    key: decides the held-out examples, the order and the keys of the objective.
    objective: `objective(flow, x, cond, key) -> (b,)`, what is minimized on average.
    optimizer: Adam with a learning rate of 1e-3 by default.
    epochs: how often the examples are seen at most.
    batch_size: examples in a step; all of them if there are fewer.
    validation_fraction: share of the examples that is held out, at least one; 0: none.
    patience: epochs without a better held-out loss after which to stop; None: never.
    callback: `callback(epoch, train_loss, validation_loss)` after each epoch, to show progress.

  Returns:
    A `FitResult`, whose flow is new and shares nothing with the old one.

  Raises:
    ValueError: if `x` is not floating (without an objective of one's own) or has fewer examples
      than are needed, `cond` has more or fewer rows than `x`, or a number is out of range.
    FloatingPointError: if a loss or a parameter becomes infinite or NaN.

  Example:
    >>> from normjax import flows
    >>> x = 3 + 2 * jax.random.normal(jax.random.key(0), (512, 2))
    >>> flow = flows.Flow(flows.Chain([]), flows.DiagonalNormal((2,)))
    >>> result = flows.fit(flow, x, key=jax.random.key(1), optimizer=optax.adam(0.1), batch_size=64)
    >>> bool(abs(result.flow.base.loc[...] - 3).max() < 0.5)
    True
  """
  x, cond = jnp.asarray(x), jax.tree.map(jnp.asarray, cond)
  likelihood = objective is None
  if objective is None:
    if not isinstance(flow, Distribution):
      raise ValueError(f"flow must be a flows.Distribution without an objective, got {flow!r}")
    check_batch("x", x)
    objective = lambda flow, x, cond, key: -flow.log_prob(x, cond)
  check_sizes(epochs=epochs, batch_size=batch_size, patience=patience)
  optimizer = optax.adam(1e-3) if optimizer is None else optimizer
  key, split_key = jax.random.split(key)
  train, held_out = _split(split_key, x, cond, validation_fraction)

  graphdef, *states = nnx.split(flow, nnx.Param, nnx.BatchStat, ...)
  params, stats, rest = map(nnx.to_pure_dict, states)

  def train_loss(params, stats, rest, batch, key):
    model = nnx.merge(graphdef, params, stats, rest)
    model.train()
    key, dropout_key = jax.random.split(key)
    nnx.reseed(model, dropout=dropout_key, policy="match_shape")
    if likelihood and stats and isinstance(model, Flow):
      nnx.update(model, nnx.state(update_statistics(model, *batch), nnx.BatchStat))
    loss = jnp.mean(objective(model, *batch, key))
    return loss, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

  def epoch(params, opt, stats, rest, train, held_out, key):
    def step(carry, rows_and_key):
      params, opt, stats = carry
      rows, key = rows_and_key
      batch = jax.tree.map(lambda a: a[rows], train)
      gradient_of = jax.value_and_grad(train_loss, has_aux=True)
      (loss, stats), gradient = gradient_of(params, stats, rest, batch, key)
      updates, opt = optimizer.update(gradient, opt, params)
      return (optax.apply_updates(params, updates), opt, stats), loss

    order_key, step_key, validation_key = jax.random.split(key, 3)
    rows = _batches(jax.random.permutation(order_key, len(train[0])), batch_size)
    keys = jax.random.split(step_key, len(rows))
    (params, opt, stats), losses = jax.lax.scan(step, (params, opt, stats), (rows, keys))
    score = None
    if held_out is not None:
      # The last batch repeats rows, which weigh nothing: one shape, and every example counts.
      size = min(batch_size, len(held_out[0]))
      count = -(-len(held_out[0]) // size)
      rows = jnp.resize(jnp.arange(len(held_out[0])), (count, size))
      weights = (jnp.arange(count * size) < len(held_out[0])).reshape(count, size)

      def validate(total, rows_weight_key):
        rows, weight, key = rows_weight_key
        batch = jax.tree.map(lambda a: a[rows], held_out)
        model = nnx.merge(graphdef, params, stats, rest)
        model.eval()
        loss = jnp.average(objective(model, *batch, key), weights=weight)
        return total + loss * jnp.sum(weight), None

      keys = jax.random.split(validation_key, count)
      zero = jnp.zeros((), losses.dtype)
      score = jax.lax.scan(validate, zero, (rows, weights, keys))[0] / len(held_out[0])
    return params, opt, stats, (losses, score, optax.tree.norm(params))

  run = jax.jit(epoch)
  opt = optimizer.init(params)
  best, best_score, best_epoch, train_losses, scores = (params, stats), np.inf, 0, [], []
  for i in range(epochs):
    key, epoch_key = jax.random.split(key)
    params, opt, stats, outcome = run(params, opt, stats, rest, train, held_out, epoch_key)
    losses, score, norm = jax.device_get(outcome)
    _check_finite(i, losses, score, norm)
    train_losses.append(losses.mean())
    scores += [] if score is None else [score]
    if score is None or score < best_score:
      best, best_score, best_epoch = (params, stats), score, i
    if callback is not None:
      callback(i, float(train_losses[-1]), None if score is None else float(score))
    if score is not None and patience is not None and i - best_epoch >= patience:
      break
  fitted = nnx.merge(graphdef, *best, rest)
  fitted.eval()
  return FitResult(fitted, np.array(train_losses), np.array(scores), best_epoch)


def _split(key, x, cond, fraction):
  """Return the examples to train on and those held out, or None, each as `(x, cond)`."""
  if not 0 <= fraction < 1:
    raise ValueError(f"validation_fraction must be in [0, 1), got {fraction}")
  n = x.shape[0] if x.ndim else 0
  held = max(1, round(n * fraction)) if fraction else 0
  if n <= held:
    raise ValueError(f"x must have shape (n, ...) with n > {held}, got {x.shape}")
  for leaf in jax.tree.leaves(cond):
    if leaf.shape[:1] != (n,):
      raise ValueError(f"cond must have {n} rows, as x has, got shape {leaf.shape}")
  rows = jax.random.permutation(key, n)
  take = lambda rows: jax.tree.map(lambda a: a[rows], (x, cond))
  return take(rows[held:]), take(rows[:held]) if held else None


def _batches(rows, size):
  """Cut (n,) rows into (count, size), without those that do not fill a batch."""
  size = min(size, len(rows))
  return rows[: len(rows) // size * size].reshape(-1, size)


def _check_finite(epoch, losses, score, norm):
  advice = "lower the learning rate, clip gradients or standardize x"
  bad = np.flatnonzero(~np.isfinite(losses))
  if bad.size:
    raise FloatingPointError(
      f"the loss is {losses[bad[0]]} at step {bad[0]} of epoch {epoch}: {advice}"
    )
  if not np.isfinite(norm):
    raise FloatingPointError(f"parameters are not finite after epoch {epoch}: {advice}")
  if score is not None and not np.isfinite(score):
    raise FloatingPointError(f"the held-out loss is {score} after epoch {epoch}: {advice}")
