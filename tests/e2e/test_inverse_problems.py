"""Inverse problems through the scripts: measurements, numbers, explosions, pictures."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import evaluate, sample, tasks, train, workdirs
from experiments.configs import super_resolution_patches
from experiments.tasks import _measurements, _robustness
from tests.e2e import runs


def tiny(**changes):
  config = super_resolution_patches.get_config("tiny")
  config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
  return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("inverse_problems") / "run"
  changes = {"total_steps": 30, "eval_every": 30, "save_every": 30, "optimizer__lr": 1e-2}
  assert train.train(tiny(**changes), str(workdir))
  return workdir


def test_measurements_are_means_of_squares():
  x = jnp.arange(32.0).reshape(1, 4, 4, 2)
  measure = _measurements.SuperResolution((4, 4, 2), factor=2)
  wanted = [[5, 6], [9, 10]], [[21, 22], [25, 26]]
  np.testing.assert_array_equal(measure(x, None)[0], wanted)
  assert measure.simple(measure(x, None)).shape == x.shape


def test_dark_images_are_noisy_and_within_the_range():
  measure = _measurements.LowLight((50, 50, 1), gamma=2.0, noise=0.1)
  x = jnp.full((1, 50, 50, 1), 0.5)
  y = measure(x, jax.random.key(0))
  np.testing.assert_allclose([y.mean(), y.std()], [0.25, 0.1], rtol=0.1)
  assert measure(0 * x, jax.random.key(0)).min() == 0
  quiet = _measurements.LowLight((50, 50, 1), gamma=2.0, noise=0.0)
  np.testing.assert_allclose(quiet.simple(quiet(x, jax.random.key(0))), x, rtol=1e-6)


def test_explosions_are_counted():
  class Task:
    """Samples are z times ten to the power of the first pixel of a measurement, NaN below -7."""

    config = tiny()
    dataset = tasks.make(tiny()).dataset
    config.eval.conditions = 4

    def measure(self, image, key):
      return jnp.zeros((len(image), 2, 2, 3))

    def samples(self, model, y, key, draws):
      z = jax.random.normal(key, (draws, *y.shape))
      first = y[None, :, :1, :1, :1]
      return jnp.where(first < -7, jnp.nan, z * 10.0**first)

  class Model:
    """Takes the measurement for the features, with noise so that they vary."""

    def features(self, cond):
      return cond[..., :2] + jax.random.normal(jax.random.key(1), (*cond.shape[:3], 2))

  jax.tree_util.register_static(Model)
  result = _robustness.robustness(Task(), Model(), 64)
  kinds = result["conditions"]
  counts = {name: found["exploded"] for name, found in kinds.items()}
  # Zero becomes 1 when inverted, -1.5 and -7.5 with more contrast.
  assert counts["held out"] == counts["contrast x 4"] == 0
  assert counts["contrast x 16"] == 4 * 64
  assert kinds["contrast x 16"]["log10_spread"] > 38
  assert kinds["inverted"]["samples"] == 4 * 64
  assert counts["inverted"] > 0.9 * 4 * 64
  assert abs(kinds["inverted"]["log10_spread"] - kinds["held out"]["log10_spread"] - 1) < 0.01
  assert kinds["inverted"]["log10_spread"] <= kinds["inverted"]["log10_spread_max"] < 1.3
  Task.samples = lambda task, model, y, key, draws: (
    9 * (2 * y[None] - 1) * jax.random.uniform(key, (draws, *y.shape))
  )
  kinds = _robustness.robustness(Task(), Model(), 2)["conditions"]
  # As large as what was measured, but for a factor below ten: no explosion.
  assert all(found["exploded"] == 0 for found in kinds.values())
  scores = {name: found["mahalanobis"] for name, found in kinds.items()}
  assert scores["contrast x 16"] > scores["contrast x 4"] > scores["held out"]


def test_a_run_learns_and_its_numbers_are_those_of_the_images(trained, capsys):
  assert runs.curve(trained)[0].keys() == {"step", "loss", "gradient_norm"}
  losses = runs.losses(trained)
  assert losses[-5:].mean() < losses[:5].mean() - 0.1
  result = evaluate.run(str(trained))
  written = json.loads((trained / "evaluate.json").read_text())
  assert written["bits_per_dim"] == result["bits_per_dim"]
  task, model = workdirs.open_workdir(str(trained))
  scores = tasks.score_all(task, model)
  assert result["bits_per_dim"] == pytest.approx(scores.mean(), rel=1e-6)
  assert result["bits_per_dim_se"] == pytest.approx(scores.std(ddof=1) / 4, rel=1e-5)
  x = task.evaluation_arrays(8)["image"] / np.float32(255)
  squares = x.reshape(8, 4, 4, 4, 4, 3).mean((2, 4))
  cubic = np.clip(jax.image.resize(squares, x.shape, "cubic"), 0, 1)
  wanted = -10 * np.log10(((cubic - x) ** 2).mean((1, 2, 3)))
  assert result["psnr"]["simple"][0] == pytest.approx(wanted.mean(), abs=1e-3)
  assert result["psnr"]["simple"][1] == pytest.approx(wanted.std(ddof=1) / np.sqrt(8), rel=1e-3)
  # The mean of two independent samples is nearer than either.
  assert result["psnr"]["mean"][0] > result["psnr"]["sample"][0]
  assert result["robustness"]["conditions"]["held out"]["samples"] == 8 * 2
  out = capsys.readouterr().out
  assert "PSNR in dB: temperature 0" in out
  assert "digits: exploded" in out


def test_pictures_hold_measurements_and_images(trained, monkeypatch):
  shown = []
  keep = lambda images, path, **options: shown.append(images) or path
  monkeypatch.setattr("experiments.plots.image_grid", keep)
  files = sample.run(str(trained))
  assert [file.name for file in files] == ["restored.png", "unfamiliar.png"]
  image = tasks.make(tiny()).evaluation_arrays(8)["image"]
  restored = shown[0].reshape(8, 6, 16, 16, 3)
  np.testing.assert_array_equal(restored[:, 5], image)
  low = image.reshape(8, 4, 4, 4, 4, 3).mean((2, 4))
  np.testing.assert_allclose(restored[:, 0, ::4, ::4], low, atol=1.5)
  assert np.std(restored[:, 1] - restored[:, 2].astype(float)) > 1
  assert shown[1].shape == (5 * 9, 16, 16, 3)
  with pytest.raises(ValueError, match="draws must be at least 2, got 1"):
    evaluate.run(str(trained), 1)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"problem__name": "deblurring"}, "config.problem.name must be one of low_light, super_res"),
    ({"problem__super_resolution__factor": 3}, "must be at least 2 and divide 16 and 16, got 3"),
    ({"problem__name": "low_light", "problem__low_light__gamma": -1.0}, "gamma above 0"),
    ({"largest": 1.0}, "config.largest must be above 1"),
  ],
)
def test_wrong_problems(changes, message):
  with pytest.raises(ValueError, match=message):
    tasks.make(tiny(**changes))
