"""Choose a learning rate on validation examples, then run all seeds: what comparisons share.

A cell of a comparison's table is one variant on one set. Its first seed runs at every rate, and the
best rate with all seeds. Each finished run is a file FOLDER/runs/STEM-lrLR-sSEED.json, so that the
same command does what is missing, runs that failed included. A run whose loss is not finite has
diverged; its rate is chosen only if all diverge.

The training step is that of `experiments.train`; the steps between two points of a curve are one
compiled loop over data on the device.
"""

import json
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from experiments import data, tasks, workdirs
from experiments.optimizer import make_optimizer
from experiments.step import make_steps


class Cell(NamedTuple):
  """A variant on a set.

  Attributes:
    keys: what names it, also in the files of its runs.
    rates: learning rates to choose from.
    seeds: of the runs.
    select: what a run is chosen by, given its file's content; less is better.
  """

  keys: dict[str, Any]
  rates: Sequence[float]
  seeds: Sequence[int]
  select: Callable[[dict[str, Any]], float]

  @property
  def stem(self) -> str:
    """What the names of its runs' files begin with."""
    short = (f"b{k}" if isinstance(k, int) else k.replace("/", "-") for k in self.keys.values())
    return "-".join(short)

  def path(self, folder: Path, lr: float, seed: int) -> Path:
    """Return the file of a run."""
    return folder / "runs" / f"{self.stem}-lr{lr:g}-s{seed}.json"


Execute = Callable[[float, int], dict[str, Any]]


def run_all(
  folder: Path,
  cells: Sequence[Cell],
  make_execute: Callable[[Cell], Execute],
  workers: int,
  report: Callable[[], tuple[list[dict[str, Any]], list[Path]]],
) -> list[dict[str, Any]]:
  """Do what is missing, several cells at a time; report after each cell, print, return the rows.

  `report()` writes the table, first of all, and further files, and returns its rows and the files.
  An error or Control-C ends it after the cells that are being run.
  """
  left = [missing(folder, cell) for cell in cells]
  todo, start, finished = sum(left), time.monotonic(), 0
  logging.info("%d cells, %d runs to do", len(cells), todo)
  with futures.ThreadPoolExecutor(workers) as pool:
    jobs = {
      pool.submit(run_cell, folder, cell, make_execute): (cell, count)
      for cell, count in zip(cells, left, strict=True)
      if count
    }
    try:
      for job in futures.as_completed(jobs):
        job.result()
        cell, count = jobs[job]
        finished += count
        to_go = (time.monotonic() - start) / finished * (todo - finished)
        logging.info("%d/%d runs, %.0f s to go; %s done", finished, todo, to_go, cell.stem)
        report()
    except BaseException:  # Control-C too: the pool would work through all that waits.
      pool.shutdown(wait=False, cancel_futures=True)
      raise
  rows, files = report()
  print(files[0].read_text())
  for file in files:
    print(f"wrote {file}")
  return rows


def run_cell(folder: Path, cell: Cell, make_execute: Callable[[Cell], Execute]) -> None:
  """Do what is missing of one cell."""
  execute = None
  for lr, seed in stage_runs(folder, cell):
    path = cell.path(folder, lr, seed)
    if done(path):
      continue
    start = time.monotonic()
    try:
      if execute is None:
        execute = make_execute(cell)
      result = execute(lr, seed)
    except Exception as error:  # A variant that can't run is a result; the table says why.
      logging.warning("%s failed:\n%s", path.name, traceback.format_exc())
      first, *_ = [*str(error).splitlines(), ""]
      result = {"failed": f"{type(error).__name__}: {first[:200]}".removesuffix(": ")}
    seconds = time.monotonic() - start
    result = {**cell.keys, "lr": lr, "seed": seed, **result, "seconds": seconds}
    workdirs.write_json(path, result)
    if "failed" in result:
      return
    outcome = "diverged" if result["diverged"] else f"{cell.select(result):.4f} on validation"
    logging.info("%s: %s, %.0f s", path.name, outcome, seconds)


def stage_runs(folder: Path, cell: Cell) -> Iterator[tuple[float, int]]:
  """Yield the runs of a cell: the first seed at every rate, then, once chosen, the other seeds."""
  for lr in cell.rates:
    yield lr, cell.seeds[0]
  lr = chosen_rate(folder, cell)
  for seed in cell.seeds[1:]:
    yield lr, seed


def chosen_rate(folder: Path, cell: Cell) -> float:
  """Return the rate of the least validation score; the smallest of the best."""
  rates = sorted(cell.rates)
  read = [json.loads(cell.path(folder, lr, cell.seeds[0]).read_text()) for lr in rates]
  return rates[int(np.argmin([np.inf if r["diverged"] else cell.select(r) for r in read]))]


def done(path: Path) -> bool:
  """Return whether a run was finished before."""
  return path.is_file() and "failed" not in json.loads(path.read_text())


def missing(folder: Path, cell: Cell) -> int:
  """Return how many runs of a cell are missing."""
  first = [not done(cell.path(folder, lr, cell.seeds[0])) for lr in cell.rates]
  if any(first):
    return sum(first) + len(cell.seeds) - 1
  return sum(not done(cell.path(folder, *run)) for run in stage_runs(folder, cell))


def result(folder: Path, cell: Cell) -> dict[str, Any]:
  """Return a cell's keys, its `runs` at the chosen rate `lr`, and why there are none, `failed`."""
  tried = {(lr, seed) for lr in cell.rates for seed in cell.seeds}
  paths = [cell.path(folder, *run) for run in sorted(tried)]
  read = [json.loads(path.read_text()) for path in paths if path.is_file()]
  failed = [r["failed"] for r in read if "failed" in r]
  entry = {**cell.keys, "failed": (failed or [None])[0], "runs": []}
  if not failed and not missing(folder, cell):
    entry["lr"] = chosen_rate(folder, cell)
    entry["runs"] = [r for r in read if r["lr"] == entry["lr"]]
  return entry


class Point(NamedTuple):
  """What is known at a point of a curve.

  Attributes:
    step: steps taken.
    loss: mean loss since the last point.
    finite: whether every loss since then was.
    score: `score(batches) -> float`, the mean score over batches of one size.
    state: the training state, which the next point takes away.
  """

  step: int
  loss: float
  finite: bool
  score: Callable[[Sequence[Any]], float]
  state: Any


def check_points(steps: int, points: int) -> None:
  """Raise a ValueError unless the points of a curve are equally many steps apart."""
  if points < 1 or steps % points:
    raise ValueError(f"config.total_steps must be a multiple of points = {points}, got {steps}")


def make_points(task: Any, config: ConfigDict, points: int):
  """Return `run(train, lr, seed)`, which yields `points` points and compiles once for all runs.

  Args:
    task: the task, see `experiments.tasks.Task`.
    config: as for `experiments.train`; its `total_steps` is a multiple of `points`.
    points: of a curve.
  """
  steps, whole = config.total_steps, task.whole

  def steps_at(lr):
    return make_steps(task, make_optimizer(config.optimizer, steps, lr), config.ema_decay)

  fixed = steps_at(0.0)
  init, start = jax.jit(fixed.init), fixed.start and jax.jit(fixed.start)

  @partial(jax.jit, donate_argnums=0)
  def advance(state, lr, order, examples):
    train = steps_at(lr).train
    take = lambda chosen: {
      name: array if name in whole else array[chosen] for name, array in examples.items()
    }
    state, metrics = jax.lax.scan(lambda s, chosen: train(s, take(chosen)), state, order)
    return state, jnp.mean(metrics["loss"]), jnp.all(jnp.isfinite(metrics["loss"]))

  mean_score = jax.jit(lambda *arguments: jnp.mean(fixed.score(*arguments, jax.random.key(0))))

  def run(train, lr, seed):
    index = {"index": np.arange(data.num_examples(train))}
    batches = data.batches(index, config.batch_size, seed)
    order = np.stack([next(batches)["index"] for _ in range(steps)])
    state = init(seed)
    if start is not None:
      state = start(state, tasks.spread(train, config.batch_size))
    for k, part in enumerate(np.split(order, points)):
      state, loss, finite = advance(state, jnp.float32(lr), part, train)

      def score(batches, state=state):
        scores = [np.asarray(mean_score(state, batch)) for batch in batches]
        return float(np.mean(scores, dtype=np.float64))

      yield Point(steps // points * (k + 1), float(loss), bool(finite), score, state)

  return run


def whole_batches(
  config: ConfigDict, examples: dict[str, np.ndarray]
) -> list[dict[str, np.ndarray]]:
  """Return examples in batches of one size that leaves none out."""
  total = data.num_examples(examples)
  size = max(b for b in range(1, min(config.eval.batch_size, total) + 1) if total % b == 0)
  return list(data.batches(examples, size, shuffle=False, repeat=False))
