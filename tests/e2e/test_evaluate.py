import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import (
  data,
  evaluate,
  plots,
  sample,
  sample_rows,
  sampling_speed,
  tasks,
  train,
  workdirs,
)
from normjax import checkpoint, flows
from tests.e2e import runs


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, uninterrupted):
  """A finished run with its evaluation and the one that `evaluate.run` returned."""
  workdir = tmp_path_factory.mktemp("evaluated") / "run"
  shutil.copytree(uninterrupted, workdir)
  return workdir, evaluate.run(str(workdir), draws=2)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
  """A run of two steps of a class-conditional model."""
  workdir = tmp_path_factory.mktemp("conditional") / "run"
  assert train.train(runs.tiny(class_conditional=True, total_steps=2), str(workdir))
  return workdir


def test_evaluate_writes_what_it_returns(evaluated, capsys):
  workdir, result = evaluated
  written = json.loads((workdir / "evaluate.json").read_text())
  assert set(written) >= {
    "bits_per_dim", "bits_per_dim_se", "references", "seconds", "config", "versions",
  }  # fmt: skip
  assert set(written["references"]) == {"uniform", "gaussian", "gmm"}
  assert written["config"] == json.loads(json.dumps(runs.tiny().to_dict()))
  assert {"jax", "normjax"} <= set(written["versions"])
  assert (written["draws"], written["examples"]) == (2, 360)
  assert written["bits_per_dim"] == result["bits_per_dim"]
  np.testing.assert_allclose(written["references"]["uniform"], np.log2(17), rtol=1e-6)
  assert not list(workdir.glob("*.tmp"))


def test_the_number_is_that_of_the_model(evaluated):
  workdir, result = evaluated
  flow = checkpoint.load(workdir)
  image = np.float32(data.load("digits").test["image"])
  # Other draws than those of the evaluation: equal up to its error over draws.
  x = 2 * (image + np.random.default_rng(0).uniform(size=image.shape)) / 17 - 1
  log_prob = jax.jit(lambda flow, x: flow.log_prob(x))(flow, np.float32(x))
  bits = -np.asarray(log_prob, np.float64) / (64 * np.log(2)) + np.log2(17 / 2)
  np.testing.assert_allclose(bits.mean(), result["bits_per_dim"], atol=0.003)
  np.testing.assert_allclose(
    bits.std(ddof=1) / np.sqrt(360), result["bits_per_dim_se"], rtol=0.2, atol=0
  )
  assert flows.bits_per_dim(log_prob, (8, 8, 1), 17 / 2).shape == (360,)


def test_evaluation_takes_every_image_once(evaluated):
  workdir, _ = evaluated
  task, flow = workdirs.open_workdir(str(workdir))
  task.config.eval.batch_size = 50  # 360 is no multiple: the last batch is filled up
  task.score = lambda flow, batch, key, draws: batch["image"].sum((1, 2, 3), dtype="int32")
  expected = task.dataset.test["image"].sum((1, 2, 3), dtype=np.int32)
  np.testing.assert_array_equal(tasks.score_all(task, flow, 1), expected)


def test_draws_count_together_by_their_probabilities(evaluated):
  workdir, result = evaluated
  assert result["bits_per_dim"] - 0.1 < result["weighted"] < result["bits_per_dim"]
  task, flow = workdirs.open_workdir(str(workdir))
  task.scores = lambda flow, batch, key, draws: jnp.tile(
    jnp.array([[3.0, 3.0 + 1 / 64]]), (len(batch["image"]), draws // 2)
  )
  result = task.evaluate(flow, 4)
  # Half of the draws have half the probability: the mean of both is 3/4 of the larger.
  np.testing.assert_allclose(result["weighted"], 3 - np.log2(3 / 4) / 64, rtol=1e-6)
  np.testing.assert_allclose(result["bits_per_dim"], 3 + 1 / 128, rtol=1e-6)
  assert f"| {result['weighted']:.3f}" in task.table(result)


@pytest.mark.parametrize("run", ["uninterrupted", "conditional"])
def test_sample_writes_pictures(run, request, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(request.getfixturevalue(run), workdir)
  files = sample.run(str(workdir), [0.5, 1.0], count=20)
  names = {"samples_T0.5.png", "samples_T1.png", "interpolations.png", "reconstructions.png"}
  assert {file.name for file in files} >= names
  columns = 10 if run == "conditional" else 8  # one for each class, or pictures in a row
  rows = {"interpolations.png": 6, "reconstructions.png": 3}
  for name in names:
    picture = np.asarray(Image.open(workdir / name))
    # 8x8 images eight times enlarged, with 4 pixels around each.
    wide = columns if name.startswith("samples") else 8
    high = rows.get(name, -(-20 // wide))
    assert picture.shape == (high * 68 + 4, wide * 68 + 4)
    assert len(np.unique(picture)) > 5


def test_reconstructions_are_exact(uninterrupted):
  task, flow = workdirs.open_workdir(str(uninterrupted))
  images = tasks.reconstructions(task, flow, jax.random.key(0))
  np.testing.assert_array_equal(images[:8], images[8:16])
  assert (images[:8] != images[16:]).any()


def test_the_least_time_of_a_sample_counts(conditional, monkeypatch):
  ticks = iter([0, 8, 10, 16, 20, 27, 30, 39])
  monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
  draws = []
  quantize = tasks.Density.quantize
  monkeypatch.setattr(
    tasks.Density, "quantize", lambda task, x: draws.append(x.shape) or quantize(task, x)
  )
  assert sampling_speed.run(str(conditional), (1, 2), repeats=2) == {1: 6.0, 2: 3.5}
  assert draws == [(1, 8, 8, 1), (2, 8, 8, 1)]
  with pytest.raises(ValueError, match="sizes and repeats must be at least 1, got .0. and 5"):
    sampling_speed.run(str(conditional), (0,))


def test_flows_draw_rows_below_held_out_images(conditional, uninterrupted, tmp_path, monkeypatch):
  seen = {}
  draw = plots.image_rows
  monkeypatch.setattr(
    plots, "image_rows", lambda rows, *a, **o: seen.update(rows) or draw(rows, *a, **o)
  )
  rows = {"plain": str(uninterrupted), "by class": str(conditional)}
  path = sample_rows.run(rows, str(tmp_path / "rows.png"), count=3, temperature=0.5)
  assert [*seen] == ["held out", "plain", "by class"]
  task, flow = workdirs.open_workdir(str(uninterrupted))
  np.testing.assert_array_equal(seen["held out"], task.evaluation_arrays(3)["image"])
  expected = task.samples(flow, jax.random.key(0), 3, 0.5)
  # A pixel at the edge of a level may fall to either side of it.
  assert np.mean(seen["plain"] != expected) < 0.02
  picture = np.asarray(Image.open(path))
  assert picture.shape[0] > 3 * 90  # three rows
  assert picture.std() > 30
  with pytest.raises(ValueError, match="count at least 1"):
    sample_rows.run(rows, str(path), count=0)
  with pytest.raises(ValueError, match="rows must not be empty"):
    sample_rows.run({}, str(path))
