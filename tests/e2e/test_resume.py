import shutil
import signal

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import train
from experiments.optimizer import make_optimizer
from normjax import checkpoint
from tests.e2e import runs

# Runs experiments.train as a user would, and strikes at a moment that is the same every time.
STRIKE = """
import os, runpy, signal, sys
from experiments import data
from normjax.checkpoint import _files

how, at = sys.argv.pop(1), int(sys.argv.pop(1))
make, finalize = data.batches, _files.ListedPyTreeHandler.finalize
saves = []

class Struck:
  def __init__(self, iterator):
    self.iterator, self.count = iterator, 0
    self.get_state, self.set_state = iterator.get_state, iterator.set_state
  def __next__(self):
    self.count += 1
    if self.count == at:
      os.kill(os.getpid(), signal.SIGTERM)
    return next(self.iterator)

def batches(*arguments, repeat=True, **options):
  found = make(*arguments, repeat=repeat, **options)
  return Struck(found) if repeat else found

def killed(self, directory):
  saves.append(directory)
  if len(saves) == at:
    os.kill(os.getpid(), signal.SIGKILL)
  finalize(self, directory)

if how == "SIGTERM":
  data.batches = batches
else:
  _files.ListedPyTreeHandler.finalize = killed
runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
"""


def saved_state(workdir, step=None):
  """Return the whole training state of a step, with no device or sharding in it."""
  config = runs.tiny()
  record = checkpoint_record(config)

  def init():
    _, params, rest = checkpoint.to_state(checkpoint.build(record["model"], nnx.Rngs(0)))
    opt = make_optimizer(config.optimizer, config.total_steps).init(params)
    key, number = jax.random.key(0), jax.numpy.int32(0)
    return {"params": params, "rest": rest, "opt": opt, "key": key, "step": number, "ema": params}

  with checkpoint.Checkpointer(workdir, record) as checkpointer:
    return checkpointer.restore(jax.eval_shape(init), step=step)


def checkpoint_record(config):
  return {"model": train.tasks.make(config).model, "config": config.to_dict()}


def steps(workdir):
  return sorted(p.name for p in (workdir / "checkpoints").iterdir())


def assert_same_run(workdir, reference):
  assert runs.curve(workdir) == runs.curve(reference)
  (state, step), (expected, last) = saved_state(workdir), saved_state(reference)
  assert step == last == int(state["step"]) == 12
  runs.assert_same_bits(state, expected)


@pytest.fixture(scope="module")
def terminated(tmp_path_factory, uninterrupted):
  """The workdir of a run that got SIGTERM in step 6, and how its process ended."""
  workdir = tmp_path_factory.mktemp("terminated") / "run"
  process = runs.start("-c", STRIKE, "SIGTERM", "6", runs.TINY, f"--workdir={workdir}")
  return workdir, runs.finish(process)


def test_sigterm_saves_the_step_and_exits_with_143(terminated):
  workdir, (code, out, errors) = terminated
  assert code == 143, errors
  assert f"Stopped early; run the same command to resume from {workdir}" in out
  assert steps(workdir) == ["4", "6"]  # 4 was due, 6 was not
  assert [line["step"] for line in runs.curve(workdir) if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_a_terminated_run_goes_on_bit_by_bit(terminated, uninterrupted, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(terminated[0], workdir)
  assert train.train(runs.tiny(), str(workdir))
  assert_same_run(workdir, uninterrupted)


def test_a_run_killed_while_saving_goes_on_bit_by_bit(uninterrupted, tmp_path):
  workdir = tmp_path / "run"
  process = runs.start("-c", STRIKE, "SIGKILL", "2", runs.TINY, f"--workdir={workdir}")
  code, _, errors = runs.finish(process)
  assert code == -signal.SIGKILL, errors
  # Step 8 was on its way to the disk, but is no checkpoint.
  assert "4" in steps(workdir)
  assert "8" not in steps(workdir)
  assert any(name.startswith("8.") for name in steps(workdir))
  assert runs.curve(workdir)[-1]["step"] >= 8
  assert train.train(runs.tiny(), str(workdir))
  assert steps(workdir) == ["12", "4", "8"]
  assert_same_run(workdir, uninterrupted)


def test_a_finished_run_is_left_as_it_is(uninterrupted, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(uninterrupted, workdir)
  before = runs.contents(workdir / "checkpoints")
  assert train.train(runs.tiny(), str(workdir))
  assert runs.contents(workdir / "checkpoints") == before
  assert runs.curve(workdir) == runs.curve(uninterrupted)


def test_the_curve_falls_and_ends_with_a_held_out_score(uninterrupted):
  curve = runs.curve(uninterrupted)
  losses = runs.losses(uninterrupted)
  assert losses.shape == (12,)
  assert losses[-4:].mean() < losses[:4].mean()
  assert [line["step"] for line in curve if "test_bits_per_dim" in line] == [6, 12]
  assert curve[-1]["test_bits_per_dim"] < np.log2(17) + 1


def test_sigterm_is_handled_only_while_training(uninterrupted):
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
