"""Compare densities of tables: flows, sets and seeds; one table, one figure.

  python -m experiments.densities --grid=experiments/grids/tables.py --out=runs/tables

A row is a flow of `config.flow` of the task "table_density", a reference ("gaussian", "gmm"), or a
flow of another library as LIBRARY/NAME, see `experiments.peer_flows`, which is left out where the
library is not installed. A column is a table, split anew for each seed. All flows see the same
arrays in the same order, have the same steps, batch size, optimizer and learning rates; rate and
step of a run are those with the least score on validation rows, which are taken out of the training
rows: see `experiments.tuning`.
"""

import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments import command, comparison, data, density_table, peer_flows, tasks, tuning
from experiments.table_references import REFERENCES, table_references

FLAGS = flags.FLAGS


def densities(grid: ConfigDict, out: str, workers: int = 2) -> list[dict]:
  """Run what is missing of a grid and write the table and the figure.

  Args:
    grid: as `get_config` of a file in `experiments/grids` makes it.
    out: the folder of the comparison.
    workers: pairs of a flow and a table that are trained at a time.

  Returns:
    The rows of the table.

  Raises:
    ValueError: if the folder belongs to another grid, a table has too few rows, or the steps are no
      multiple of the points.
  """
  folder = Path(out)
  tuning.check_points(grid.config.total_steps, grid.points)
  for column in grid.columns:
    split(grid, column, grid.seeds[0])
  comparison.claim(folder, grid.to_dict(), {"flows": "flows", "columns": "columns"})
  cells = [
    cell(grid, flow, column)
    for flow in rows_of(grid)
    for column in (grid.peer_columns if peer_flows.library(flow) else grid.columns)
  ]
  report = lambda: density_table.report(grid, folder, [tuning.result(folder, c) for c in cells])
  return tuning.run_all(folder, cells, lambda cell: make_execute(grid, cell), workers, report)


def rows_of(grid: ConfigDict) -> list[str]:
  """Return the grid's flows without those of libraries that are not installed."""
  found = [flow for flow in grid.flows if peer_flows.library(flow) is None]
  peers = [flow for flow in grid.flows if flow not in found]
  here = [flow for flow in peers if peer_flows.available(flow)]
  if absent := sorted(set(peers) - set(here)):
    logging.info("not installed, left out: %s", ", ".join(absent))
  return [*found, *here]


def cell(grid: ConfigDict, flow: str, column: str) -> tuning.Cell:
  """Return the cell of a flow on a table."""
  keys = {"flow": flow, "column": column}
  rates = (0.0,) if flow in REFERENCES else grid.learning_rates
  return tuning.Cell(keys, rates, grid.seeds, lambda run: min(run["validation_nats"]))


def split(grid: ConfigDict, column: str, seed: int) -> dict[str, dict[str, np.ndarray]]:
  """Return training, validation (from the training rows) and test rows of a column."""
  spec = grid.columns[column]
  dataset = data.load(spec.table, seed=seed, **spec.options)
  total, validation = len(dataset.train["x"]), spec.validation
  if spec.train + validation > total:
    raise ValueError(
      f"columns.{column}: train + validation = {spec.train + validation} are more than {total}"
    )
  part = lambda start, stop: {"x": dataset.train["x"][start:stop]}
  return {
    "validation": part(0, validation),
    "train": part(validation, validation + spec.train),
    "test": tasks.spread({"x": dataset.test["x"]}, spec.test),
  }


def cell_config(grid: ConfigDict, cell: tuning.Cell) -> ConfigDict:
  """Return the config of `experiments.train` that a cell stands for, up to seed and rate."""
  config, spec = grid.config.copy_and_resolve_references(), grid.columns[cell.keys["column"]]
  name, options = cell.keys["flow"], grid.flows[cell.keys["flow"]]
  with config.unlocked():
    config.data = {"name": spec.table, "options": spec.options.to_dict()}
    if peer_flows.library(name) is None and name not in REFERENCES:
      config.flow = name.partition("/")[0]
      config.model[config.flow].update(options)
  config.batch_size = min(config.batch_size, spec.train)
  return config


def make_execute(grid: ConfigDict, cell: tuning.Cell) -> tuning.Execute:
  """Return `execute(lr, seed) -> result` of a cell."""
  config, name = cell_config(grid, cell), cell.keys["flow"]
  arrays = lambda seed: split(grid, cell.keys["column"], seed)
  if name in REFERENCES:
    return lambda lr, seed: _reference(name, arrays(seed), seed)
  if peer_flows.library(name) is not None:
    train = peer_flows.make_points(name, grid.flows[name].to_dict(), config, grid.points)
    return lambda lr, seed: follow(train(arrays(seed), lr, seed))
  task = tasks.make(config)
  run = tuning.make_points(task, config, grid.points)
  return lambda lr, seed: follow(scored(run, config, arrays(seed), lr, seed))


def scored(run, config: ConfigDict, parts: dict, lr: float, seed: int, watch=lambda params: None):
  """Yield step, loss, finite, validation score, test score and size of a run at its points.

  Args:
    run: as `tuning.make_points` returns it.
    config: of the run.
    parts: its "train", "validation" and "test" examples.
    lr: its learning rate.
    seed: its seed.
    watch: sees the parameters at every point.
  """
  whole = (tuning.whole_batches(config, parts[k]) for k in ("validation", "test"))
  train, validation, test = jax.device_put((parts["train"], *whole))
  for point in run(train, lr, seed):
    params = point.state["params"]
    watch(params)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    yield point.step, point.loss, point.finite, point.score(validation), point.score(test), size


def follow(points) -> dict:
  """Return the curve of a run, and its test score where the validation score is least."""
  start = time.monotonic()
  step, loss, finite, validation, test, sizes = zip(*points, strict=True)
  number = lambda values: [float(v) if np.isfinite(v) else None for v in values]
  best = int(np.nanargmin(np.where(np.isfinite(validation), validation, np.inf)))
  return {
    "step": list(step),
    "loss": number(loss),
    # A score that is no number is never the least.
    "validation_nats": [float(v) if np.isfinite(v) else 1e9 for v in validation],
    "test_curve": number(test),
    "best_step": step[best],
    "test_nats": number(test)[best],
    "parameters": int(sizes[-1]),
    "train_seconds": time.monotonic() - start,
    "diverged": not all(finite) or not np.isfinite(test[best]),
  }


def _reference(name: str, arrays: dict, seed: int) -> dict:
  train = np.concatenate([arrays["train"]["x"], arrays["validation"]["x"]])
  score = table_references(train, arrays["test"]["x"], seed, names=(name,))[name]
  return {"validation_nats": [0.0], "test_nats": score, "diverged": False}


def main(argv):
  """Compare as the flags say."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; flags look like --out=DIR")
  logging.set_verbosity(logging.INFO)
  densities(FLAGS.grid, FLAGS.out, FLAGS.workers)


if __name__ == "__main__":
  config_flags.DEFINE_config_file("grid", help_string="What to compare: file.py[:tiny].")
  command.define_path("out", None, "Where runs, table and figure go.")
  flags.DEFINE_integer("workers", 2, "Flows that are trained at a time.", lower_bound=1)
  flags.mark_flags_as_required(["grid", "out"])
  command.run(main, trains=True)
