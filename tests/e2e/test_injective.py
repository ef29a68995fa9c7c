"""Injective flows through the scripts: numbers of the table, references, pictures."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from scipy import linalg

from experiments import evaluate, sample, tasks, train, workdirs
from experiments.configs import injective_digits
from experiments.tasks import _injective
from normjax import checkpoint, flows


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
  again, log_prob = jax.jit(
    lambda model, x: (
      model.decode(model.encode(x)),
      flows.injective_log_prob(model.encode, model.decode, x),
    )
  )(model, np.float32(x))
  errors = np.sum((np.asarray(again) - x) ** 2, axis=1)
  assert result["squared_error"] == pytest.approx(errors.mean(), rel=1e-4)
  assert result["squared_error_se"] == pytest.approx(errors.std(ddof=1) / np.sqrt(360), rel=1e-3)
  values, vectors = np.linalg.eigh(np.cov(train_x, rowvar=False))
  assert values[-1] == values.max()
  left = (x - train_x.mean(0)) @ vectors[:, :-2]
  assert result["pca"] == pytest.approx(np.sum(left**2, axis=1).mean(), rel=1e-4)
  assert result["log_prob"] == pytest.approx(np.asarray(log_prob).mean(), rel=1e-3)
  covariances = [np.cov(v, rowvar=False) for v in (train_x, x)]
  root = linalg.sqrtm(covariances[0] @ covariances[1]).real
  distance = np.sum((train_x.mean(0) - x.mean(0)) ** 2) + np.trace(sum(covariances) - 2 * root)
  assert result["frechet_train"] == pytest.approx(distance, rel=1e-3)
  assert result["frechet"] > 2 * distance
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


def test_the_loss_sees_noise_and_the_likelihood():
  tasks_of = [tasks.make(tiny(noise=0.5, nll_weight=weight)) for weight in (0.0, 1.0)]
  model = checkpoint.build(tasks_of[0].model, nnx.Rngs(0))
  batch = {"image": tasks_of[0].dataset.test["image"][:5]}
  run = jax.jit(lambda *arguments: [task.loss(*arguments)[0] for task in tasks_of])
  plain, whole = run(model, batch, jax.random.key(0))
  x = tasks_of[0].inputs(batch["image"])
  x = x + 0.5 * jax.random.normal(jax.random.split(jax.random.key(0))[0], x.shape)
  errors = jnp.sum((model.decode(model.encode(x)) - x) ** 2, axis=1)
  np.testing.assert_allclose(plain, 10 * errors.mean(), rtol=1e-5)
  assert abs(whole - plain) > 1


def test_pictures(trained):
  files = sample.run(str(trained), count=5)
  assert {file.name for file in files} == {"samples.png", "reconstructions.png"}
  assert all(file.stat().st_size > 500 for file in files)
  page = np.asarray(Image.open(files[1]))[32::68, 40::68]  # a pixel of each image
  task, _ = workdirs.open_workdir(str(trained))
  levels = task.evaluation_arrays(12)["image"][:, 3, 4, 0]
  np.testing.assert_array_equal(page[0], np.round(levels.astype(float) * 255 / 16))
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
