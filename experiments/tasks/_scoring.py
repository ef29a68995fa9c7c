"""One function of a model, over all held-out examples."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments import data


def score_all(task: Any, model: Any, draws: int = 1) -> np.ndarray:
  """Return the task's score (n,) of every held-out example, averaged over `draws`."""
  return over_held_out(task, model, lambda *arguments: task.score(*arguments, draws))


def over_held_out(
  task: Any, model: Any, function: Callable[..., Any], count: int | None = None
) -> np.ndarray:
  """Return `function(model, batch, key)` (b, ...) of `count` held-out examples, or all."""
  arrays = task.evaluation_arrays(count)
  size = min(task.config.eval.batch_size, data.num_examples(arrays))
  function = jax.jit(function)
  key, results = jax.random.key(task.config.seed + 2), []
  for i, batch in enumerate(data.batches(arrays, size, shuffle=False, repeat=False)):
    rows = data.num_examples(batch)
    # The last batch is filled up, so that one shape is compiled; the filling is cut off again.
    full = {name: np.resize(array, (size, *array.shape[1:])) for name, array in batch.items()}
    results.append(np.asarray(function(model, full, jax.random.fold_in(key, i)))[:rows])
  return np.concatenate(results)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
  """Return the mean of examples' values (n,) and its standard error."""
  return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def spread(arrays: dict[str, np.ndarray], count: int | None) -> dict[str, np.ndarray]:
  """Return `count` examples, or all, spread evenly over a set.

  Neighbours may be alike (patches of one photo), so the first ones would not stand for the rest.
  """
  total = data.num_examples(arrays)
  count = total if count is None else min(count, total)
  chosen = np.arange(count) * total // count
  return {name: array[chosen] for name, array in arrays.items()}


def markdown(head: str, unit: str, rows: list[tuple[str, str]]) -> str:
  """Return a Markdown table of two columns."""
  width = max(len(name) for name in [head, *(name for name, _ in rows)])
  lines = [f"| {head:{width}} | {unit:13} |", f"| {'-' * width} | ------------- |"]
  return "\n".join(lines + [f"| {name:{width}} | {value:13} |" for name, value in rows])
