"""Pictures of a run, always drawn from what is on disk or in arrays."""

import json
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from experiments import metrics

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

_REFERENCES = {"uniform": "uniform", "gaussian": "Gaussian", "gmm": "mixture"}


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
    ValueError: if `images` has another shape, is empty or holds other values, or `columns` is
      below 1.
  """
  if images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
    raise ValueError(f"images must have shape (n, h, w, 1 or 3), n >= 1, got {images.shape}")
  if columns < 1:
    raise ValueError(f"columns must be at least 1, got {columns}")
  if images.min() < 0 or images.max() >= num_levels:
    raise ValueError(
      f"images must be 0, ..., num_levels - 1 = {num_levels - 1}, got {images.min()}, ..., "
      f"{images.max()}"
    )
  n, h, w, c = images.shape
  columns = min(columns, n)
  rows = -(-n // columns)
  scale = max(1, -(-height // h))
  pixels = np.round(np.asarray(images, np.float64) * (255 / max(1, num_levels - 1))).astype(
    np.uint8
  )
  pixels = np.repeat(np.repeat(pixels, scale, axis=1), scale, axis=2)
  gap = max(2, scale // 2)
  page = np.full((rows * (h * scale + gap) + gap, columns * (w * scale + gap) + gap, c), 255)
  for i, image in enumerate(pixels):
    top, left = (gap + (i // columns) * (h * scale + gap), gap + (i % columns) * (w * scale + gap))
    page[top : top + h * scale, left : left + w * scale] = image
  page = page.astype(np.uint8)
  Image.fromarray(page[..., 0] if c == 1 else page).save(path)
  return Path(path)


def image_rows(rows: dict[str, np.ndarray], path: str | Path, *, num_levels: int = 256) -> Path:
  """Draw rows of images with the name of each row beside it.

  Args:
    rows: by name (n, h, w, c) integers as for `image_grid`, alike in shape.
    path: the PNG.
    num_levels: what is white.

  Returns:
    The path.
  """
  count = len(next(iter(rows.values())))
  size = {"figsize": (0.75 * count + 1.6, 0.8 * len(rows)), "squeeze": False}
  figure, axes = plt.subplots(len(rows), count, layout="constrained", **size)
  for line, (name, images) in zip(axes, rows.items(), strict=True):
    for panel, image in zip(line, np.asarray(images) / (num_levels - 1), strict=True):
      shown = np.broadcast_to(image, (*image.shape[:2], 3))  # grey in three channels
      panel.imshow(shown, vmin=0, vmax=1, interpolation="nearest")
      panel.axis("off")
    line[0].annotate(name, (-0.15, 0.5), xycoords="axes fraction", ha="right", va="center")
  return save(figure, path)


def curves(workdir: str) -> Path:
  """Draw training and held-out bits per dimension against the step, into `curves.png`.

  The numbers of `evaluate.json` appear where it is there: the references as lines, the model's own
  in the legend.

  Returns:
    The path of the PNG.

  Raises:
    ValueError: if the workdir has no curve.
  """
  curve = {
    name: [(line["step"], line[name]) for line in metrics.read(workdir) if name in line]
    for name in ("loss", "test_bits_per_dim")
  }
  if not any(curve.values()):
    raise ValueError(f"{workdir} has no curve yet: neither loss nor test_bits_per_dim was logged")
  evaluation = Path(workdir) / "evaluate.json"
  found = json.loads(evaluation.read_text()) if evaluation.is_file() else {}
  references = found.get("references", {})
  figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
  for name, label, style in (
    ("loss", "training", {"color": "0.65", "linewidth": 0.9}),
    ("test_bits_per_dim", "held out", {"color": "C0", "marker": "o", "markersize": 3}),
  ):
    if curve[name]:
      axes.plot(*zip(*curve[name], strict=True), label=label, **style)
  if "bits_per_dim" in found:
    number = f"{found['bits_per_dim']:.3f} ± {found['bits_per_dim_se']:.3f}"
    axes.plot([], [], " ", label=f"all held out: {number}")
  for name, value in references.items():
    axes.axhline(value, color="0.35", linestyle=(0, (4, 3)), linewidth=0.9, zorder=0)
    text = f"{_REFERENCES.get(name, name)} {value:.2f}"
    # Beside the axes no line runs through it.
    place = {"xy": (1.01, value), "xycoords": ("axes fraction", "data")}
    axes.annotate(text, **place, va="center", color="0.35", fontsize=9, annotation_clip=False)
  known = [value for value in references.values() if math.isfinite(value)]
  training, held_out = (
    [value for _, value in points if math.isfinite(value)] for points in curve.values()
  )
  # A flow starts far above the uniform density; what happens below it is what one looks at.
  top = max([*known, *held_out] or training or [1.0])
  low = min([*training, *held_out, *known] or [0.0])
  margin = 0.06 * max(top - low, 0.1)
  axes.set(xlabel="step", ylabel="bits per dimension", ylim=(low - margin, top + margin))
  axes.grid(axis="y", color="0.93", zorder=-1)
  axes.spines[["top", "right"]].set_visible(False)
  axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
  return save(figure, Path(workdir) / "curves.png")


def panels(workdir: str, wanted: dict[str, list[str]]) -> Path:
  """Draw numbers of a run against the step, a panel for each scale, into `curves.png`.

  Args:
    workdir: a workdir of `experiments.train`.
    wanted: for the label of each panel's vertical axis the names of its numbers.

  Returns:
    The path of the PNG.

  Raises:
    ValueError: if the workdir has no curve.
  """
  lines = metrics.read(workdir)
  size = {"figsize": (5.2 * len(wanted), 3.6), "squeeze": False, "layout": "constrained"}
  figure, axes = plt.subplots(1, len(wanted), **size)
  for panel, (label, names) in zip(axes[0], wanted.items(), strict=True):
    for name in names:
      points = [(line["step"], line[name]) for line in lines if name in line]
      style = {"marker": "o", "markersize": 3} if name.startswith("test_") else {"color": "0.5"}
      if points:
        panel.plot(*zip(*points, strict=True), label=name, **style)
        panel.legend(frameon=False)
    panel.set(xlabel="step", ylabel=label)
    panel.grid(axis="y", color="0.93", zorder=-1)
    panel.spines[["top", "right"]].set_visible(False)
  return save(figure, Path(workdir) / "curves.png")


def pairs(
  rows: np.ndarray,
  samples: np.ndarray,
  columns: tuple[str, ...],
  path: str | Path,
  *,
  most: int = 5,
) -> Path:
  """Draw pairs of columns: held-out rows below the diagonal, samples above, both on it.

  Args:
    rows: (n, d) real rows, which also set the limits.
    samples: (m, d) rows drawn from a model.
    columns: d names.
    path: the PNG.
    most: how many columns, spread evenly over all, are shown.

  Returns:
    The path.
  """
  count = min(most, rows.shape[1])
  shown = np.arange(count) * rows.shape[1] // count
  size = {"figsize": (1.9 * count + 0.6, 1.9 * count), "squeeze": False, "layout": "constrained"}
  figure, axes = plt.subplots(count, count, **size)
  limits = np.quantile(rows[:, shown], [0.005, 0.995], axis=0)
  margin = 0.1 * (limits[1] - limits[0]) + 1e-3
  low, high = limits[0] - margin, limits[1] + margin
  for (i, j), panel in np.ndenumerate(axes):
    if i == j:
      bins = np.linspace(low[i], high[i], 40)
      for part, colour in ((rows, "0.35"), (samples, "C0")):
        panel.hist(part[:, shown[i]], bins, density=True, histtype="step", color=colour)
    else:
      part, colour = (rows, "0.35") if i > j else (samples, "C0")
      panel.scatter(part[:, shown[j]], part[:, shown[i]], s=2, color=colour, linewidths=0)
      panel.set_ylim(low[i], high[i])
    panel.set(xlim=(low[j], high[j]), xticks=[], yticks=[])
    if i == count - 1:
      panel.set_xlabel(columns[shown[j]], fontsize=8)
    if j == 0:
      panel.set_ylabel(columns[shown[i]], fontsize=8)
  figure.suptitle("held-out rows (grey, below) and samples (blue, above)", fontsize=9)
  return save(figure, path)


def confusion(counts: np.ndarray, path: str | Path) -> Path:
  """Draw how often each class (row) was taken for each other (column), as one PNG.

  Args:
    counts: (classes, classes) integers.
    path: the PNG.

  Returns:
    The path.
  """
  figure, axes = plt.subplots(figsize=(5.6, 5), layout="constrained")
  share = counts / np.maximum(1, counts.sum(1, keepdims=True))
  axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
  for (row, column), count in np.ndenumerate(counts):
    colour = "white" if share[row, column] > 0.5 else "0.25"
    if count:
      axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
  ticks = range(len(counts))
  axes.set(xlabel="predicted class", ylabel="true class", xticks=ticks, yticks=ticks)
  return save(figure, path)


def save(figure: Any, path: str | Path, dpi: int = 130) -> Path:
  """Write a figure and close it; return the path."""
  figure.savefig(path, dpi=dpi)
  plt.close(figure)
  return Path(path)
