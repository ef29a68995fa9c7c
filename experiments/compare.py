"""Compare norms: one experiment under many norms, batch sizes and seeds, one table, one figure.

  python -m experiments.compare --grid=experiments/grids/norms.py --out=runs/norms

For each norm and batch size the first seed runs at every learning rate; the one with the least
error on validation examples, which are taken out of the training set, is run with all seeds and
scored on the test set. A norm may stand in a grid several times, with other options, as NAME/WORD.
The training step is that of `experiments.train`; here the steps between two points of a curve are
one compiled loop over data on the device. Each finished run is a file in OUT/runs; the same command
does what is missing, runs that failed included. A run whose loss is not finite has diverged: it is
part of the table, and its rate is chosen only if all diverge.
"""

import json
import time
import traceback
from concurrent import futures
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments import command, comparison, data, tasks, workdirs
from experiments.optimizer import make_optimizer
from experiments.step import make_steps

FLAGS = flags.FLAGS


class Run(NamedTuple):
  """One training: what is varied."""

  norm: str
  batch_size: int
  lr: float
  seed: int

  @property
  def file(self) -> str:
    """The name of its file."""
    return f"{_stem(self.norm, self.batch_size)}-lr{self.lr:g}-s{self.seed}.json"


def _stem(norm: str, batch_size: int) -> str:
  return f"{norm.replace('/', '-')}-b{batch_size}"


def compare(grid: ConfigDict, out: str, workers: int = 2) -> list[dict]:
  """Run what is missing of a grid and write the table and the figure.

  Args:
    grid: as `get_config` of a file in `experiments/grids` makes it.
    out: the folder of the comparison.
    workers: pairs of a norm and a batch size that run at a time, on one device.

  Returns:
    The rows of the table.

  Raises:
    ValueError: if the folder belongs to another grid, or the grid does not fit its data.
  """
  folder = Path(out)
  arrays = split(grid)
  comparison.claim(folder, grid.to_dict())
  pairs = [(norm, i) for i in range(len(grid.batch_sizes)) for norm in grid.norms]
  left = {pair: missing(grid, folder, *pair) for pair in pairs}
  todo = sum(left.values())
  logging.info("%d norms, %d runs to do", len(grid.norms), todo)
  start, done = time.monotonic(), 0
  with futures.ThreadPoolExecutor(workers) as pool:
    jobs = {
      pool.submit(run_pair, grid, folder, arrays, *pair): pair for pair in pairs if left[pair]
    }
    for job in futures.as_completed(jobs):
      job.result()
      done += left[jobs[job]]
      to_go = (time.monotonic() - start) / done * (todo - done)
      norm, i = jobs[job]
      logging.info(
        "%d/%d runs, %.0f s to go; %s at batch size %d done", done, todo, to_go, norm,
        grid.batch_sizes[i],
      )  # fmt: skip
      comparison.report(grid, folder, results(grid, folder))
  rows, files = comparison.report(grid, folder, results(grid, folder))
  print(files[0].read_text())
  for file in files:
    print(f"wrote {file}")
  return rows


def split(grid: ConfigDict) -> dict[str, dict[str, np.ndarray]]:
  """Return training, validation (from the training set, by chance) and test examples."""
  dataset = data.load(grid.config.data.name, **grid.config.data.options)
  total, wanted = len(dataset.train["label"]), grid.train_examples + grid.validation_examples
  if wanted > total:
    raise ValueError(f"train_examples + validation_examples = {wanted} are more than {total}")
  if bad := [s for s in grid.steps if s % grid.points]:
    raise ValueError(f"steps must be multiples of points = {grid.points}, got {bad}")
  if len(grid.steps) != len(grid.batch_sizes):
    raise ValueError(f"steps must be one for each of batch_sizes, got {grid.steps}")
  order = np.random.default_rng(0).permutation(total)
  parts = {"validation": order[: grid.validation_examples]}
  parts["train"] = order[grid.validation_examples : wanted]
  arrays = {k: {n: a[chosen] for n, a in dataset.train.items()} for k, chosen in parts.items()}
  return {**arrays, "test": tasks.spread(dataset.test, grid.test_examples)}


def run_pair(grid: ConfigDict, folder: Path, arrays: dict, norm: str, i: int) -> None:
  """Do what is missing of one norm at one batch size."""
  execute = None
  for run in stage_runs(grid, folder, norm, i):
    if done(folder, run):
      continue
    start = time.monotonic()
    try:
      if execute is None:
        execute = make_execute(grid, arrays, norm, i)
      result = execute(run)
    except Exception as error:  # A norm that can't run is a result; the table says why.
      logging.warning("%s failed:\n%s", run.file, traceback.format_exc())
      result = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    result = {**run._asdict(), **result, "seconds": time.monotonic() - start}
    workdirs.write_json(folder / "runs" / run.file, result)
    if "failed" in result:
      return
    outcome = "diverged" if result["diverged"] else f"test error {result['test_error']:.4f}"
    logging.info("%s: %s, %.0f s", run.file, outcome, result["seconds"])


def stage_runs(grid: ConfigDict, folder: Path, norm: str, i: int):
  """Yield the runs of a pair: the first seed at every rate, then, once chosen, the other seeds."""
  size, first = grid.batch_sizes[i], grid.seeds[0]
  for lr in grid.learning_rates:
    yield Run(norm, size, lr, first)
  lr = chosen_rate(grid, folder, norm, i)
  for seed in grid.seeds[1:]:
    yield Run(norm, size, lr, seed)


def chosen_rate(grid: ConfigDict, folder: Path, norm: str, i: int) -> float:
  """Return the rate of the least validation error; the smallest of the best."""
  runs = [Run(norm, grid.batch_sizes[i], lr, grid.seeds[0]) for lr in sorted(grid.learning_rates)]
  read = [json.loads((folder / "runs" / run.file).read_text()) for run in runs]
  errors = [np.inf if r["diverged"] else r["validation_error"][-1] for r in read]
  return runs[int(np.argmin(errors))].lr


def done(folder: Path, run: Run) -> bool:
  """Return whether a run was finished before."""
  path = folder / "runs" / run.file
  return path.is_file() and "failed" not in json.loads(path.read_text())


def missing(grid: ConfigDict, folder: Path, norm: str, i: int) -> int:
  """Return how many runs of a pair are missing."""
  size, rates = grid.batch_sizes[i], grid.learning_rates
  tuning = [not done(folder, Run(norm, size, lr, grid.seeds[0])) for lr in rates]
  if any(tuning):
    return sum(tuning) + len(grid.seeds) - 1
  return sum(not done(folder, run) for run in stage_runs(grid, folder, norm, i))


def results(grid: ConfigDict, folder: Path) -> list[dict]:
  """Return for each norm and batch size its runs at the chosen rate, or why there are none."""
  found = []
  for i, size in enumerate(grid.batch_sizes):
    for norm in grid.norms:
      paths = sorted((folder / "runs").glob(f"{_stem(norm, size)}-lr*.json"))
      read = [json.loads(path.read_text()) for path in paths]
      failed = [r["failed"] for r in read if "failed" in r]
      complete = not failed and not missing(grid, folder, norm, i)
      entry = {"norm": norm, "batch_size": size, "failed": (failed or [None])[0], "runs": []}
      if complete:
        rate = chosen_rate(grid, folder, norm, i)
        entry["lr"] = rate
        entry["runs"] = [r for r in read if r["lr"] == rate]
      found.append(entry)
  return found


def pair_config(grid: ConfigDict, norm: str, i: int) -> ConfigDict:
  """Return the config of `experiments.train` that a pair stands for, up to seed and rate."""
  config = grid.config.copy_and_resolve_references()
  warmups = grid.warmups.get(norm, {}).items()
  options = {option: int(share * grid.steps[i]) for option, share in warmups}
  with config.unlocked():
    name = norm.partition("/")[0]
    config.norm = {"name": name, "options": {**grid.norms[norm].to_dict(), **options}}
    if name == "none":
      config.norm.name = None
  config.update(batch_size=grid.batch_sizes[i], total_steps=grid.steps[i])
  return config


def make_execute(grid: ConfigDict, arrays: dict, norm: str, i: int):
  """Return `execute(run) -> result`, which compiles once for all seeds and rates of a pair."""
  config = pair_config(grid, norm, i)
  task, steps = tasks.make(config), config.total_steps

  def steps_at(lr):
    return make_steps(task, make_optimizer(config.optimizer, steps, lr), config.ema_decay)

  init = jax.jit(lambda seed: steps_at(0.0).init(seed))

  @partial(jax.jit, donate_argnums=0)
  def advance(state, lr, order, examples):
    train = steps_at(lr).train
    take = lambda chosen: {name: array[chosen] for name, array in examples.items()}
    state, metrics = jax.lax.scan(lambda s, chosen: train(s, take(chosen)), state, order)
    return state, jnp.mean(metrics["loss"]), jnp.all(jnp.isfinite(metrics["loss"]))

  @jax.jit
  def score(state, batch):
    return jnp.mean(steps_at(0.0).score(state, batch, jax.random.key(0)))

  def error(state, batches):
    return np.mean([np.asarray(score(state, batch)) for batch in batches], dtype=np.float64)

  train, validation, test = jax.device_put(
    (arrays["train"], *(whole_batches(config, arrays[k]) for k in ("validation", "test")))
  )

  def execute(run):
    index = {"index": np.arange(len(arrays["train"]["label"]))}
    batches = data.batches(index, config.batch_size, run.seed)
    order = np.stack([next(batches)["index"] for _ in range(steps)])
    state, curve = init(run.seed), []
    for part in np.split(order, grid.points):
      state, loss, finite = advance(state, jnp.float32(run.lr), part, train)
      curve.append((np.asarray(loss), np.asarray(finite), error(state, validation)))
    loss, finite, errors = zip(*curve, strict=True)
    return {
      "step": [steps // grid.points * (k + 1) for k in range(grid.points)],
      "loss": [float(v) if np.isfinite(v) else None for v in loss],
      "validation_error": [float(v) for v in errors],
      "test_error": float(error(state, test)),
      "diverged": not all(finite),
    }

  return execute


def whole_batches(
  config: ConfigDict, examples: dict[str, np.ndarray]
) -> list[dict[str, np.ndarray]]:
  """Return examples in batches of one size that leaves none out."""
  total = len(examples["label"])
  size = max(b for b in range(1, min(config.eval.batch_size, total) + 1) if total % b == 0)
  return list(data.batches(examples, size, shuffle=False, repeat=False))


def main(argv):
  """Compare as the flags say."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; flags look like --out=DIR")
  logging.set_verbosity(logging.INFO)
  compare(FLAGS.grid, FLAGS.out, FLAGS.workers)


if __name__ == "__main__":
  config_flags.DEFINE_config_file("grid", help_string="What to compare: file.py[:tiny].")
  flags.DEFINE_string("out", None, "Where runs, table and figure go.")
  flags.DEFINE_integer("workers", 2, "Norms that are trained at a time.")
  flags.mark_flags_as_required(["grid", "out"])
  command.run(main, trains=True)
