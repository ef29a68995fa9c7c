"""Images from layouts through the scripts: layouts, numbers of the table, pictures."""

import json

import jax
import numpy as np
import pytest

from experiments import data, evaluate, plots, sample, tasks, train, workdirs
from experiments.configs import spade_digits
from experiments.tasks import _style_pictures
from tests.e2e import runs


def tiny(**changes):
  config = spade_digits.get_config("tiny")
  config.colours.options.update(size=48, stride=48, long_side=128)
  config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
  return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("style") / "run"
  assert train.train(tiny(), str(workdir))
  return workdir


def test_layouts_hold_the_class_where_the_image_is_bright():
  task = tasks.make(tiny())
  image = np.uint8([[[[7], [8]], [[9], [16]]]])
  layout = task.layout({"image": np.concatenate([image, image]), "label": np.int32([0, 9])})
  np.testing.assert_array_equal(layout, [[[0, 1], [1, 1]], [[0, 10], [10, 10]]])
  assert task.model["kwargs"]["num_classes"] == 11


def test_a_run_learns_and_its_numbers_are_those_of_the_images(trained, capsys):
  assert runs.curve(trained)[0].keys() == {"step", "loss", "gradient_norm"}
  assert [line["step"] for line in runs.curve(trained) if "test_l1" in line] == [6, 12]
  losses = runs.losses(trained)
  assert losses[-4:].mean() < losses[:4].mean()
  result = evaluate.run(str(trained))
  assert json.loads((trained / "evaluate.json").read_text())["l1"] == result["l1"]
  task, model = workdirs.open_workdir(str(trained))
  test, train_part = task.dataset.test, task.dataset.train
  y = (np.asarray(jax.jit(model)(task.layout(test))) + 1) / 2
  errors = abs(y - test["image"] / 16).mean((1, 2, 3))
  assert result["l1"] == pytest.approx(errors.mean(), rel=1e-4)
  assert result["l1_se"] == pytest.approx(errors.std(ddof=1) / np.sqrt(360), rel=1e-3)
  guess = np.zeros(test["image"].shape)
  for digit in range(10):
    of_class, held = (np.float64(p["image"][p["label"] == digit]) for p in (train_part, test))
    guess[test["label"] == digit] = np.median(of_class, 0)[None]
    assert len(held) > 20
  expected = abs(guess - test["image"]).mean() / 16
  assert result["references"]["class_median"] == pytest.approx(expected)
  assert 0.05 < result["references"]["label_median"] < expected
  assert "median level of each label" in capsys.readouterr().out


def test_pictures(trained, monkeypatch):
  shown = {}
  write = plots.image_grid
  monkeypatch.setattr(
    plots, "image_grid", lambda x, path, **o: shown.update({path.name: x}) or write(x, path, **o)
  )
  files = sample.run(str(trained), count=5)
  assert {file.name for file in files} == {"layouts.png", "colours.png"} == set(shown)
  assert all(file.stat().st_size > 1000 for file in files)
  task, _ = workdirs.open_workdir(str(trained))
  batch = task.evaluation_arrays(5)
  layout, _, original = np.moveaxis(shown["layouts.png"].reshape(5, 3, 8, 8, 3), 1, 0)
  np.testing.assert_allclose(original[..., 1], batch["image"][..., 0] / 16 * 255, atol=0.51)
  np.testing.assert_array_equal(layout.any(-1), np.asarray(task.layout(batch)) > 0)
  with pytest.raises(ValueError, match="count must be at least 1, got 0"):
    sample.run(str(trained), count=0)


def test_colours_are_those_of_the_style_and_shapes_those_of_the_content(tmp_path, monkeypatch):
  shown = []
  monkeypatch.setattr(plots, "image_grid", lambda x, path, **options: shown.append(x) or path)
  rng = np.random.default_rng(0)
  dim = lambda n: rng.integers(90, 160, (n, 6, 6, 3)).astype(np.uint8)
  photos = data.Dataset({"image": dim(9)}, {"image": dim(2)}, 256, None, "")
  _style_pictures.colour_transfers(photos, tmp_path / "x.png")
  grid = shown[0].reshape(3, 7, 6, 6, 3).astype(float)
  for row in (1, 2):
    for column in range(1, 7):
      got, content, style = grid[row, column], grid[row, 0], grid[0, column]
      np.testing.assert_allclose(got.mean((0, 1)), style.mean((0, 1)), atol=0.6)
      np.testing.assert_allclose(got.std((0, 1)), style.std((0, 1)), atol=0.6)
      assert np.corrcoef(got[..., 0].ravel(), content[..., 0].ravel())[0, 1] > 0.99


def test_the_condition_is_one_word_of_the_config():
  spec = tasks.make(tiny(model__condition="input")).model["kwargs"]
  assert spec == {**tasks.make(tiny()).model["kwargs"], "condition": "input"}


@pytest.mark.parametrize(
  ("name", "threshold", "message"),
  [("natural_patches", 0.5, "has no labels for layouts"), ("digits", 1.0, "got 1.0")],
)
def test_wrong_configs(name, threshold, message):
  config = tiny(threshold=threshold)
  config.data.name = name
  config.data.options = {"photos": "bundled", "stride": 64} if name != "digits" else {}
  with pytest.raises(ValueError, match=message):
    tasks.make(config)
