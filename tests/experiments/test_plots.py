import json
import math

import numpy as np
import pytest
from PIL import Image

from experiments import plots


def grid(tmp_path, images, **options):
  path = plots.image_grid(images, tmp_path / "grid.png", **options)
  assert path == tmp_path / "grid.png"
  return np.asarray(Image.open(path)).astype(int)


def test_every_image_is_at_its_place(tmp_path):
  colours = np.random.default_rng(0).integers(1, 255, size=(5, 1, 1, 3))
  images = np.broadcast_to(colours, (5, 4, 6, 3)).astype(np.uint8)
  page = grid(tmp_path, images, columns=3, height=8)
  # Each pixel becomes 2 x 2, and 2 white pixels lie between images of 8 x 12 and around them.
  assert page.shape == (2 * 10 + 2, 3 * 14 + 2, 3)
  inside = np.zeros(page.shape[:2], bool)
  for i in range(5):
    top, left = 2 + i // 3 * 10, 2 + i % 3 * 14
    inside[top : top + 8, left : left + 12] = True
    assert (page[top : top + 8, left : left + 12] == images[i, 0, 0]).all()
  assert (page[~inside] == 255).all()


def test_pixels_are_crisp_squares(tmp_path):
  image = np.random.default_rng(0).integers(256, size=(1, 3, 4, 1)).astype(np.uint8)
  page = grid(tmp_path, image, height=30)
  gap = 5
  assert page.shape == (30 + 2 * gap, 40 + 2 * gap)
  np.testing.assert_array_equal(
    page[gap:-gap, gap:-gap], np.kron(image[0, ..., 0], np.ones((10, 10), int))
  )


def test_large_images_are_not_enlarged(tmp_path):
  assert grid(tmp_path, np.zeros((1, 80, 70, 3), np.uint8), height=64).shape == (84, 74, 3)


def test_the_last_level_is_white(tmp_path):
  levels = np.arange(17, dtype=np.uint8).reshape(1, 1, 17, 1)
  page = grid(tmp_path, levels, num_levels=17, height=1)
  np.testing.assert_array_equal(page[2, 2:-2], np.round(np.arange(17) * 255 / 16))


def test_few_images_make_a_narrow_page(tmp_path):
  assert grid(tmp_path, np.zeros((2, 8, 8, 1), np.uint8), columns=8, height=8).shape == (12, 22)


@pytest.mark.parametrize(
  ("images", "options", "message"),
  [
    (np.zeros((4, 8, 8)), {}, r"images must have shape .*, got \(4, 8, 8\)"),
    (np.zeros((4, 8, 8, 2)), {}, r"images must have shape .*, got \(4, 8, 8, 2\)"),
    (np.zeros((0, 8, 8, 1)), {}, r"images must have shape .*, n >= 1, got \(0, 8, 8, 1\)"),
    (np.zeros((4, 8, 8, 1)), {"columns": 0}, "columns must be at least 1, got 0"),
    (np.full((1, 2, 2, 1), 17), {"num_levels": 17}, r"num_levels - 1 = 16, got 17, \.\.\., 17"),
    (np.full((1, 2, 2, 1), -1), {}, r"num_levels - 1 = 255, got -1, \.\.\., -1"),
  ],
)
def test_wrong_grids(tmp_path, images, options, message):
  with pytest.raises(ValueError, match=message):
    plots.image_grid(images, tmp_path / "grid.png", **options)
  assert not (tmp_path / "grid.png").exists()


@pytest.fixture
def run(tmp_path):
  lines = [{"step": s, "loss": 60.0 / s} for s in range(1, 21)]
  lines += [{"step": s, "test_bits_per_dim": 2.0 + 10.0 / s} for s in (10, 20)]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return tmp_path


@pytest.fixture
def axes(monkeypatch):
  """The axes that are drawn."""
  drawn, subplots = [], plots.plt.subplots

  def remember(*arguments, **options):
    figure, made = subplots(*arguments, **options)
    drawn.append(made)
    return figure, made

  monkeypatch.setattr(plots.plt, "subplots", remember)
  return drawn


def data_of(axes, label):
  (line,) = (line for line in axes.get_lines() if line.get_label() == label)
  return [tuple(point) for point in line.get_xydata()]


def test_curves_show_what_was_logged(run, axes):
  path = plots.curves(str(run))
  assert path == run / "curves.png"
  assert np.asarray(Image.open(path)).shape == (546, 975, 4)
  assert data_of(axes[0], "training") == [(s, 60.0 / s) for s in range(1, 21)]
  assert data_of(axes[0], "held out") == [(10, 3.0), (20, 2.5)]
  assert not axes[0].texts
  # The held-out curve fills the picture, however high the loss begins.
  low, top = axes[0].get_ylim()
  assert 2.0 < low < 2.5
  assert 3.0 < top < 3.5
  assert not plots.plt.get_fignums()


def test_curves_show_what_was_evaluated(run, axes):
  found = {
    "bits_per_dim": 2.4567,
    "bits_per_dim_se": 0.0123,
    "references": {"uniform": 8.0, "gaussian": 4.25, "gmm": 1.5},
  }
  (run / "evaluate.json").write_text(json.dumps(found))
  plots.curves(str(run))
  texts = [text.get_text() for text in axes[0].texts]
  assert texts == ["uniform 8.00", "Gaussian 4.25", "mixture 1.50"]
  assert [text.xy[1] for text in axes[0].texts] == [8.0, 4.25, 1.5]
  level = [line.get_ydata()[0] for line in axes[0].get_lines() if len(set(line.get_xdata())) == 2]
  assert {8.0, 4.25, 1.5} <= set(level)
  low, top = axes[0].get_ylim()
  assert low < 1.5
  assert top > 8.0
  assert "all held out: 2.457 ± 0.012" in [t.get_text() for t in axes[0].get_legend().get_texts()]


def test_curves_without_held_out_numbers(tmp_path, axes):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n')
  plots.curves(str(tmp_path))
  low, top = axes[0].get_ylim()
  assert low < 2.0
  assert top > 3.0


def test_curves_with_a_score_that_is_no_number(tmp_path, axes):
  lines = [{"step": 1, "loss": 3.0}, {"step": 2, "test_bits_per_dim": math.inf}]
  lines += [{"step": 3, "test_bits_per_dim": math.nan}, {"step": 4, "test_bits_per_dim": 2.0}]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  plots.curves(str(tmp_path))
  low, top = axes[0].get_ylim()
  assert 1.5 < low < 2.0 < top < 3.5


@pytest.mark.parametrize("content", [None, "", '{"step": 1, "rate": 3.0}\n'])
def test_no_curve(tmp_path, content):
  if content is not None:
    (tmp_path / "metrics.jsonl").write_text(content)
  with pytest.raises(ValueError, match=f"{tmp_path} has no "):
    plots.curves(str(tmp_path))
