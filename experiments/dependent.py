"""Densities of dependent examples: learned correlations within blocks, against none.

  python -m experiments.dependent --grid=experiments/grids/dependent.py --out=runs/dependent

A row is an objective: "independent" takes examples for independent (rho = 0), "learned" learns one
rho with the flow, "fixed" keeps the grid's, "true" has each block's own, known of drawn data only.
A column is drawn in blocks, or is a table whose rows come in groups. Flow, steps, rates and batches
are the same for all; validation and test examples belong to other blocks and are scored by the
ordinary density: see `experiments.tuning`.

Reference:
  Kirchler, Lippert, Kloft, "Training Normalizing Flows from Dependent Data", 2022,
  arXiv 2209.14933.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments import command, comparison, data, density_table, tasks, tuning
from experiments.densities import follow, scored
from normjax.flows import (
  DEPENDENT_WARPS,
  block_log_prob,
  dependent_blocks,
  dependent_normals,
  sigmoid_correlation,
)

FLAGS = flags.FLAGS
OBJECTIVES = ("independent", "fixed", "learned", "true")


class Dependent(tasks.Task):
  """What `experiments.tuning` needs to know: a flow, its joint loss, its independent score.

  Args:
    config: with `model`, arguments of `normjax.models.affine_coupling_flow`, and `speed` of rho.
    objective: one of `OBJECTIVES`; all but "learned" find rho in their batches.
    dim: columns of the data.
  """

  whole = ("block", "rho")

  def __init__(self, config: ConfigDict, objective: str, dim: int):
    data.check_name("an objective", objective, OBJECTIVES)
    kwargs = {"dim": dim, **config.model.to_dict()}
    self.model = {"class": "normjax.models.affine_coupling_flow", "kwargs": kwargs}
    self.learned = objective == "learned"
    if self.learned:
      kwargs = {"flow": self.model, "speed": config.speed}
      self.model = {"class": "normjax.flows.DependentFlow", "kwargs": kwargs}

  def loss(self, flow, batch, key):
    """Return the mean of -l, in nats, of a batch that was drawn uniformly."""
    del key
    x, block, index = batch["x"], batch["block"], batch["index"]
    if self.learned:
      log_prob = flow.joint_log_prob(x, block, index=index)
    else:
      z, log_det = flow.bijector.forward(x)
      log_prob = block_log_prob(z, block, batch["rho"], index=index) + log_det
    return -log_prob.mean(), {"loss": -log_prob.mean()}

  def score(self, flow, batch, key, draws):
    """Return -log p (b,) of examples that depend on no others of the batch."""
    del key, draws
    return -flow.log_prob(batch["x"])


def dependent(grid: ConfigDict, out: str, workers: int = 2) -> list[dict]:
  """Run what is missing of a grid and write the table and the figure.

  Args:
    grid: as `get_config` of `experiments/grids/dependent.py` makes it.
    out: the folder of the comparison.
    workers: pairs of an objective and a set that are trained at a time.

  Returns:
    The rows of the table.

  Raises:
    ValueError: if the folder belongs to another grid, a column does not fit its data, or the steps
      are no multiple of the points.
  """
  folder = Path(out)
  tuning.check_points(grid.config.total_steps, grid.points)
  for column in grid.columns:
    blocks_of(grid.columns[column], grid.seeds[0])
  comparison.claim(folder, grid.to_dict(), {"columns": "columns"})
  cells = [
    cell(grid, objective, column)
    for column in grid.columns
    for objective in grid.objectives
    # Nobody knows the correlations of real data.
    if not (objective == "true" and "table" in grid.columns[column])
  ]
  report = lambda: density_table.report(
    grid, folder, [tuning.result(folder, c) for c in cells], ("rho",)
  )
  return tuning.run_all(folder, cells, lambda cell: make_execute(grid, cell), workers, report)


def cell(grid: ConfigDict, objective: str, column: str) -> tuning.Cell:
  """Return the cell of an objective on a set."""
  select = lambda run: min(run["validation_nats"])
  return tuning.Cell({"flow": objective, "column": column}, grid.learning_rates, grid.seeds, select)


def blocks_of(spec: ConfigDict, seed: int) -> dict[str, dict[str, np.ndarray]]:
  """Return training examples with their blocks, and those of other blocks to validate and test."""
  return (_grouped if "table" in spec else _drawn)(spec, seed)


def _drawn(spec: ConfigDict, seed: int) -> dict[str, dict[str, np.ndarray]]:
  keys = jax.random.split(jax.random.key(seed), 4)
  warp, n = DEPENDENT_WARPS[spec.warp], spec.train
  block, rho = dependent_blocks(keys[0], n, low=spec.low, high=spec.high)
  x = warp(dependent_normals(keys[1], block, rho))
  alone = lambda key, n: {"x": np.asarray(warp(jax.random.normal(key, (n, 2))))}
  train = {"x": x, "index": jnp.arange(n), "block": block, "rho": rho}
  return {
    "train": {name: np.asarray(array) for name, array in train.items()},
    "validation": alone(keys[2], spec.validation),
    "test": alone(keys[3], spec.test),
  }


def _grouped(spec: ConfigDict, seed: int) -> dict[str, dict[str, np.ndarray]]:
  dataset = data.load(spec.table, seed=seed, by_group=True, held_out=spec.held_out)
  x, group = dataset.train["x"], dataset.train["group"]
  chosen = np.random.default_rng(seed).permutation(np.unique(group))
  if spec.groups >= len(chosen):
    raise ValueError(f"groups must be fewer than {len(chosen)}, got {spec.groups}")
  own = np.isin(group, chosen[: spec.groups])
  _, block = np.unique(group[own], return_inverse=True)
  train = {"x": x[own], "index": np.arange(own.sum()), "block": block.astype(np.int32)}
  train["rho"] = np.zeros(len(block), np.float32)
  return {
    "train": train,
    "validation": tasks.spread({"x": x[~own]}, spec.validation),
    "test": tasks.spread({"x": dataset.test["x"]}, spec.test),
  }


def make_execute(grid: ConfigDict, cell: tuning.Cell) -> tuning.Execute:
  """Return `execute(lr, seed) -> result` of a cell, with the learned rho where there is one."""
  objective, spec = cell.keys["flow"], grid.columns[cell.keys["column"]]
  config = grid.config
  dim = blocks_of(spec, grid.seeds[0])["train"]["x"].shape[1]
  run = tuning.make_points(Dependent(config, objective, dim), config, grid.points)
  constant = {"independent": 0.0, "fixed": grid.rho}

  def execute(lr, seed):
    parts, learned = blocks_of(spec, seed), []
    if objective in constant:
      parts["train"]["rho"] = np.full_like(parts["train"]["rho"], constant[objective])

    def watch(params):
      if objective == "learned":
        learned.append(float(sigmoid_correlation(config.speed * np.asarray(params["raw"]))))

    result = follow(scored(run, config, parts, lr, seed, watch))
    if objective == "learned":
      result |= {"rho": learned[result["step"].index(result["best_step"])], "rho_curve": learned}
    return result

  return execute


def main(argv):
  """Compare as the flags say."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; flags look like --out=DIR")
  logging.set_verbosity(logging.INFO)
  dependent(FLAGS.grid, FLAGS.out, FLAGS.workers)


if __name__ == "__main__":
  config_flags.DEFINE_config_file("grid", help_string="What to compare: file.py[:tiny].")
  command.define_path("out", None, "Where runs, table and figure go.")
  flags.DEFINE_integer("workers", 2, "Objectives that are trained at a time.", lower_bound=1)
  flags.mark_flags_as_required(["grid", "out"])
  command.run(main, trains=True)
