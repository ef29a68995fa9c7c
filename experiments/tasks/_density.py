"""Density estimation of images: a flow under a standard normal, scored in bits per dimension."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import data, plots
from experiments.references import references
from experiments.tasks._density_pictures import density_pictures
from experiments.tasks._nearest import nearest
from experiments.tasks._scoring import markdown, mean_and_error, over_held_out
from experiments.tasks._task import Task
from normjax import flows

_FLOWS = {
  "glow": "normjax.models.Glow",
  "jet": "normjax.flows.Jet",
  "tarflow": "normjax.flows.TarFlow",
}
_DEQUANTIZERS = ("uniform", "variational")
_COMPARED = 256  # samples whose nearest training images are looked for


class Density(Task):
  """What the training loop and the evaluation need to know about image densities.

  Attributes:
    dataset: images in memory.
    model: JSON spec of the flow, for `normjax.checkpoint.build`.
    metric: the held-out number that curves show.
  """

  metric = "bits_per_dim"
  variational = False  # whether a dequantizer is trained with the flow

  def __init__(self, config: ConfigDict):
    self.config = config
    self.dataset = data.load(config.data.name, **config.data.options)
    shape = list(self.dataset.shape)
    self.num_classes = self.dataset.num_classes if config.class_conditional else None
    if config.class_conditional and self.num_classes is None:
      raise ValueError(f"config.class_conditional: data set {config.data.name!r} has no labels")
    data.check_name("config.flow", config.flow, _FLOWS)
    if not config.noise >= 0:
      raise ValueError(f"config.noise must be at least 0, got {config.noise}")
    options = {"shape": shape, **config.model.to_dict(), "num_classes": self.num_classes}
    self.model = {"class": _FLOWS[config.flow], "kwargs": options}
    if config.flow == "glow":  # A flow already: its latents are vectors, its ActNorms want data.
      self.start = self._start
    else:
      base = {"class": "normjax.flows.StandardNormal", "kwargs": {"shape": shape}}
      kwargs = {"bijector": self.model, "base": base}
      self.model = {"class": "normjax.flows.Flow", "kwargs": kwargs}
    data.check_name("config.dequantizer", config.dequantizer, _DEQUANTIZERS)
    self.variational = config.dequantizer == "variational"
    if self.variational:
      self.model = self._with_dequantizer(self.model)

  def dequantize(self, image, key):
    """Return continuous pixels of uint8 images (b, h, w, c)."""
    noise = jax.random.uniform(key, image.shape)
    return flows.dequantize(image, noise, levels=self.config.levels, low=self.config.low)

  def augment(self, image, key):
    """Return pixels of uint8 images (b, h, w, c), the middles of their bins plus normal noise."""
    return self.middle(image) + self.config.noise * jax.random.normal(key, image.shape)

  def pixels(self, image, key):
    """Return what the flow is trained on: dequantized images, or noisy ones."""
    return (self.augment if self.config.noise else self.dequantize)(image, key)

  def _start(self, flow, batch, key):
    """Return the flow with its ActNorms started from a batch; they depend on no label."""
    return flows.init_from_data(flow, self.pixels(batch["image"], key))

  def loss(self, flow, batch, key):
    """Return the mean bits per dimension of a batch and the metrics to log."""
    noise_key, label_key = jax.random.split(key)
    x = self.pixels(batch["image"], noise_key)
    label = batch["label"] if self.num_classes else None
    if self.num_classes:
      # The null label learns the unconditional density (classifier-free guidance; Ho and Salimans,
      # 2022, arXiv 2207.12598). Jet's authors drop the labels of whole batches instead.
      dropped = jax.random.bernoulli(label_key, self.config.label_dropout, label.shape)
      label = jnp.where(dropped, flow.bijector.null_label, label)
    if self.variational:
      loss = self._variational_bits(flow, batch["image"], label, noise_key).mean()
      return loss, {"loss": loss}
    z, log_det = flow.bijector.forward(x, label)
    loss = self._bits(flow.base.log_prob(z) + log_det).mean()
    metrics = {"loss": loss}
    if isinstance(flow.bijector, flows.Jet):
      metrics["saturation"] = flow.bijector.saturation(log_det).mean()
    return loss, metrics

  def score(self, flow, batch, key, draws):
    """Return bits per dimension (b,) of held-out images, averaged over `draws` of the noise."""
    return jnp.mean(self.scores(flow, batch, key, draws), axis=1)

  def scores(self, flow, batch, key, draws):
    """Return the bits per dimension (b, draws) of held-out images by each draw of the noise."""
    label = batch["label"] if self.num_classes else None

    def one(key):
      if self.variational:
        return self._variational_bits(flow, batch["image"], label, key)
      return self._bits(flow.log_prob(self.dequantize(batch["image"], key), label))

    return jax.lax.map(one, jax.random.split(key, draws)).T

  def evaluate(self, flow, draws=None):
    """Return the bits per dimension of all held-out images, next to simple densities.

    Args:
      flow: the trained model.
      draws: dequantizations of each image; None takes the config's.

    Returns:
      `bits_per_dim`, the mean over images and draws, `bits_per_dim_se`, its standard error over
      images, `weighted`, the tighter bound by the mean of the draws' probabilities (importance
      weighting, Burda et al., 2015, arXiv 1509.00519), `references`, `draws` and `examples`. With
      `config.noise` also `nearest`: how far samples, denoised ones and held-out images are from
      the nearest training image, root mean squares over pixels, each with its standard error.
    """
    draws = self.config.eval.draws if draws is None else draws
    if draws < 1:
      raise ValueError(f"draws must be at least 1, got {draws}")
    bits = over_held_out(self, flow, lambda *arguments: self.scores(*arguments, draws))
    mean, error = mean_and_error(bits.mean(axis=1))
    bit = math.prod(self.dataset.shape) * math.log(2)  # in nats
    together = np.logaddexp.reduce(-bit * bits.astype(float), axis=1) - math.log(draws)
    tiny = self.config.total_steps < 50
    result = {
      "bits_per_dim": mean,
      "bits_per_dim_se": error,
      "weighted": float(-together.mean() / bit),
      "references": references(self.dataset, self.config.seed, tiny=tiny),
      "draws": draws,
      "examples": len(bits),
    }
    return result | {"nearest": self._nearest(flow)} if self.config.noise else result

  def _nearest(self, flow):
    label = self.labels(_COMPARED)

    @jax.jit
    def draw(flow, key):
      x = flow.sample(key, _COMPARED, label)
      return x, flows.denoise(flow, x, self.config.noise, label)

    noisy, denoised = draw(flow, jax.random.key(self.config.seed + 2))
    held_out = self.middle(self.evaluation_arrays(_COMPARED)["image"])
    images = np.asarray(self.middle(self.dataset.train["image"]))
    return {
      name: mean_and_error(nearest(np.asarray(x), images))
      for name, x in {"noisy": noisy, "denoised": denoised, "held-out": held_out}.items()
    }

  def table(self, result):
    """Return the Markdown table of an evaluation."""
    rows = [
      ("this model", f"{result['bits_per_dim']:.3f} ± {result['bits_per_dim_se']:.3f}"),
      ("this model, draws in one bound", f"{result['weighted']:.3f}"),
    ]
    names = {
      "uniform": "uniform",
      "gaussian": "full-covariance Gaussian",
      "gmm": "Gaussian mixture",
    }
    rows += [(names.get(k, k), f"{v:.3f}") for k, v in result["references"].items()]
    for name, (mean, error) in result.get("nearest", {}).items():
      rows.append((f"distance to training images: {name}", f"{mean:.4f} ± {error:.4f}"))
    head = f"held-out, {result['examples']} images x {result['draws']} draws"
    return markdown(head, "bits/dim", rows)

  def curves(self, workdir):
    """Draw the curves of a workdir."""
    return plots.curves(workdir)

  def pictures(self, flow, workdir, temperatures=(0.7, 0.85, 1.0), count=64, seed=0):
    """Write samples, interpolations and reconstructions into a folder.

    Args:
      flow: the trained model.
      workdir: the folder.
      temperatures: one file of samples for each; 1 is the model itself.
      count: samples in each file; a conditional model draws the same number of every class.
      seed: seed of the samples.

    Returns:
      The files written.
    """
    return density_pictures(self, flow, Path(workdir), temperatures, count, seed)

  def labels(self, count):
    """Return the classes in turn, (count,), of a conditional model; None for another."""
    return jnp.arange(count) % self.num_classes if self.num_classes else None

  def samples(self, flow, key, count, temperature=1.0, label=None):
    """Draw `count` images (count, h, w, c) of levels 0, 1, ...; `label` (count,) if conditional."""
    x = flow.sample(key, count, label, temperature)
    return self.quantize(
      flows.denoise(flow, x, self.config.noise, label) if self.config.noise else x
    )

  def quantize(self, x):
    """Return the levels of continuous pixels."""
    config = self.config
    return flows.quantize(
      x, num_levels=self.dataset.num_levels, levels=config.levels, low=config.low
    )

  def _bits(self, log_prob):
    return flows.bits_per_dim(log_prob, self.dataset.shape, self.config.levels)

  def _with_dequantizer(self, model):
    """Return the spec of a flow with a dequantizer that is trained with it."""
    if self.config.noise:
      raise ValueError(f"config.noise must be 0 with a dequantizer, got {self.config.noise}")
    kwargs = {"shape": list(self.dataset.shape), "num_levels": self.dataset.num_levels}
    dequantizer = {"class": "normjax.models.VariationalDequantizer", "kwargs": kwargs}
    return {
      "class": "normjax.models.DequantizedFlow",
      "kwargs": {"flow": model, "dequantizer": dequantizer},
    }

  def _variational_bits(self, flow, image, label, key):
    """Return an upper bound (b,) of bits per dimension of uint8 images, by learned noise."""
    config = self.config
    return self._bits(
      flows.dequantized_log_prob(
        flow, flow.dequantizer, image, key, levels=config.levels, low=config.low, cond=label
      )
    )
