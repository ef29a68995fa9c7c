"""Compare norms: one experiment under many norms, batch sizes and seeds, one table, one figure.

  python -m experiments.compare --grid=experiments/grids/norms.py --out=runs/norms

For each norm and batch size the first seed runs at every learning rate; the one with the least
error on validation examples, which are taken out of the training set, is run with all seeds and
scored on the test set. The training step is that of `experiments.train`; here all steps of a run
are one compiled loop over data on the device. Each finished run is a file in OUT/runs; the same
command does what is missing, runs that failed included. A run whose loss is not finite has
diverged: it is part of the table, and its learning rate is chosen only if all diverge.
"""

import json
import time
import traceback
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments import command, comparison, data, tasks
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
    return f"{self.norm}-b{self.batch_size}-lr{self.lr:g}-s{self.seed}.json"


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
    comparison.write_json(folder / "runs" / run.file, result)
    if "failed" in result:
      return


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
      paths = sorted((folder / "runs").glob(f"{norm}-b{size}-lr*.json"))
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
    config.norm = {"name": norm, "options": {**grid.norms[norm].to_dict(), **options}}
    if norm == "none":
      config.norm.name = None
  config.update(batch_size=grid.batch_sizes[i], total_steps=grid.steps[i])
  return config


def make_execute(grid: ConfigDict, arrays: dict, norm: str, i: int):
  """Return `execute(run) -> result`, which compiles once for all seeds and rates of a pair."""
  config = pair_config(grid, norm, i)
  task, steps = tasks.make(config), config.total_steps
  fitting = {k: whole_batches(config, arrays[k]) for k in ("validation", "test")}

  @jax.jit
  def train(seed, lr, order, examples, fitting):
    optimizer = make_optimizer(config.optimizer, steps, lr)
    pure = make_steps(task, optimizer, config.ema_decay)

    def error(state, batches):
      key = jax.random.key(0)
      return jnp.mean(jax.lax.map(lambda batch: pure.score(state, batch, key), batches))

    def step(state, chosen):
      return pure.train(state, {name: array[chosen] for name, array in examples.items()})

    def stretch(state, order):
      state, metrics = jax.lax.scan(step, state, order)
      finite = jnp.all(jnp.isfinite(metrics["loss"]))
      return state, (jnp.mean(metrics["loss"]), finite, error(state, fitting["validation"]))

    order = order.reshape(grid.points, steps // grid.points, config.batch_size)
    state, (loss, finite, validation) = jax.lax.scan(stretch, pure.init(seed), order)
    return loss, jnp.all(finite), validation, error(state, fitting["test"])

  put = jax.device_put((arrays["train"], fitting))

  def execute(run):
    index = {"index": np.arange(len(arrays["train"]["label"]))}
    batches = data.batches(index, config.batch_size, run.seed)
    order = np.stack([next(batches)["index"] for _ in range(steps)])
    found = train(run.seed, jnp.float32(run.lr), order, *put)
    loss, finite, validation, test = map(np.asarray, found)
    return {
      "step": [steps // grid.points * (k + 1) for k in range(grid.points)],
      "loss": [float(v) if np.isfinite(v) else None for v in loss],
      "validation_error": [float(v) for v in validation],
      "test_error": float(test),
      "diverged": not finite,
    }

  return execute


def whole_batches(config: ConfigDict, examples: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Return examples as (n, b, ...) batches of one size that leaves none out."""
  total = len(examples["label"])
  size = max(b for b in range(1, min(config.eval.batch_size, total) + 1) if total % b == 0)
  return {name: array.reshape(-1, size, *array.shape[1:]) for name, array in examples.items()}


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
  command.run(main)
