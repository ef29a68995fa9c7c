"""Layers that start from data: once, from the same examples on all devices, never on resuming."""

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import tasks, train
from experiments.configs import glow_digits
from normjax import checkpoint, flows
from tests.e2e import runs
from tests.e2e.test_devices import assert_close_run


def tiny():
  config = glow_digits.get_config("tiny")
  config.model.update(num_levels=1, num_steps=1, width=4)
  config.update(total_steps=4, eval_every=4, save_every=2)
  config.eval.update(batch_size=40, examples=40)
  return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("start") / "run"
  assert train.train(tiny(), str(workdir))
  return workdir


def act_norms(model):
  return [m for _, m in nnx.iter_modules(model) if isinstance(m, flows.ActNorm)]


def test_act_norms_start_from_training_images():
  task = tasks.make(tiny())
  image = tasks.spread(task.dataset.train, 16)["image"]
  model = checkpoint.build(task.model, nnx.Rngs(0))
  started = jax.jit(lambda model, batch, key: task.start(model, batch, key))(
    model, {"image": image}, jax.random.key(3)
  )
  assert len(act_norms(started)) == 3
  for old, new in zip(act_norms(model), act_norms(started), strict=True):
    assert np.all(old.log_scale[...] == 0)
    assert np.all(new.log_scale[...] != 0)
  x = started.bijector.squeeze.forward(task.dequantize(image, jax.random.key(3)))[0]
  first = act_norms(started)[0]
  z = np.exp(np.asarray(first.log_scale[0])) * np.asarray(x) + np.asarray(first.shift[0])
  np.testing.assert_allclose(z.mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(z.std((0, 1, 2)), 1, atol=1e-5)
  assert tasks.make(runs.tiny()).start is None  # a Jet has no such layers


def test_a_resumed_run_does_not_start_again(whole, tmp_path, monkeypatch):
  workdir, calls = tmp_path / "run", []
  start = tasks.Density._start
  monkeypatch.setattr(
    tasks.Density, "_start", lambda *arguments: calls.append(1) or start(*arguments)
  )
  monkeypatch.setattr(checkpoint.Checkpointer, "reached_preemption", lambda self, step: step == 2)
  assert not train.train(tiny(), str(workdir))
  assert len(calls) == 1
  assert train.train(tiny(), str(workdir))
  assert len(calls) == 1
  assert runs.curve(workdir) == runs.curve(whole)


def test_eight_devices_start_alike(whole, tmp_path):
  assert train.train(tiny(), str(tmp_path / "run"), "data:2,fsdp:4")
  assert_close_run(tmp_path / "run", whole)
