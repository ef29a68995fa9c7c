"""Classification through the scripts: training, resuming with norms that write state, scores."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments import data, evaluate, sample, tasks, train, workdirs
from experiments.configs import classify_digits
from experiments.step import make_steps
from normjax import carried, checkpoint, norms
from tests.e2e import runs


@jax.custom_vjp
def _listen(x, state):
  return x


def _listen_backward(_, dy):
  return dy, jnp.mean(jnp.abs(dy), tuple(range(dy.ndim - 1)))


_listen.defvjp(lambda x, state: (x, None), _listen_backward)


class Listening(nnx.Module):
  """Divides by the running power of its input; notes the size of the gradients it has seen."""

  def __init__(self, num_features: int, *, rngs: nnx.Rngs):
    self.use_running_average = False
    self.power = nnx.BatchStat(jnp.ones(num_features))
    self.seen = carried.GradCarried(jnp.zeros(num_features))

  def __call__(self, x):
    if not self.use_running_average:
      new = jax.lax.stop_gradient(jnp.mean(x**2, tuple(range(x.ndim - 1))))
      self.power[...] = 0.9 * self.power[...] + 0.1 * new
    scale = jax.lax.rsqrt(self.power[...] + 1e-3).reshape(*(1,) * (x.ndim - 1), -1)
    return _listen(x * scale, self.seen[...])


def tiny(**changes):
  config = classify_digits.get_config("tiny")
  config.model.resnet.depths = (2, 2)  # One stage is a scan of two blocks.
  config.norm.name = "listening"
  config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
  return config


@pytest.fixture(scope="module", autouse=True)
def listening():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(norms.NAMES, "listening", Listening)
    yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("classification") / "run"
  assert train.train(tiny(), str(workdir))
  return workdir


def variables(workdir, kind=...):
  model = workdirs.open_workdir(str(workdir))[1]
  return nnx.to_pure_dict(nnx.state(model, kind))


def test_the_curve_has_what_a_classifier_needs(trained):
  curve = runs.curve(trained)
  assert curve[0].keys() == {"step", "loss", "accuracy", "gradient_norm"}
  assert [line["step"] for line in curve if "test_error" in line] == [6, 12]
  losses = runs.losses(trained)
  assert losses[-4:].mean() < losses[:4].mean()


def test_state_of_the_backward_pass_moves_in_every_layer(trained):
  seen = jax.tree.leaves(variables(trained, carried.GradCarried))
  rows = [row for leaf in seen for row in np.asarray(leaf).reshape(-1, leaf.shape[-1])]
  assert len(rows) == 1 + 4 + 3 + 2  # the stem, two repeated blocks, one with a shortcut, one more
  assert all((row > 0).all() for row in rows)


def test_a_run_goes_on_bit_by_bit(trained, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(trained, workdir)
  for step in (8, 12):
    shutil.rmtree(workdir / "checkpoints" / str(step))
  assert train.train(tiny(), str(workdir))
  assert runs.curve(workdir) == runs.curve(trained)
  runs.assert_same_bits(variables(workdir), variables(trained))


def test_held_out_scores_are_those_of_evaluation_mode(trained, monkeypatch):
  task, model = workdirs.open_workdir(str(trained))
  arrays = task.evaluation_arrays(80)
  logits = np.asarray(jax.jit(lambda m, x: m(x))(model, task.inputs(arrays["image"])))
  error = np.mean(logits.argmax(-1) != arrays["label"])
  assert runs.curve(trained)[-1]["test_error"] == pytest.approx(error, abs=1e-6)

  logit = lambda model, batch, key, draws: model(task.inputs(batch["image"]))[:, 0]
  monkeypatch.setattr(task, "score", logit)
  steps = make_steps(task, optax.identity(), 0.0)
  _, params, rest = checkpoint.to_state(model)
  score = jax.jit(lambda batch: steps.score({"params": params, "rest": rest}, batch, None))
  few = {name: array[:8] for name, array in arrays.items()}
  np.testing.assert_allclose(score(few), logits[:8, 0], rtol=1e-4, atol=1e-5)


def test_evaluation_and_pictures(trained, tmp_path, capsys):
  workdir = tmp_path / "run"
  shutil.copytree(trained, workdir)
  result = evaluate.run(str(workdir))
  written = json.loads((workdir / "evaluate.json").read_text())
  assert set(written) == {
    "error", "error_se", "loss", "references", "examples", "seconds", "config", "versions",
  }  # fmt: skip
  task, model = workdirs.open_workdir(str(workdir))
  test = data.load("digits").test
  wrong = tasks.score_all(task, model)
  logits = np.asarray(model(2 * np.float32(test["image"]) / 16 - 1))
  np.testing.assert_array_equal(wrong, np.argmax(logits, -1) != test["label"])
  assert written["error"] == result["error"] == pytest.approx(wrong.mean())
  assert written["error_se"] == pytest.approx(wrong.std() / np.sqrt(360), rel=1e-5)
  chosen = np.asarray(jax.nn.log_softmax(logits))[np.arange(360), test["label"]]
  assert written["loss"] == pytest.approx(-chosen.mean(), rel=1e-4)
  assert 0.8 < written["references"]["majority"] < 0.95
  assert 0.02 < written["references"]["nearest_mean"] < 0.2
  assert "nearest class mean" in capsys.readouterr().out
  files = sample.run(str(workdir), count=16)
  assert {file.name for file in files} == {"confusion.png", "hardest.png"}
  for file in (*files, workdir / "curves.png"):
    assert file.stat().st_size > 1000


def test_options_of_other_tasks_are_refused(trained):
  with pytest.raises(ValueError, match="draws means nothing to the task classification"):
    evaluate.run(str(trained), 3)
  with pytest.raises(ValueError, match="temperatures means nothing to the task classification"):
    sample.run(str(trained), [1.0])
  with pytest.raises(ValueError, match="count must be at least 1, got 0"):
    sample.run(str(trained), count=0)


@pytest.mark.parametrize("name", ["mlp", "vit", "lstm"])
def test_the_model_and_the_norm_are_words_of_the_config(name, tmp_path):
  config = tiny(model__name=name, norm__name="layer_norm", total_steps=4, eval_every=4)
  assert train.train(config, str(tmp_path / "run"))
  model = workdirs.open_workdir(str(tmp_path / "run"))[1]
  assert type(model).__name__.lower().startswith(name)
  kinds = {type(m) for _, m in nnx.iter_modules(model)}
  assert norms.LayerNorm in kinds
  assert np.isfinite(runs.losses(tmp_path / "run")).all()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model__name": "resnt"}, "config.model.name must be one of mlp, .*did you mean resnet"),
    ({"data__name": "natural_patches", "data__options": {"photos": "bundled"}}, "has no labels"),
  ],
)
def test_wrong_configs(changes, message):
  config = tiny()
  for key, value in changes.items():
    node, _, leaf = key.rpartition("__")
    setattr(getattr(config, node), leaf, value)
  with pytest.raises(ValueError, match=message):
    tasks.make(config)


def test_none_is_no_norm():
  assert tasks.make(tiny(norm__name="none")).model["kwargs"]["norm"] is None
