from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import plots, tasks
from experiments.configs import jet_digits, tarflow_digits
from experiments.tasks import _density
from experiments.tasks._density_pictures import density_pictures
from normjax import checkpoint, flows


def tiny(**changes):
  config = jet_digits.get_config("tiny")
  config.model.memory = "store"
  config.update(changes)
  return tasks.make(config)


def build(task):
  return checkpoint.build(task.model, nnx.Rngs(0))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"task": "densty"},
      "config.task must be one of classification, density, .*did you mean density",
    ),
    (
      {"task": "x"},
      "config.task must be one of classification, density, .*table_density, got 'x'$",
    ),
    ({"data": {"name": "digit"}}, "config.data.name must be one of .*did you mean digits"),
  ],
)
def test_wrong_names(changes, message):
  with pytest.raises(ValueError, match=message):
    tiny(**changes)


def test_a_data_set_without_labels_has_no_classes(monkeypatch):
  task = tiny()
  unlabelled = type(task.dataset)(
    {"image": task.dataset.train["image"]}, {"image": task.dataset.test["image"]}, 17, None, "x"
  )
  monkeypatch.setattr("experiments.data.load", lambda name, **options: unlabelled)
  with pytest.raises(ValueError, match="class_conditional: data set 'digits' has no labels"):
    tiny(class_conditional=True)


def test_the_loss_is_bits_per_dimension():
  task = tiny()
  image = task.dataset.train["image"][:5]
  flow, key = build(task), jax.random.key(1)
  loss, metrics = task.loss(flow, {"image": image}, key)
  noise = jax.random.uniform(jax.random.split(key)[0], image.shape)
  x = 2 * (image + np.float64(noise)) / 17 - 1
  # A Jet starts as the identity, so this is the standard normal alone.
  log_prob = -0.5 * (x**2).sum((1, 2, 3)) - 32 * np.log(2 * np.pi)
  expected = -log_prob.mean() / (64 * np.log(2)) + np.log2(17 / 2)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_array_equal(metrics["loss"], loss)
  assert metrics.keys() == {"loss", "saturation"}


def test_learned_dequantization_bounds_the_bits():
  task = tiny(dequantizer="variational")
  batch, key = {"image": task.dataset.train["image"][:5]}, jax.random.key(1)
  flow = build(task)
  score = jax.jit(lambda flow: (task.loss(flow, batch, key)[0], task.score(flow, batch, key, 2)))
  loss, scores = score(flow)
  # Logit-normal noise at first, under a Jet that is the identity: by the bound itself.
  image, noise_key = batch["image"], jax.random.split(key)[0]
  noise, log_r = flow.dequantizer.sample_and_log_prob(noise_key, 5, image)
  log_prob = flow.log_prob(2 * (image + noise) / 17 - 1) - log_r
  expected = (64 * np.log(17 / 2) - log_prob.mean()) / (64 * np.log(2))
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  assert scores.shape == (5,)
  with pytest.raises(ValueError, match="config.noise must be 0 with a dequantizer, got 0.1"):
    tiny(dequantizer="variational", noise=0.1)
  with pytest.raises(ValueError, match="config.dequantizer must be one of"):
    tiny(dequantizer="variatonal")


def test_denoised_samples_are_compared_with_training_images():
  task = tiny(noise=0.5, eval={"draws": 1})
  flow = build(task)
  result = task.evaluate(flow)
  found = result["nearest"]
  images = 2 * (task.dataset.train["image"] + 0.5) / 17 - 1
  # The flow is the identity, so samples are of N(0, I) and their means given are 1 - 0.5^2 of them.
  x = np.asarray(flow.sample(jax.random.key(task.config.seed + 2), 256))
  held_out = 2 * (task.evaluation_arrays(256)["image"] + 0.5) / 17 - 1
  for name, points in {"noisy": x, "denoised": 0.75 * x, "held-out": held_out}.items():
    expected = [np.sqrt(np.min(np.mean((p - images) ** 2, axis=(1, 2, 3)))) for p in points]
    mean, error = np.mean(expected), np.std(expected, ddof=1) / 16
    np.testing.assert_allclose(found[name], (mean, error), rtol=1e-5)
  assert f"denoised | {found['denoised'][0]:.4f} ± " in task.table(result)


def test_labels_are_dropped_as_often_as_asked():
  batch = {"image": np.zeros((400, 8, 8, 1), np.uint8), "label": np.arange(400) % 10}
  seen = []

  class Recorder:
    null_label = None

    def forward(self, x, label):
      seen.append(np.asarray(label))
      return x, jnp.zeros(len(x))

  class Flow:
    bijector = Recorder()
    base = build(tiny()).base

  for rate, null in ((0.0, 10), (0.3, 10), (1.0, 10), (0.3, -1)):
    Recorder.null_label = null
    task = tiny(class_conditional=True, label_dropout=rate)
    task.loss(Flow(), batch, jax.random.key(0))
    dropped = seen[-1] == null
    assert abs(dropped.mean() - rate) < 0.08
    np.testing.assert_array_equal(seen[-1][~dropped], batch["label"][~dropped])


def test_quantizing_undoes_dequantizing():
  task = tiny()
  image = jnp.arange(17, dtype=jnp.uint8).reshape(1, 17, 1, 1)
  np.testing.assert_array_equal(task.quantize(task.dequantize(image, jax.random.key(0))), image)


def test_spherical_walks_keep_to_the_circle():
  first, last = np.float32([[2.0, 0.0]]), np.float32([[0.0, 2.0]])
  walk = tasks.spherical(first, last, 5)
  angle = np.linspace(0, np.pi / 2, 5)
  expected = 2 * np.stack([np.cos(angle), np.sin(angle)], -1)[:, None]
  np.testing.assert_allclose(walk, expected, atol=1e-6)
  np.testing.assert_array_equal(tasks.spherical(first, first, 3), np.stack([first] * 3))


def test_a_part_of_the_held_out_examples_is_spread_over_all():
  task = tasks.make(jet_digits.get_config("tiny"))
  everything, part = task.evaluation_arrays(), task.evaluation_arrays(3)
  assert len(everything["image"]) == 360
  for name, array in part.items():
    np.testing.assert_array_equal(array, everything[name][[0, 120, 240]])
  assert len(task.evaluation_arrays(1000)["image"]) == 360


def tiny_tarflow(**changes):
  config = tarflow_digits.get_config("tiny")
  config.update(changes)
  return tasks.make(config)


def test_noise_takes_the_place_of_dequantization():
  task = tiny_tarflow(noise=0.1)
  batch, key = {"image": task.dataset.train["image"][:200]}, jax.random.key(1)
  x = task.augment(batch["image"], key)
  noise = x - ((batch["image"] + 0.5) * 2 / 17 - 1)
  np.testing.assert_allclose(np.std(noise), 0.1, rtol=0.05)
  assert abs(np.mean(noise)) < 0.01

  @jax.jit
  def run(image):
    flow = build(task)
    drawn = task.quantize(0.99 * flow.base.sample(key, 20))
    return task.loss(flow, {"image": image}, key), task.samples(flow, key, 20), drawn

  (loss, metrics), samples, expected_samples = run(batch["image"])
  # A TarFlow starts as the identity, so this is the standard normal alone.
  same = task.augment(batch["image"], jax.random.split(key)[0])
  expected = (0.5 * np.mean(same**2) + 0.5 * np.log(2 * np.pi)) / np.log(2) + np.log2(17 / 2)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  assert metrics.keys() == {"loss"}
  # The score of the standard normal at x is -x.
  np.testing.assert_array_equal(samples, expected_samples)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"flow": "tarflw"}, "config.flow must be one of glow, jet, tarflow, .*did you mean tarflow"),
    ({"noise": -0.1}, "config.noise must be at least 0, got -0.1"),
  ],
)
def test_wrong_flows_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    tiny_tarflow(**changes)


@pytest.mark.parametrize(("make", "null"), [(tiny, 10), (tiny_tarflow, -1)])
def test_flows_know_their_null_label(make, null):
  task = make(class_conditional=True)
  assert nnx.eval_shape(lambda: build(task)).bijector.null_label == null


def test_pictures_of_few_held_out_images(tmp_path, monkeypatch):
  image = np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2, 1)
  same = lambda x, *_: jnp.asarray(x, jnp.float32)
  task = SimpleNamespace(
    dataset=SimpleNamespace(test={"image": image}, num_levels=16), num_classes=None,
    labels=lambda count: None,
    dequantize=same, quantize=same, samples=lambda flow, key, n, *_: jnp.zeros((n, 2, 2, 1)),
  )  # fmt: skip
  flow = flows.Flow(flows.Chain([]), flows.StandardNormal((2, 2, 1)))
  pages = []
  page = lambda images, path, *, columns, **_: pages.append((len(images), columns))
  monkeypatch.setattr(plots, "image_grid", page)
  density_pictures(task, flow, tmp_path, [1.0], 8, 0)
  assert pages == [(8, 8), (48, 8), (9, 3)]
  with pytest.raises(ValueError, match=r"temperatures must be at least 0, got \[nan\]"):
    density_pictures(task, flow, tmp_path, [float("nan")], 8, 0)


def test_only_short_runs_have_rough_references(monkeypatch):
  asked = []
  monkeypatch.setattr(_density, "references", lambda *_, tiny: asked.append(tiny) or {})
  monkeypatch.setattr(_density, "over_held_out", lambda *_: np.ones((4, 1), np.float32))
  small = {"name": "generated", "options": {"size": 8, "num_train": 16, "num_test": 4}}
  for steps in (12, 1000):
    tiny(data=small, total_steps=steps).evaluate(None)
  assert asked == [True, False]
