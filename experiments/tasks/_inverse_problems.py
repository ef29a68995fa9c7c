"""Inverse problems: images given measurements of them, by a conditional flow.

Scored by the conditional bits per dimension, by how near samples come to the image, and by how many
samples explode, given measurements like those of training and given others.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import data, plots
from experiments.tasks._measurements import PROBLEMS, condition, unfamiliar
from experiments.tasks._robustness import robustness
from experiments.tasks._scoring import markdown, mean_and_error, over_held_out, score_all
from experiments.tasks._task import Task
from normjax import flows

_SHOWN = 8  # conditions in a picture


class InverseProblems(Task):
  """What the training loop and the evaluation need to know about conditional image flows.

  Attributes:
    dataset: images in memory.
    model: JSON spec of the flow, for `normjax.checkpoint.build`.
    metric: the held-out number that curves show.
  """

  metric = "bits_per_dim"

  def __init__(self, config: ConfigDict):
    self.config = config
    self.dataset = data.load(config.data.name, **config.data.options)
    data.check_name("config.problem.name", config.problem.name, PROBLEMS)
    if not config.largest > 1:
      raise ValueError(f"config.largest must be above 1, where pixels end, got {config.largest}")
    options = config.problem[config.problem.name].to_dict()
    self.problem = PROBLEMS[config.problem.name](self.dataset.shape, **options)
    self.model = {
      "class": "normjax.models.ConditionalImageFlow",
      "kwargs": {
        "shape": list(self.dataset.shape),
        "cond_shape": list(self.problem.shape),
        **config.model.to_dict(),
      },
    }
    # One for each bin of a level, on [-1, 1].
    self.levels = self.dataset.num_levels / 2

  def pixels(self, image, key):
    """Return continuous pixels on [-1, 1] of uint8 images (b, h, w, c)."""
    noise = jax.random.uniform(key, image.shape)
    return flows.dequantize(image, noise, levels=self.levels, low=-1.0)

  def measure(self, image, key):
    """Return measurements on [0, 1] of uint8 images (b, h, w, c)."""
    return self.problem(image.astype(jnp.float32) / (self.dataset.num_levels - 1), key)

  def start(self, model, batch, key):
    """Return the flow with its ActNorms started from a batch."""
    noise_key, key = jax.random.split(key)
    y = self.measure(batch["image"], key)
    return flows.init_from_data(model, self.pixels(batch["image"], noise_key), condition(y))

  def loss(self, model, batch, key):
    """Return the mean bits per dimension of images given measurements, and what to log."""
    loss = self._bits(model, batch["image"], key).mean()
    return loss, {"loss": loss}

  def score(self, model, batch, key, draws):
    """Return bits per dimension (b,) of held-out images, averaged over `draws` of all noise."""
    one = lambda key: self._bits(model, batch["image"], key)
    return jnp.mean(jax.lax.map(one, jax.random.split(key, draws)), axis=0)

  def _bits(self, model, image, key):
    noise_key, key = jax.random.split(key)
    log_prob = model.log_prob(self.pixels(image, noise_key), condition(self.measure(image, key)))
    return flows.bits_per_dim(log_prob, self.dataset.shape, self.levels)

  def samples(self, model, y, key, draws, temperature=1.0):
    """Return `draws` samples (draws, b, h, w, c) given measurements, as they are, on [-1, 1]."""
    one = lambda key: model.sample(key, len(y), condition(y), temperature)
    return jax.lax.map(one, jax.random.split(key, draws))

  def evaluate(self, model, draws=None):
    """Return how a model in evaluation mode does on held-out images and on other measurements.

    Args:
      model: the trained model.
      draws: samples of each measurement; None takes the config's.

    Returns:
      `bits_per_dim` of all held-out images and `bits_per_dim_se`, its standard error over images;
      `psnr`, of `config.eval.restored` held-out images, in dB: of a sample, of the mean of `draws`
      samples, of the sample at temperature 0, and of a simple method; `robustness`, what
      `robustness` returns; `draws` and `examples`.
    """
    draws = self.config.eval.draws if draws is None else draws
    if draws < 2:
      raise ValueError(f"draws must be at least 2, got {draws}")
    bits = score_all(self, model)
    mean, error = mean_and_error(bits)
    errors = over_held_out(
      self, model, lambda *arguments: self._errors(*arguments, draws), self.config.eval.restored
    )
    names = ("sample", "mean", "temperature 0", "simple")
    psnr = {name: mean_and_error(v) for name, v in zip(names, errors.T, strict=True)}
    return {
      "bits_per_dim": mean,
      "bits_per_dim_se": error,
      "psnr": psnr,
      "restored": len(errors),
      "robustness": robustness(self, model, draws),
      "draws": draws,
      "examples": len(bits),
    }

  def _errors(self, model, batch, key, draws):
    """Return peak signal-to-noise ratios (b, 4) in dB."""
    keys = jax.random.split(key, 3)
    y = self.measure(batch["image"], keys[0])
    x = batch["image"].astype(jnp.float32) / (self.dataset.num_levels - 1)
    drawn = _unit(self.samples(model, y, keys[1], draws))
    mode = _unit(self.samples(model, y, keys[2], 1, 0.0)[0])
    guesses = drawn[0], drawn.mean(0), mode, jnp.clip(self.problem.simple(y), 0, 1)
    squared = [jnp.mean((guess - x) ** 2, (1, 2, 3)) for guess in guesses]
    # Whoever writes levels is off by a rounding error, so less than its square says nothing.
    least = (self.dataset.num_levels - 1) ** -2 / 12
    return jnp.stack([-10 * jnp.log10(jnp.maximum(e, least)) for e in squared], -1)

  def table(self, result):
    """Return the Markdown table of an evaluation."""
    pair = lambda value: f"{value[0]:.2f} ± {value[1]:.2f}"
    rows = [("bits/dim", f"{result['bits_per_dim']:.3f} ± {result['bits_per_dim_se']:.3f}")]
    rows += [(f"PSNR in dB: {name}", pair(value)) for name, value in result["psnr"].items()]
    for name, found in result["robustness"]["conditions"].items():
      rows.append((f"{name}: exploded", f"{found['exploded']} of {found['samples']}"))
      rows.append((f"{name}: spread", f"10^{found['log10_spread']:.1f}"))
      rows.append((f"{name}: Mahalanobis", f"{found['mahalanobis']:.3g}"))
    head = f"held-out, {result['examples']} images"
    return markdown(head, "value", rows)

  def curves(self, workdir):
    """Draw the curves of a workdir."""
    return plots.panels(workdir, {"bits per dimension": ["loss", "test_bits_per_dim"]})

  def pictures(self, model, workdir, seed=0):
    """Write what the flow makes of held-out measurements, and of others.

    `restored.png`: in each row a measurement, three samples, their mean and the image.
    `unfamiliar.png`: in each row three times a measurement and two samples, where pixels that are
    not finite are white; a row for each kind of measurement that training had not.

    Args:
      model: the trained model, in evaluation mode.
      workdir: the folder.
      seed: seed of the samples.

    Returns:
      The files written.
    """
    keys = jax.random.split(jax.random.key(seed), 4)
    image = self.evaluation_arrays(_SHOWN)["image"]
    y = self.measure(jnp.asarray(image), keys[0])
    draw = jax.jit(lambda model, y, key: self.samples(model, y, key, 3))
    drawn = draw(model, y, keys[1])
    groups = [self._whole(y), *drawn, (2 * _unit(drawn) - 1).mean(0), self.pixels(image, keys[2])]
    files = [self._grid(groups, Path(workdir) / "restored.png", 2 * len(groups))]
    rows = []
    for other in unfamiliar(y, keys[3]).values():
      drawn = draw(model, other, keys[1])[:2, :3]
      rows.append(jnp.stack([self._whole(other)[:3], *drawn], 1))
    rows = jnp.concatenate(rows)
    return [*files, self._grid([rows], Path(workdir) / "unfamiliar.png", 9)]

  def _whole(self, y):
    """Return measurements as images on [-1, 1]."""
    height, width, _ = self.dataset.shape
    size = (len(y), height, width, y.shape[-1])
    return 2 * jnp.clip(jax.image.resize(y, size, "nearest"), 0, 1) - 1

  def _grid(self, groups, file, columns):
    images = jnp.nan_to_num(jnp.stack(groups, 1), nan=1.0).reshape(-1, *self.dataset.shape)
    levels = flows.quantize(
      images, num_levels=self.dataset.num_levels, levels=self.levels, low=-1.0
    )
    show = {"columns": columns, "num_levels": self.dataset.num_levels}
    return plots.image_grid(np.asarray(levels), file, **show)


def _unit(x):
  """Return samples on [-1, 1] as images on [0, 1]; what is not finite is white."""
  return jnp.clip(jnp.nan_to_num(x, nan=1.0) / 2 + 0.5, 0, 1)
