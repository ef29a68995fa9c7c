"""Inpainting through the scripts: holes, numbers of the table, pictures."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import evaluate, sample, tasks, train, workdirs
from experiments.configs import inpaint_patches
from experiments.tasks import _inpainting
from tests.e2e import runs


def tiny(**changes):
  config = inpaint_patches.get_config("tiny")
  config.data.options.update(size=20, num_train=32, num_test=12)
  config.hole.update(min_side=3, max_side=9)
  config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
  return config


@pytest.fixture(scope="module")
def task():
  return tasks.make(tiny())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("inpainting") / "run"
  assert train.train(tiny(), str(workdir))
  return workdir


def test_holes_are_rectangles_of_all_sizes_and_places(task):
  holes = np.asarray(task.holes(jax.random.key(3), 2000))[..., 0]
  rows, columns = holes.any(2), holes.any(1)
  np.testing.assert_array_equal(holes, rows[:, :, None] & columns[:, None, :])
  for line in (rows, columns):
    steps = np.diff(np.pad(line, ((0, 0), (1, 1))).astype(int))
    assert ((steps == 1).sum(1) == 1).all()  # one stretch each
    assert set(line.sum(1)) == set(range(3, 10))
    assert set(line.argmax(1)) == set(range(18))
  assert abs(np.corrcoef(rows.sum(1), columns.sum(1))[0, 1]) < 0.1


def test_held_out_holes_are_always_the_same(task):
  arrays, again = task.evaluation_arrays(), tasks.make(tiny(seed=5)).evaluation_arrays()
  np.testing.assert_array_equal(arrays["hole"], again["hole"])
  assert len({hole.tobytes() for hole in arrays["hole"]}) > 6
  few = task.evaluation_arrays(4)
  np.testing.assert_array_equal(few["hole"], arrays["hole"][::3])
  np.testing.assert_array_equal(few["image"], arrays["image"][::3])
  same = lambda images: sorted(image.tobytes() for image in images)
  assert same(arrays["image"]) == same(task.dataset.test["image"])
  other = tasks.make(tiny(hole__seed=1)).evaluation_arrays()
  assert not np.array_equal(arrays["hole"], other["hole"])


def test_the_loss_weighs_hole_and_rest(task):
  batch, key = {"image": task.dataset.train["image"][:4]}, jax.random.key(1)
  hole = task.holes(key, 4)
  fill = lambda images, mask: jnp.where(mask, images + 0.5, images - 0.25)
  loss, metrics = task.loss(fill, batch, key)
  np.testing.assert_allclose(metrics["hole_l1"], 0.5, rtol=1e-5)
  np.testing.assert_allclose(loss, 0.5 + 0.2 * 0.25, rtol=1e-5)
  scores = task.score(fill, {**batch, "hole": hole}, None, 1)
  np.testing.assert_allclose(scores, [0.25] * 4, rtol=1e-5)


def test_simple_fills():
  x = jnp.arange(25.0).reshape(1, 5, 5, 1)
  hole = jnp.zeros((1, 5, 5, 1), bool).at[:, 3:, 4:].set(True)
  wanted = np.zeros((5, 5), bool)
  wanted[2, 3:] = wanted[3:, 3] = True
  np.testing.assert_array_equal(_inpainting.border(hole)[0, ..., 0], wanted)
  mean = _inpainting.mean_colour(x, _inpainting.border(hole))
  np.testing.assert_allclose(mean.ravel(), np.arange(25)[wanted.ravel()].mean())


def test_a_run_learns_and_its_numbers_are_those_of_the_images(trained, capsys):
  assert runs.curve(trained)[0].keys() == {"step", "loss", "hole_l1", "gradient_norm"}
  assert [line["step"] for line in runs.curve(trained) if "test_hole_mse" in line] == [3, 6]
  result = evaluate.run(str(trained))
  written = json.loads((trained / "evaluate.json").read_text())
  assert written["psnr_hole"] == result["psnr_hole"]
  task, model = workdirs.open_workdir(str(trained))
  arrays = task.evaluation_arrays()
  x, hole = arrays["image"] / np.float32(255), arrays["hole"]
  # Region norms take statistics of a batch: compare with the same first batch.
  y = jax.jit(model)(x[:8], hole[:8])
  squared = [((a - b)[m[..., 0]] ** 2).mean() for a, b, m in zip(y, x[:8], hole[:8], strict=True)]
  scores = tasks.score_all(task, model)
  np.testing.assert_allclose(scores[:8], squared, rtol=1e-3)
  assert result["hole_mse"] == pytest.approx(scores.mean(), rel=1e-4)
  assert result["psnr_hole"] == pytest.approx(-10 * np.log10(scores).mean(), abs=1e-3)
  assert result["psnr_hole_se"] == pytest.approx(
    (10 * np.log10(scores)).std(ddof=1) / np.sqrt(12), rel=1e-3
  )
  whole = scores * hole.mean((1, 2, 3))
  assert result["psnr_whole"] == pytest.approx(-10 * np.log10(whole).mean(), abs=1e-3)
  rest = [b[~m[..., 0]].mean(0) for b, m in zip(x, hole, strict=True)]
  mse = [((c - b)[m[..., 0]] ** 2).mean() for c, b, m in zip(rest, x, hole, strict=True)]
  assert result["references"]["rest"]["hole_mse"] == pytest.approx(np.mean(mse), rel=1e-4)
  assert result["references"]["border"]["hole_mse"] < 1.2 * np.mean(mse)
  assert "mean colour around the hole: whole" in capsys.readouterr().out


def test_pictures_show_the_hole_and_keep_the_rest(trained, tmp_path, monkeypatch):
  shown = []
  keep = lambda images, path, **options: shown.append(images) or path
  monkeypatch.setattr("experiments.plots.image_grid", keep)
  assert [file.name for file in sample.run(str(trained), count=6)] == ["filled.png"]
  arrays = tasks.make(tiny()).evaluation_arrays(6)
  holed, filled, original = np.moveaxis(shown[0].reshape(6, 3, 20, 20, 3), 1, 0)
  inside = np.broadcast_to(arrays["hole"], original.shape)
  np.testing.assert_array_equal(original, arrays["image"])
  assert (holed[inside] == 255).all()
  for images in (holed, filled):
    np.testing.assert_array_equal(images[~inside], original[~inside])
  assert filled[inside].std() > 0
  with pytest.raises(ValueError, match="count must be at least 1, got 0"):
    sample.run(str(trained), count=0)
  with pytest.raises(ValueError, match="draws means nothing to the task inpainting"):
    evaluate.run(str(trained), 3)


@pytest.mark.parametrize(("low", "high"), [(0, 4), (5, 4), (4, 20)])
def test_wrong_holes(low, high):
  with pytest.raises(ValueError, match="min_side <= max_side < 20"):
    tasks.make(tiny(hole__min_side=low, hole__max_side=high))


def test_the_norm_is_one_word_of_the_config():
  spec = tasks.make(tiny(norm__name="instance_norm")).model["kwargs"]
  assert spec == {**tasks.make(tiny()).model["kwargs"], "norm": "instance_norm"}
