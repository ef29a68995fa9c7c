"""Comparisons of norms: every norm has a row, runs are those of the training script, and resume."""

import json
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import compare, comparison, data, density_table, train, tuning, workdirs
from experiments.grids import norms as norms_grid
from normjax import norms
from tests.e2e import runs


class Exploding(nnx.Module):
  """Gives no finite number."""

  def __init__(self, num_features: int, *, rngs: nnx.Rngs):
    pass

  def __call__(self, x):
    return x * jnp.inf


class Unwilling(nnx.Module):
  """Takes no input."""

  def __init__(self, num_features: int, *, rngs: nnx.Rngs):
    pass

  def __call__(self, x):
    raise ValueError("x must be | something else\nentirely")


def tiny():
  grid = norms_grid.get_config("tiny")
  grid.config.model.name = "mlp"
  grid.norms = {"batch_norm/fast": {"decay": 0.5}, "exploding": {}, "none": {}, "unwilling": {}}
  grid.batch_sizes, grid.steps = (16,), (4,)
  return grid


@pytest.fixture(scope="module", autouse=True)
def strange_norms():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(norms.NAMES, "exploding", Exploding)
    patch.setitem(norms.NAMES, "unwilling", Unwilling)
    yield


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
  """A folder with a finished comparison, and its rows."""
  folder = tmp_path_factory.mktemp("compared") / "out"
  return folder, compare.compare(tiny(), str(folder))


def read(folder, name):
  return json.loads((folder / "runs" / name).read_text())


def chosen(folder, norm):
  """The rate that the table must show, from the files alone."""
  found = {lr: read(folder, f"{norm}-b16-lr{lr:g}-s0.json") for lr in (1e-2, 1e-4)}
  return min(sorted(found), key=lambda lr: found[lr]["validation_error"][-1])


def test_no_norm_is_missing_from_the_shipped_grid():
  shipped = norms_grid.get_config().norms
  assert {name.partition("/")[0] for name in shipped} == set(norms.NAMES) | {"none"}


def test_every_norm_has_a_row_with_what_became_of_it(compared):
  folder, rows = compared
  cells = {row["norm"]: row["cells"][0] for row in rows}
  assert set(cells) == set(tiny().norms)
  assert [row["norm"] for row in rows][-2:] == ["exploding", "unwilling"]
  assert cells["exploding"]["diverged"] == 2
  assert "test_error" not in cells["exploding"]
  for norm, stem in (("batch_norm/fast", "batch_norm-fast"), ("none", "none")):
    lr = chosen(folder, stem)
    errors = [read(folder, f"{stem}-b16-lr{lr:g}-s{seed}.json")["test_error"] for seed in (0, 1)]
    assert cells[norm]["lr"] == lr
    assert cells[norm]["test_error"] == pytest.approx(np.mean(errors))
    assert cells[norm]["test_error_std"] == pytest.approx(np.std(errors, ddof=1))
  lines = (folder / "table.md").read_text().splitlines()
  shown = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
  assert "diverged (2 of 2 seeds)" in shown["exploding"]
  assert "cannot run: ValueError: x must be \\| something else |" in shown["unwilling"]
  assert f"{100 * cells['none']['test_error']:.2f} ±" in shown["none"]
  table = json.loads((folder / "table.json").read_text())
  assert table["rows"] == json.loads(json.dumps(rows))
  assert {"jax", "normjax"} <= set(table["versions"])
  assert (folder / "figure.png").stat().st_size > 10_000


def test_a_run_is_that_of_the_training_script(compared, tmp_path, monkeypatch):
  folder, _ = compared
  grid, run = (
    tiny(),
    read(compared[0], f"batch_norm-fast-b16-lr{chosen(folder, 'batch_norm-fast'):g}-s1.json"),
  )
  arrays, load = compare.split(grid), data.load
  part = lambda name: load(name)._replace(train=arrays["train"], test=arrays["test"])
  monkeypatch.setattr(data, "load", part)
  config = compare.pair_config(grid, "batch_norm/fast", 0)
  config.update(seed=1, eval_every=2, save_every=4)
  config.optimizer.lr = run["lr"]
  config.eval.update(batch_size=120, examples=120)
  assert train.train(config, str(tmp_path / "run"))
  losses = runs.losses(tmp_path / "run").reshape(2, 2).mean(1)
  np.testing.assert_allclose(run["loss"], losses, rtol=1e-5)
  assert run["step"] == [2, 4]
  assert run["test_error"] == pytest.approx(runs.curve(tmp_path / "run")[-1]["test_error"])


def test_only_what_is_missing_runs_again(compared, monkeypatch):
  folder, rows = compared
  files = sorted((folder / "runs").iterdir())
  assert len(files) == 3 * 3 + 1  # Of a norm that can't run there is one, which says so.
  missing = folder / "runs" / f"none-b16-lr{chosen(folder, 'none'):g}-s1.json"
  before = json.loads(missing.read_text())
  missing.unlink()
  written, write = [], workdirs.write_json

  def note(path, value):
    written.append(path.name)
    write(path, value)

  monkeypatch.setattr(workdirs, "write_json", note)
  assert compare.compare(tiny(), str(folder)) == rows
  ran = [name for name in written if name not in ("grid.json", "table.json")]
  # What failed is tried again: it may have been mended.
  assert sorted(ran) == [missing.name, "unwilling-b16-lr0.01-s0.json"]
  after = json.loads(missing.read_text())
  assert {**after, "seconds": 0} == {**before, "seconds": 0}
  assert sorted((folder / "runs").iterdir()) == files


def test_another_grid_is_refused_and_named(compared):
  folder, _ = compared
  before = runs.contents(folder)
  changed = tiny()
  changed.seeds = (0, 2)
  changed.norms["batch_norm/fast"].decay = 0.75
  with pytest.raises(ValueError, match="holds the runs of another grid") as error:
    compare.compare(changed, str(folder))
  assert "norms.batch_norm/fast.decay: 0.5 in the folder, 0.75 now" in str(error.value)
  assert "seeds: [0, 1] in the folder, [0, 2] now" in str(error.value)
  fewer = tiny()
  del fewer.norms.none
  with pytest.raises(ValueError, match="norms.none: {} in the folder, None now"):
    compare.compare(fewer, str(folder))
  assert runs.contents(folder) == before


def test_a_grid_may_gain_norms(compared, tmp_path):
  grid = tiny()
  grid.norms.layer_norm = {}
  old = json.loads((compared[0] / "grid.json").read_text())
  workdirs.write_json(tmp_path / "grid.json", old)
  comparison.claim(tmp_path, grid.to_dict(), {"norms": "norms", "warmups": "norms"})
  assert "layer_norm" in json.loads((tmp_path / "grid.json").read_text())["norms"]


def test_the_folder_of_another_kind_of_grid_is_refused(tmp_path):
  comparison.claim(tmp_path, {"norms": {"none": {}}}, {"norms": "norms"})
  with pytest.raises(ValueError, match="holds the runs of another grid"):
    comparison.claim(tmp_path, {"flows": {"maf": {}}}, {"flows": "flows"})


def test_an_error_without_a_message_is_a_result_too(tmp_path):
  def refuse(cell):
    raise NotImplementedError

  cell = tuning.Cell({"flow": "x"}, (1.0,), (0,), lambda run: 0.0)
  tuning.run_cell(tmp_path, cell, refuse)
  assert read(tmp_path, "x-lr1-s0.json")["failed"] == "NotImplementedError"


def test_an_error_ends_a_comparison_before_the_cells_that_wait(tmp_path):
  raised, done = threading.Event(), []
  cells = [tuning.Cell({"flow": name}, (1.0,), (0,), lambda run: 0.0) for name in "abc"]

  def make_execute(cell):
    if cell is cells[1]:
      raised.wait(10)
      time.sleep(0.3)  # in which what waits is given up
    done.append(cell.keys["flow"])
    return lambda lr, seed: {"diverged": False}

  def report():
    raised.set()
    raise OSError("no space left on device")

  with pytest.raises(OSError, match="no space left"):
    tuning.run_all(tmp_path, cells, make_execute, 1, report)
  time.sleep(0.4)
  assert done in (["a"], ["a", "b"])


def test_one_seed_has_no_deviation():
  cell = {"failed": None, "seeds": 2, "diverged": 1, "lr": 0.1, "test_error": 0.5}
  assert comparison._text(cell | {"test_error_std": 0.0}) == "50.00 (0.1), 1 diverged"
  cell = {"failed": None, "seeds": 1, "diverged": 0, "lr": 0.1, "test_nats": 0.5, "rho": 0.25}
  cell |= {"test_nats_std": 0.0, "rho_std": 0.0}
  assert density_table._text(cell, ("rho",)) == "0.500 (0.1, rho 0.250)"


def test_a_foreign_folder_is_refused(tmp_path):
  (tmp_path / "thesis.txt").write_text("chapter 1")
  with pytest.raises(ValueError, match="is not empty and holds no grid.json"):
    compare.compare(tiny(), str(tmp_path))
  assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_rate_that_diverges_is_not_chosen(tmp_path):
  cell = compare.cell(tiny(), "none", 0)
  for lr, diverged, error in ((1e-2, True, 0.1), (1e-4, False, 0.9)):
    result = {"diverged": diverged, "validation_error": [0.0, error]}
    workdirs.write_json(cell.path(tmp_path, lr, 0), result)
  assert tuning.chosen_rate(tmp_path, cell) == 1e-4


def test_the_splits_do_not_touch(compared):
  arrays, dataset = compare.split(tiny()), data.load("digits")
  rows = {name: {image.tobytes() for image in part["image"]} for name, part in arrays.items()}
  assert not rows["train"] & rows["validation"]
  assert [len(arrays[name]["label"]) for name in ("train", "validation", "test")] == [64, 80, 120]
  everything = {image.tobytes() for image in dataset.train["image"]}
  assert rows["train"] | rows["validation"] <= everything
  assert rows["test"] <= {image.tobytes() for image in dataset.test["image"]}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"train_examples": 1400}, r"train_examples \+ validation_examples = 1480 are more than 1437"),
    ({"steps": (3,)}, r"steps must be multiples of points = 2, got \[3\]"),
    ({"steps": (4, 4)}, "steps must be one for each of batch_sizes"),
  ],
)
def test_wrong_grids(changes, message, tmp_path):
  grid = tiny()
  grid.update(changes)
  with pytest.raises(ValueError, match=message):
    compare.compare(grid, str(tmp_path / "out"))
  assert not (tmp_path / "out").exists()
