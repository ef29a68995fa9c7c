"""Injective flows through the scripts: numbers of the table, references, pictures."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import evaluate, sample, tasks, train, workdirs
from experiments.configs import injective_digits
from experiments.tasks import _injective
from normjax import checkpoint


def tiny(**changes):
  config = injective_digits.get_config("tiny")
  config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
  return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory, compiled_once):
  workdir = tmp_path_factory.mktemp("injective") / "run"
  assert train.train(tiny(), str(workdir))
  return workdir


def test_numbers_are_those_of_the_images(trained, capsys):
  result = evaluate.run(str(trained))
  assert json.loads((trained / "evaluate.json").read_text())["frechet"] == result["frechet"]
  task, model = workdirs.open_workdir(str(trained))
  train_x, x = ((2 * part["image"].reshape(-1, 64) + 1.0) / 17 - 1 for part in task.dataset[:2])
  again = jax.jit(lambda model, x: model.decode(model.encode(x)))(model, np.float32(x))
  errors = np.sum((np.asarray(again) - x) ** 2, axis=1)
  assert result["squared_error"] == pytest.approx(errors.mean(), rel=1e-4)
  assert result["squared_error_se"] == pytest.approx(errors.std(ddof=1) / np.sqrt(360), rel=1e-3)
  values, vectors = np.linalg.eigh(np.cov(train_x, rowvar=False))
  assert values[-1] == values.max()
  left = (x - train_x.mean(0)) @ vectors[:, :-2]
  assert result["pca"] == pytest.approx(np.sum(left**2, axis=1).mean(), rel=1e-4)
  assert 0 < result["frechet_train"] < result["frechet"]
  assert "squared error of 2 principal components" in capsys.readouterr().out


def test_frechet_distance_of_known_gaussians():
  rng = np.random.default_rng(0)
  a = rng.standard_normal((4000, 2))
  a = (a - a.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(a, rowvar=False))).T
  # Commuting covariances: the squared differences of means and of standard deviations.
  assert _injective.frechet(a, a * [2, 3] + [1, 0]) == pytest.approx(1 + 1 + 4, rel=1e-6)
  assert _injective.frechet(a, a) == pytest.approx(0, abs=1e-6)


def test_the_autoencoder_has_no_likelihood_in_its_loss():
  task = tasks.make(tiny(nll_weight=0.0, noise=0.0, beta=2.0))
  model = checkpoint.build(task.model, nnx.Rngs(0))
  batch = {"image": task.dataset.test["image"][:5]}
  key = jax.random.key(0)
  loss, metrics = jax.jit(task.loss)(model, batch, key)
  errors = jax.jit(task.score, static_argnums=3)(model, batch, key, 1)
  np.testing.assert_allclose(loss, 2 * errors.mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics["train_squared_error"], loss / 2, rtol=1e-6)


def test_pictures(trained):
  files = sample.run(str(trained), count=5)
  assert {file.name for file in files} == {"samples.png", "reconstructions.png"}
  assert all(file.stat().st_size > 500 for file in files)
  with pytest.raises(ValueError, match="count must be at least 1, got 0"):
    sample.run(str(trained), count=0)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"noise": -0.1}, "config.noise must be at least 0, got -0.1"),
    ({"num_probes": 3}, "config.num_probes must be 1 to latent_dim, .* at most 64, got 3 and 2"),
    ({"model__latent_dim": 65}, "got 1 and 65"),
  ],
)
def test_wrong_configs_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    tasks.make(tiny(**changes))
