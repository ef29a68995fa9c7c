"""Comparisons of densities of tables and of dependent examples: what a cell says, and resuming."""

import json

import jax
import numpy as np
import pytest

from experiments import (
  data,
  densities,
  dependent,
  evaluate,
  peer_flows,
  sample,
  tasks,
  train,
  tuning,
)
from experiments.configs import table_magic
from experiments.grids import dependent as dependent_grid
from experiments.grids import low_data, tables
from experiments.optimizer import make_optimizer
from experiments.step import make_steps
from experiments.table_references import table_references
from tests.e2e import runs


def tiny():
  grid = tables.get_config("tiny")
  del grid.flows.ferumal
  grid.flows["nothere/maf"] = {}
  grid.peer_columns = tuple(grid.columns)
  return grid


@pytest.fixture(scope="module", autouse=True)
def strange_library():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(peer_flows._LIBRARIES, "nothere", None)
    yield


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
  folder = tmp_path_factory.mktemp("densities") / "out"
  return folder, densities.densities(tiny(), str(folder))


def read(folder, name):
  return json.loads((folder / "runs" / name).read_text())


def test_a_cell_is_the_best_step_of_the_best_rate(compared):
  folder, rows = compared
  cells = {row["flow"]: row["cells"][0] for row in rows}
  assert set(cells) == {"gaussian", "affine_coupling"}  # what is not installed is left out
  name = "affine_coupling-wine-60-lr{:g}-s{}.json".format
  tried = {lr: read(folder, name(lr, 0)) for lr in (1e-2, 1e-4)}
  lr = min(tried, key=lambda lr: min(tried[lr]["validation_nats"]))
  good = [read(folder, name(lr, seed)) for seed in (0, 1)]
  for run in good:
    best = int(np.argmin(run["validation_nats"]))
    assert (run["test_nats"], run["best_step"]) == (run["test_curve"][best], run["step"][best])
    assert run["step"] == [2, 4]
  scores = [run["test_nats"] for run in good]
  cell = cells["affine_coupling"]
  assert (cell["lr"], cell["seeds"], cell["parameters"]) == (lr, 2, good[0]["parameters"])
  assert cell["test_nats"] == pytest.approx(np.mean(scores))
  assert cell["test_nats_std"] == pytest.approx(np.std(scores, ddof=1))
  parts = densities.split(tiny(), "wine/60", 1)
  rows = np.concatenate([parts["train"]["x"], parts["validation"]["x"]])
  reference = read(folder, "gaussian-wine-60-lr0-s1.json")["test_nats"]
  assert reference == pytest.approx(table_references(rows, parts["test"]["x"], 1)["gaussian"])
  text = (folder / "table.md").read_text()
  assert f"| `affine_coupling` | {cell['test_nats']:.3f} ± {cell['test_nats_std']:.3f} (" in text
  assert (folder / "figure.png").stat().st_size > 5000


def test_only_what_is_missing_runs_again(compared):
  folder, rows = compared
  (folder / "runs" / "gaussian-wine-60-lr0-s1.json").unlink()
  before = {path: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()}
  assert densities.densities(tiny(), str(folder)) == rows
  after = {path: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()}
  assert {path.name for path in after if after[path] != before.get(path)} == {
    "gaussian-wine-60-lr0-s1.json"
  }
  changed = tiny()
  changed.points = 4
  with pytest.raises(ValueError, match="points: 2 in the folder, 4 now"):
    densities.densities(changed, str(folder))
  changed.points = 3
  with pytest.raises(
    ValueError, match="config.total_steps must be a multiple of points = 3, got 4"
  ):
    densities.densities(changed, str(folder))
  changed = tiny()
  changed.columns["wine/60"].train = 143
  with pytest.raises(ValueError, match=r"columns.wine/60: train \+ validation = 173 are more than"):
    densities.densities(changed, str(folder))


def test_splits_do_not_touch_and_differ_between_seeds():
  one, other = (densities.split(tiny(), "wine/60", seed) for seed in (0, 1))
  rows = {name: {row.tobytes() for row in part["x"]} for name, part in one.items()}
  assert [len(rows[name]) for name in ("train", "validation", "test")] == [60, 30, 30]
  assert not rows["train"] & rows["validation"]
  assert not (rows["train"] | rows["validation"]) & rows["test"]
  assert not np.array_equal(one["train"]["x"], other["train"]["x"])


def test_a_run_that_ends_without_numbers_has_diverged():
  good = [(2, 5.0, True, 4.0, 4.5, 7), (4, 3.0, True, 5.0, 3.5, 7)]
  result = densities.follow(good)
  assert (result["test_nats"], result["best_step"], result["diverged"]) == (4.5, 2, False)
  bad = densities.follow([good[0], (4, np.nan, False, np.nan, np.nan, 7)])
  assert (bad["test_nats"], bad["diverged"], bad["loss"]) == (4.5, True, [5.0, None])
  json.dumps(bad, allow_nan=False)


def test_shipped_grids_fit_their_tables():
  for grid in (tables.get_config(), low_data.get_config()):
    for flow in grid.flows:
      if peer_flows.library(flow) is None and flow not in densities.REFERENCES:
        column = next(iter(grid.columns))
        config = densities.cell_config(grid, densities.cell(grid, flow, column))
        assert config.flow == flow.partition("/")[0]
    assert set(grid.peer_columns) <= set(grid.columns)
    assert grid.config.total_steps % grid.points == 0
  for column in ("wine", "breast_cancer"):
    parts = densities.split(low_data.get_config(), column, 0)
    assert 0.58 < len(parts["train"]["x"]) / sum(len(p["x"]) for p in parts.values()) < 0.62


# -- The task --------------------------------------------------------------------------------------


def test_a_trained_table_is_evaluated_and_drawn(tmp_path):
  config = table_magic.get_config("tiny")
  config.flow = "ferumal"
  config.update(total_steps=2, eval_every=2, save_every=2)
  workdir = tmp_path / "run"
  assert train.train(config, str(workdir))
  result = evaluate.run(str(workdir))
  table = data.load("iris")
  assert (result["examples"], set(result["references"])) == (14, {"gaussian", "gmm"})
  expected = table_references(table.train["x"], table.test["x"], 0, tiny=True)
  assert result["references"] == pytest.approx(expected)
  (file,) = sample.run(str(workdir), count=50)
  assert (file.name, file.stat().st_size > 10_000) == ("pairs.png", True)
  assert runs.curve(workdir)[-1]["test_nats"] == pytest.approx(result["nats"], abs=1.0)
  assert (workdir / "curves.png").stat().st_size > 5000


def test_ferumal_flows_start_from_training_rows():
  config = table_magic.get_config("tiny")
  config.flow = "ferumal"
  task = tasks.make(config)
  steps = make_steps(task, make_optimizer(config.optimizer, 4), 0.0)
  batch = tasks.spread(task.dataset.train, 16)
  state = jax.jit(lambda seed, batch: steps.start(steps.init(seed), batch))(0, batch)
  layers, rest = state["params"]["bijector"]["layers"], state["rest"]["bijector"]["layers"]
  order = np.asarray(rest["order"])[0, : layers["points"].shape[-1]]
  np.testing.assert_allclose(layers["points"][0], batch["x"][:5][:, order], rtol=1e-6)
  config.flow = "maf"
  assert make_steps(tasks.make(config), make_optimizer(config.optimizer, 4), 0.0).start is None


# -- Dependent examples ----------------------------------------------------------------------------


def test_dependent_examples_in_a_table(tmp_path):
  grid = dependent_grid.get_config("tiny")
  rows = dependent.dependent(grid, str(tmp_path / "out"))
  cells = {row["flow"]: row["cells"][0] for row in rows}
  assert set(cells) == {"independent", "learned"}
  assert "rho" not in cells["independent"]
  assert 0.3 < cells["learned"]["rho"] < 0.7  # not far from 1 / 2 after four steps
  assert "rho 0." in (tmp_path / "out/table.md").read_text()
  losses = [read(tmp_path / "out", f"{o}-sign-lr0.002-s0.json")["loss"] for o in cells]
  assert losses[0] != losses[1]


def test_objectives_are_likelihoods():
  """Without correlation the joint is the sum of independent densities; with it, it is not."""
  grid = dependent_grid.get_config("tiny")
  parts = dependent.blocks_of(grid.columns.sign, 0)
  task = dependent.Dependent(grid.config, "fixed", 2)
  x = parts["train"]["x"]

  class Identity:
    """A flow that has learned nothing."""

    bijector = None

    def forward(self, x):
      return x, np.zeros(len(x), np.float32)

  flow = Identity()
  flow.bijector = flow
  nats = {}
  for rho in (0.0, 0.9):
    batch = parts["train"] | {"rho": np.full(len(x), rho, np.float32)}
    nats[rho] = float(task.loss(flow, batch, None)[0])
  assert nats[0.0] == pytest.approx(0.5 * (x**2).sum(1).mean() + np.log(2 * np.pi), rel=1e-5)
  assert abs(nats[0.9] - nats[0.0]) > 0.05


def test_blocks_of_validation_and_test_are_others(monkeypatch):
  grid = dependent_grid.get_config()
  parts = dependent.blocks_of(grid.columns.equal, 1)
  assert set(parts["train"]["rho"]) == {np.float32(0.8)}
  assert set(parts["validation"]) == {"x"}
  rows = np.arange(600).reshape(300, 2).astype(np.float32)
  group = np.repeat(np.arange(100), 3).astype(np.int32)
  cut = lambda a, b: {"x": rows[a:b], "group": group[a:b]}
  dataset = data.Dataset(cut(0, 240), cut(240, 300), 0, None, "", ("a", "b"))
  monkeypatch.setattr(data, "load", lambda *_, **__: dataset)
  spec = grid.columns.weather.copy_and_resolve_references()
  parts = dependent.blocks_of(spec, 0)
  own = {
    row.tobytes(): block
    for row, block in zip(*map(parts["train"].get, ("x", "block")), strict=True)
  }
  assert len(own) == 3 * spec.groups
  assert set(np.bincount(list(own.values()))) == {3}
  assert not any(row.tobytes() in own for row in parts["validation"]["x"])
  assert len(parts["validation"]["x"]) == 240 - 3 * spec.groups
  spec.groups = 80
  with pytest.raises(ValueError, match="groups must be fewer than 80, got 80"):
    dependent.blocks_of(spec, 0)


def test_cells_are_named_in_their_files():
  cell = tuning.Cell({"flow": "flowjax/maf", "column": "magic/50"}, (1e-3,), (0,), min)
  assert cell.stem == "flowjax-maf-magic-50"
