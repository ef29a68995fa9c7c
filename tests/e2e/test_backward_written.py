"""Norms whose state the backward pass writes, through the ordinary training loop."""

import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import train, workdirs
from experiments.configs import classify_digits
from normjax import carried
from tests.e2e import runs

OPTIONS = {
  "online_norm": {"decay": 0.9},
  "power_norm": {"warmup_iters": 6},
  "unified_norm": {"warmup_iters": 6, "ratio_warmup": 8, "window": 2},
}


def config(norm):
  config = classify_digits.get_config("tiny")
  config.model.name = "mlp"
  config.norm.name = norm
  with config.norm.unlocked():
    config.norm.options = OPTIONS[norm]
  config.optimizer.lr = 1e-2
  return config


def variables(workdir, kind=...):
  return nnx.to_pure_dict(nnx.state(workdirs.open_workdir(str(workdir))[1], kind))


@pytest.fixture(scope="module", params=sorted(OPTIONS))
def trained(request, tmp_path_factory):
  workdir = tmp_path_factory.mktemp(request.param) / "run"
  assert train.train(config(request.param), str(workdir))
  return request.param, workdir


def test_the_classifier_learns_and_all_state_moves(trained):
  _, workdir = trained
  losses = runs.losses(workdir)
  assert losses[-4:].mean() < losses[:4].mean()
  written = jax.tree.leaves(variables(workdir, carried.GradCarried))
  assert len(written) >= 2  # one layer at least for each hidden layer
  assert all(np.any(np.asarray(leaf) != 0) for leaf in written)


def test_a_run_goes_on_bit_by_bit(trained, tmp_path):
  norm, whole = trained
  workdir = tmp_path / "run"
  shutil.copytree(whole, workdir)
  for step in (8, 12):
    shutil.rmtree(workdir / "checkpoints" / str(step))
  assert train.train(config(norm), str(workdir))
  assert runs.curve(workdir) == runs.curve(whole)
  runs.assert_same_bits(variables(workdir), variables(whole))


def test_eight_devices_give_the_same_run(trained, tmp_path):
  norm, whole = trained
  workdir = tmp_path / "run"
  assert train.train(config(norm), str(workdir), "data:8")
  np.testing.assert_allclose(runs.losses(workdir), runs.losses(whole), rtol=1e-4)
  for kind in (carried.GradCarried, nnx.BatchStat):
    pairs = zip(*(jax.tree.leaves(variables(w, kind)) for w in (workdir, whole)), strict=True)
    for found, wanted in pairs:
      scale = np.max(np.abs(wanted), initial=1e-3)
      np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3 * scale)
