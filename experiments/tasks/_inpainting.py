"""Inpainting: images with a random rectangular hole, scored by the squared error in the hole."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import data, plots
from experiments.tasks._scoring import markdown, mean_and_error, over_held_out, spread
from experiments.tasks._task import Task

_TRIPLES = 4  # in a row of the picture


class Inpainting(Task):
  """What the training loop and the evaluation need to know about generators that fill holes.

  Each training image has a new hole at each step; a held-out image always has the same one, drawn
  from `config.hole.seed`, so that numbers of different runs compare.

  Attributes:
    dataset: images in memory.
    model: JSON spec of the generator, for `normjax.checkpoint.build`.
    metric: the held-out number that curves show.
  """

  metric = "hole_mse"

  def __init__(self, config: ConfigDict):
    self.config = config
    self.dataset = data.load(config.data.name, **config.data.options)
    height, width, channels = self.dataset.shape
    low, high = config.hole.min_side, config.hole.max_side
    if not 1 <= low <= high < min(height, width):
      raise ValueError(
        f"config.hole must have 1 <= min_side <= max_side < {min(height, width)}, the side of an "
        f"image, got {low} and {high}"
      )
    self.model = {
      "class": "normjax.models.InpaintingGenerator",
      "kwargs": {
        "image_features": channels,
        "norm": config.norm.name,
        "norm_options": config.norm.options.to_dict(),
        **config.model.to_dict(),
      },
    }
    images = self.dataset.test["image"]
    holes = self.holes(jax.random.key(config.hole.seed), len(images))
    # Region norms take their statistics from the batch in evaluation too. Neighbours are patches of
    # one photo, so batches are mixed here as they are in training.
    order = np.random.default_rng(0).permutation(len(images))
    self._held_out = {"image": images[order], "hole": np.asarray(holes)}

  def holes(self, key, count):
    """Draw `count` rectangles (count, h, w, 1), True inside; sides and places are uniform."""
    low, high = self.config.hole.min_side, self.config.hole.max_side

    def inside(key, length):
      side_key, start_key = jax.random.split(key)
      side = jax.random.randint(side_key, (count, 1), low, high + 1)
      start = jax.random.randint(start_key, (count, 1), 0, length - side + 1)
      place = jnp.arange(length)[None]
      return (start <= place) & (place < start + side)

    keys, (height, width, _) = jax.random.split(key), self.dataset.shape
    rows, columns = inside(keys[0], height), inside(keys[1], width)
    return (rows[:, :, None] & columns[:, None, :])[..., None]

  def inputs(self, image):
    """Return uint8 images (b, h, w, c) on [0, 1]."""
    return image.astype(jnp.float32) / (self.dataset.num_levels - 1)

  def loss(self, model, batch, key):
    """Return the mean absolute error, in the hole and around it weighted by the config.

    Returns:
      The loss and the metrics to log; `hole_l1` is the error in the hole alone.
    """
    x = self.inputs(batch["image"])
    hole = self.holes(key, len(x))
    error = jnp.mean(jnp.abs(model(x, hole) - x), -1, keepdims=True)
    hole_l1, rest_l1 = (jnp.sum(error * m) / jnp.sum(m) for m in (hole, ~hole))
    weights = self.config.loss
    loss = weights.hole * hole_l1 + weights.rest * rest_l1
    return loss, {"loss": loss, "hole_l1": hole_l1}

  def score(self, model, batch, key, draws):
    """Return the mean squared error (b,) in the hole, of images on [0, 1]."""
    del key, draws
    x = self.inputs(batch["image"])
    return _hole_mse(model(x, batch["hole"]), x, batch["hole"])

  def evaluation_arrays(self, count=None):
    """Return `count` held-out images with their holes, or all, spread evenly over the set."""
    return spread(self._held_out, count)

  def evaluate(self, model):
    """Return how well a model in evaluation mode fills the holes of all held-out images.

    Peak signal-to-noise ratios are means over images of -10 log10(mean squared error). "Whole" is
    the image with only its hole filled: what was known is kept.

    Returns:
      `hole_mse` and `hole_mse_se`, its standard error over images, as well as `psnr_hole`,
      `psnr_hole_se`, `psnr_whole` and `psnr_whole_se` in dB; `references`, the same numbers of two
      ways to fill a hole with one colour; `examples`.
    """
    names = ("model", "rest", "border")

    def errors(model, batch, key):
      del key
      x, hole = self.inputs(batch["image"]), batch["hole"]
      fills = model(x, hole), mean_colour(x, ~hole), mean_colour(x, border(hole))
      return jnp.stack([_hole_mse(fill, x, hole) for fill in fills], -1)

    mse = over_held_out(self, model, errors)  # (n, 3)
    share = self._held_out["hole"].mean((1, 2, 3))
    results = {n: self._numbers(e, share) for n, e in zip(names, mse.T, strict=True)}
    return {**results.pop("model"), "references": results, "examples": len(mse)}

  def _numbers(self, mse, share):
    # Whoever writes levels is off by a rounding error, so less than its square says nothing.
    least = (self.dataset.num_levels - 1) ** -2 / 12
    decibel = lambda mse: -10 * np.log10(np.maximum(mse, least))
    values = {"hole_mse": mse, "psnr_hole": decibel(mse), "psnr_whole": decibel(share * mse)}
    found = {name: mean_and_error(v) for name, v in values.items()}
    mean = {name: value for name, (value, _) in found.items()}
    return mean | {f"{name}_se": error for name, (_, error) in found.items()}

  def table(self, result):
    """Return the Markdown table of an evaluation."""
    names = {"rest": "mean colour outside the hole", "border": "mean colour around the hole"}
    lines = {"this model": result} | {names[k]: v for k, v in result["references"].items()}
    cell = lambda r, k: f"{r[f'psnr_{k}']:.2f} ± {r[f'psnr_{k}_se']:.2f}"
    rows = [(f"{name}: {k}", cell(r, k)) for name, r in lines.items() for k in ("hole", "whole")]
    return markdown(f"held-out, {result['examples']} images", "PSNR in dB", rows)

  def curves(self, workdir):
    """Draw the curves of a workdir."""
    panels = {"absolute error": ["loss", "hole_l1"], "squared error": ["test_hole_mse"]}
    return plots.panels(workdir, panels)

  def pictures(self, model, workdir, count=32):
    """Write held-out images in threes: with the hole, filled, and as they were.

    Args:
      model: the trained model, in evaluation mode.
      workdir: the folder.
      count: how many images.

    Returns:
      The files written.
    """
    if count < 1:
      raise ValueError(f"count must be at least 1, got {count}")
    batch, top = self.evaluation_arrays(count), self.dataset.num_levels - 1
    image, hole = batch["image"], batch["hole"]
    drawn = np.asarray(jax.jit(lambda m, x, hole: m(self.inputs(x), hole))(model, image, hole))
    filled = np.where(hole, np.round(drawn * top).astype(np.uint8), image)
    # White is how the network sees a hole.
    threes = np.stack([np.where(hole, np.uint8(top), image), filled, image], 1)
    file = Path(workdir) / "filled.png"
    show = {"columns": 3 * _TRIPLES, "num_levels": self.dataset.num_levels}
    return [plots.image_grid(threes.reshape(-1, *image.shape[1:]), file, **show)]


def _hole_mse(y, x, hole):
  squared = jnp.mean((y - x) ** 2, -1, keepdims=True)
  return jnp.sum(squared * hole, (1, 2, 3)) / jnp.sum(hole, (1, 2, 3))


def mean_colour(x, where):
  """Return the mean pixel (b, 1, 1, c) of images over the pixels where (b, h, w, 1) is True."""
  return jnp.sum(x * where, (1, 2), keepdims=True) / jnp.sum(where, (1, 2), keepdims=True)


def border(hole):
  """Return the pixels (b, h, w, 1) outside a hole that touch it, at corners too."""
  wider = jax.lax.reduce_window(hole, False, jnp.logical_or, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
  return wider & ~hole
