import json
import os
import re
import shutil
import signal

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import evaluate, sample, tasks, train, workdirs
from experiments.configs import classify_digits, table_magic
from normjax import checkpoint
from tests.e2e import runs

# Many command lines in one process that has done the imports: each gets a fork of it.
COMMANDS = """
import contextlib, json, os, runpy, sys
import flax.nnx, grain, jax, ml_collections, optax, orbax.checkpoint
from experiments import command, data, metrics, plots, references, sharding, tasks, workdirs
from experiments.configs import common

for i, (module, *arguments) in enumerate(json.loads(sys.argv[1])):
  if not os.fork():
    sys.argv = [module, *arguments]
    os.dup2(os.open(f"{sys.argv[0]}.{i}", os.O_WRONLY | os.O_CREAT), 2)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    os._exit(0)
  _, status = os.wait()
  print(os.waitstatus_to_exitcode(status), flush=True)
"""
FASHION = "--config=experiments/configs/jet_fashion.py"
IMAGENET = "--config=experiments/configs/jet_imagenet64.py"

CASES = {
  "key": ("train", [runs.TINY, "--config.totl_steps=3"], 2, 'Did you mean "total_steps"'),
  "value": ("train", [runs.TINY, "--config.total_steps=few"], 1, "--config.total_steps=few"),
  "mode": ("train", [runs.TINY + "y"], 1, "mode must be empty or 'tiny', got 'tinyy'"),
  "file": ("train", ["--config=experiments/configs/jet_digit.py"], 2, "No such file"),
  "flag": ("train", [runs.TINY, "--meshs=data:2"], 1, "Did you mean: mesh"),
  "mesh": ("train", [runs.TINY, "--mesh=dta:2"], 2, "did you mean data?"),
  "argument": ("train", [runs.TINY, "tiny"], 1, "unknown arguments ['tiny']"),
  "fashion": ("train", [FASHION], 2, "python -m experiments.data.fetch fashion_mnist"),
  "imagenet": ("train", [IMAGENET], 2, "path must be a folder of images or an .npz"),
  "evaluate": ("evaluate", ["--draw=3"], 1, "Did you mean: draws"),
  "sample": ("sample", ["--temperature=1"], 1, "Did you mean: temperatures"),
  "nothing": ("sample", [], 2, "no such directory"),
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
  """Exit code and message of every command line."""
  folder = tmp_path_factory.mktemp("commands")
  lines = [
    (f"experiments.{module}", *arguments, f"--workdir={folder / name}")
    for name, (module, arguments, *_) in CASES.items()
  ]
  process = runs.start(
    "-c",
    f"import os; os.chdir({str(folder)!r}); os.symlink({str(runs.ROOT / 'experiments')!r}, "
    f"'experiments')\n" + COMMANDS,
    json.dumps(lines),
    NORMJAX_DATA=str(folder / "empty"),
    PYTHONPATH=str(runs.ROOT),
  )
  code, out, errors = runs.finish(process)
  assert code == 0, errors
  codes = [int(line) for line in out.split() if line.lstrip("-").isdigit()]
  texts = [(folder / f"{line[0]}.{i}").read_text() for i, line in enumerate(lines)]
  made = [(folder / name).exists() for name in CASES]
  return dict(zip(CASES, zip(codes, texts, made, strict=True), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_command_line_says_what_is_right(ends, name):
  *_, wanted, message = CASES[name]
  code, text, made = ends[name]
  assert message in text
  assert code == wanted
  assert not made, "a workdir was made"
  # A config file's own error comes with the place in that file; nothing else has a traceback.
  assert ("Traceback" in text) == (name == "mode")


def test_another_config_is_refused_and_named(uninterrupted):
  before = runs.contents(uninterrupted)
  with pytest.raises(ValueError, match="holds another experiment") as error:
    train.train(runs.tiny(seed=3, optimizer__lr=0.5), str(uninterrupted))
  assert "config.seed: 0 in the directory, 3 now" in str(error.value)
  assert "config.optimizer.lr: 0.001 in the directory, 0.5 now" in str(error.value)
  assert "batch_size" not in str(error.value)
  assert runs.contents(uninterrupted) == before


def test_a_damaged_checkpoint_is_named_and_left_alone(uninterrupted, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(uninterrupted, workdir)
  files = [p for p in (workdir / "checkpoints/12/state").rglob("*") if p.is_file()]
  largest = max(files, key=lambda p: p.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  largest.write_bytes(content)
  before = runs.contents(workdir)
  with pytest.raises(ValueError, match=r"step 12 .* is damaged.*was changed") as error:
    train.train(runs.tiny(), str(workdir))
  assert "Intact steps: [4, 8]" in str(error.value)
  with pytest.raises(ValueError, match=r"step 12 .* is damaged.*was changed"):
    workdirs.open_workdir(str(workdir))
  assert runs.contents(workdir) == before


@pytest.mark.parametrize(
  ("changes", "held_out", "message"),
  [
    ({"log_every": 0}, 80, "config.log_every must be at least 1, got 0"),
    ({"total_steps": 0}, 80, "config.total_steps must be at least 1, got 0"),
    ({"batch_size": 3}, 80, "config.batch_size must be a multiple of the 2 devices, got 3"),
    ({"eval__batch_size": 1}, 80, "config.eval.batch_size .* at least the 2 devices, got 1 and 80"),
    ({}, 0, "held-out examples must be at least the 2 devices, got 40 and 0"),
  ],
)
def test_numbers_that_fail_only_later_are_refused_at_once(changes, held_out, message):
  with pytest.raises(ValueError, match=message):
    train.check_numbers(runs.tiny(**changes), held_out, 2)


def test_a_run_is_alone_and_saves_a_signal_that_comes_late(tmp_path, monkeypatch):
  workdir, met = str(tmp_path / "run"), []

  def should_save(self, step):  # What the loop asks last before it takes another step.
    if step == 2:
      with pytest.raises(ValueError, match="another process is training in"):
        workdirs.alone(workdir).__enter__()
      met.append(step)
      os.kill(os.getpid(), signal.SIGTERM)
    return False

  monkeypatch.setattr(checkpoint.Checkpointer, "should_save", should_save)
  config = table_magic.get_config("tiny")
  config.flow = "maf"
  assert not train.train(config, workdir)
  assert met == [2]
  assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["3"]
  with workdirs.alone(workdir):
    pass


def test_the_classifier_of_the_readme_can_be_built():
  text = (runs.ROOT / "README.md").read_text()
  (name,) = re.findall(r"classify_digits\.py --config\.norm\.name=(\w+)", text)
  config = classify_digits.get_config()
  config.norm.name = name
  nnx.eval_shape(lambda: checkpoint.build(tasks.make(config).model, nnx.Rngs(0)))


def test_a_foreign_folder_is_refused_untouched(tmp_path):
  (tmp_path / "thesis.txt").write_text("chapter 1")
  with pytest.raises(ValueError, match="thesis.txt"):
    train.train(runs.tiny(), str(tmp_path))
  assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
  workdir = tmp_path / "run"
  # The first update is zero, because the warm-up starts there; the second destroys the model, in a
  # step whose own loss is finite: its state is saved, but only the one before it is good.
  config = runs.tiny(optimizer__lr=1e30, save_every=1)
  message = (
    rf"(loss|gradient_norm) is (nan|inf) at step 3; last good checkpoint: step 1 in {workdir}"
  )
  for _ in range(2):  # The second time it resumes from the ruined step 2.
    with pytest.raises(FloatingPointError, match=message):
      train.train(config, str(workdir))
  assert max(int(p.name) for p in (workdir / "checkpoints").iterdir()) <= 2
  assert all(line["step"] < 3 for line in runs.curve(workdir))
  _, flow = workdirs.open_workdir(str(workdir), step=1)
  z, log_det = flow.bijector.forward(jnp.zeros((2, 8, 8, 1)))
  assert np.isfinite(z).all()
  assert np.isfinite(log_det).all()


@pytest.mark.parametrize("draws", [0, -1])
def test_wrong_numbers_of_draws(uninterrupted, draws):
  with pytest.raises(ValueError, match=f"draws must be at least 1, got {draws}"):
    evaluate.run(str(uninterrupted), draws)


def test_wrong_samples(uninterrupted):
  with pytest.raises(ValueError, match="count must be at least 1, got 0"):
    sample.run(str(uninterrupted), count=0)
  with pytest.raises(ValueError, match=r"temperatures must be at least 0, got \[-1.0\]"):
    sample.run(str(uninterrupted), [1.0, -1.0])
