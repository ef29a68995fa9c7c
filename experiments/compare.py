"""Compare norms: one experiment under many norms, batch sizes and seeds, one table, one figure.

  python -m experiments.compare --grid=experiments/grids/norms.py --out=runs/norms

For each norm and batch size the first seed runs at every learning rate; the one with the least
error on validation examples, which are taken out of the training set, is run with all seeds and
scored on the test set: see `experiments.tuning`. A norm may stand in a grid several times, with
other options, as NAME/WORD.
"""

from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments import command, comparison, data, tasks, tuning

FLAGS = flags.FLAGS


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
  comparison.claim(folder, grid.to_dict(), {"norms": "norms", "warmups": "norms"})
  cells = [cell(grid, norm, i) for i in range(len(grid.batch_sizes)) for norm in grid.norms]
  report = lambda: comparison.report(grid, folder, [tuning.result(folder, c) for c in cells])
  return tuning.run_all(
    folder, cells, lambda cell: make_execute(grid, arrays, cell), workers, report
  )


def cell(grid: ConfigDict, norm: str, i: int) -> tuning.Cell:
  """Return the cell of a norm at a batch size."""
  keys = {"norm": norm, "batch_size": grid.batch_sizes[i]}
  select = lambda run: run["validation_error"][-1]
  return tuning.Cell(keys, grid.learning_rates, grid.seeds, select)


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


def pair_config(grid: ConfigDict, norm: str, i: int) -> ConfigDict:
  """Return the config of `experiments.train` that a pair stands for, up to seed and rate."""
  config = grid.config.copy_and_resolve_references()
  warmups = grid.warmups.get(norm, {}).items()
  options = {option: int(share * grid.steps[i]) for option, share in warmups}
  with config.unlocked():
    name = norm.partition("/")[0]
    config.norm = {"name": name, "options": {**grid.norms[norm].to_dict(), **options}}
  config.update(batch_size=grid.batch_sizes[i], total_steps=grid.steps[i])
  return config


def make_execute(grid: ConfigDict, arrays: dict, cell: tuning.Cell) -> tuning.Execute:
  """Return `execute(lr, seed) -> result`, which compiles once for all seeds and rates of a pair."""
  norm, size = cell.keys["norm"], cell.keys["batch_size"]
  config = pair_config(grid, norm, list(grid.batch_sizes).index(size))
  run = tuning.make_points(tasks.make(config), config, grid.points)
  whole = (tuning.whole_batches(config, arrays[k]) for k in ("validation", "test"))
  train, validation, test = jax.device_put((arrays["train"], *whole))

  def execute(lr, seed):
    curve = []
    for point in run(train, lr, seed):
      curve.append((point.step, point.loss, point.finite, point.score(validation)))
    step, loss, finite, errors = zip(*curve, strict=True)
    return {
      "step": list(step),
      "loss": [v if np.isfinite(v) else None for v in loss],
      "validation_error": list(errors),
      "test_error": point.score(test),
      "diverged": not all(finite),
    }

  return execute


def main(argv):
  """Compare as the flags say."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; flags look like --out=DIR")
  logging.set_verbosity(logging.INFO)
  compare(FLAGS.grid, FLAGS.out, FLAGS.workers)


if __name__ == "__main__":
  config_flags.DEFINE_config_file("grid", help_string="What to compare: file.py[:tiny].")
  command.define_path("out", None, "Where runs, table and figure go.")
  flags.DEFINE_integer("workers", 2, "Norms that are trained at a time.", lower_bound=1)
  flags.mark_flags_as_required(["grid", "out"])
  command.run(main, trains=True)
