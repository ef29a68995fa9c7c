"""Pictures of a run, always drawn from what is on disk or in arrays."""

import json
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from experiments import metrics

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402


def image_grid(
  images: np.ndarray,
  path: str | Path,
  *,
  columns: int = 8,
  num_levels: int = 256,
  height: int = 64,
) -> Path:
  """Write images as one PNG, row by row, pixels kept as crisp squares.

  Args:
    images: (n, h, w, c) integers 0, ..., num_levels - 1; c is 1 (grey) or 3 (colour).
    path: the PNG.
    columns: images in a row.
    num_levels: what is white.
    height: least height of one image in the picture, in pixels.

  Returns:
    The path.

  Raises:
    ValueError: if `images` has another shape or is empty, or `columns` is below 1.
  """
  if images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
    raise ValueError(f"images must have shape (n, h, w, 1 or 3), n >= 1, got {images.shape}")
  if columns < 1:
    raise ValueError(f"columns must be at least 1, got {columns}")
  n, h, w, c = images.shape
  rows = -(-n // columns)
  scale = max(1, -(-height // h))
  pixels = np.round(np.asarray(images, np.float64) * (255 / (num_levels - 1))).astype(np.uint8)
  pixels = np.repeat(np.repeat(pixels, scale, axis=1), scale, axis=2)
  gap = max(2, scale // 2)
  page = np.full((rows * (h * scale + gap) + gap, columns * (w * scale + gap) + gap, c), 255)
  for i, image in enumerate(pixels):
    top, left = (gap + (i // columns) * (h * scale + gap), gap + (i % columns) * (w * scale + gap))
    page[top : top + h * scale, left : left + w * scale] = image
  page = page.astype(np.uint8)
  Image.fromarray(page[..., 0] if c == 1 else page).save(path)
  return Path(path)


def curves(workdir: str) -> Path:
  """Draw training and held-out bits per dimension against the step, into `curves.png`.

  References appear as lines where `evaluate.json` has them.

  Returns:
    The path of the PNG.

  Raises:
    ValueError: if the workdir has no curve.
  """
  lines = metrics.read(workdir)
  figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
  for name, label, style in (
    ("loss", "training", {"color": "0.7", "linewidth": 0.8}),
    ("test_bits_per_dim", "held out", {"color": "C0", "marker": ".", "linewidth": 1.5}),
  ):
    points = [(line["step"], line[name]) for line in lines if name in line]
    if points:
      axes.plot(*zip(*points, strict=True), label=label, **style)
  low = min(line[k] for line in lines for k in ("loss", "test_bits_per_dim") if k in line)
  evaluation = Path(workdir) / "evaluate.json"
  if evaluation.is_file():
    references = json.loads(evaluation.read_text())["references"]
    for i, (name, value) in enumerate(references.items()):
      axes.axhline(value, color=f"C{i + 1}", linestyle="--", linewidth=1)
      axes.annotate(name, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    low = min(low, *references.values())
  held = [line["test_bits_per_dim"] for line in lines if "test_bits_per_dim" in line]
  top = max([line["loss"] for line in lines if "loss" in line][:1] + held[:1])
  axes.set(xlabel="step", ylabel="bits per dimension", ylim=(low - 0.05, top + 0.1))
  axes.legend(loc="upper right")
  axes.spines[["top", "right"]].set_visible(False)
  path = Path(workdir) / "curves.png"
  figure.savefig(path, dpi=130)
  plt.close(figure)
  return path
