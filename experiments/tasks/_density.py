"""Density estimation of images: a Jet under a standard normal, scored in bits per dimension."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import data
from normjax import flows


class Density:
  """What the training loop and the evaluation need to know about image densities.

  Attributes:
    dataset: images in memory.
    model: JSON spec of the flow, for `normjax.checkpoint.build`.
    metric: the held-out number that curves show.
  """

  metric = "bits_per_dim"

  def __init__(self, config: ConfigDict):
    self.config = config
    self.dataset = data.load(config.data.name, **config.data.options)
    shape = list(self.dataset.shape)
    self.num_classes = self.dataset.num_classes if config.class_conditional else None
    if config.class_conditional and self.num_classes is None:
      raise ValueError(f"config.class_conditional: data set {config.data.name!r} has no labels")
    jet = {"shape": shape, **config.model.to_dict(), "num_classes": self.num_classes}
    self.model = {
      "class": "normjax.flows.Flow",
      "kwargs": {
        "bijector": {"class": "normjax.flows.Jet", "kwargs": jet},
        "base": {"class": "normjax.flows.StandardNormal", "kwargs": {"shape": shape}},
      },
    }

  def dequantize(self, image, key):
    """Return continuous pixels of uint8 images (b, h, w, c)."""
    noise = jax.random.uniform(key, image.shape)
    return flows.dequantize(image, noise, levels=self.config.levels, low=self.config.low)

  def loss(self, flow, batch, key):
    """Return the mean bits per dimension of a batch and the metrics to log."""
    noise_key, label_key = jax.random.split(key)
    x = self.dequantize(batch["image"], noise_key)
    label = batch["label"] if self.num_classes else None
    if self.num_classes:
      # The null label learns the unconditional density (classifier-free guidance; Ho and Salimans,
      # 2022, arXiv 2207.12598). Jet's authors drop the labels of whole batches instead.
      dropped = jax.random.bernoulli(label_key, self.config.label_dropout, label.shape)
      label = jnp.where(dropped, self.num_classes, label)
    z, log_det = flow.bijector.forward(x, label)
    loss = self._bits(flow.base.log_prob(z) + log_det).mean()
    return loss, {"loss": loss, "saturation": flow.bijector.saturation(log_det).mean()}

  def score(self, flow, batch, key, draws):
    """Return bits per dimension (b,) of held-out images, averaged over `draws` of the noise."""
    label = batch["label"] if self.num_classes else None

    def one(key):
      return self._bits(flow.log_prob(self.dequantize(batch["image"], key), label))

    return jnp.mean(jax.lax.map(one, jax.random.split(key, draws)), axis=0)

  def evaluation_arrays(self, count=None):
    """Return `count` held-out examples, or all, spread evenly over the set.

    Neighbours may be alike (patches of one photo), so the first ones would not stand for the rest.
    """
    total = len(self.dataset.test["image"])
    count = total if count is None else min(count, total)
    chosen = np.arange(count) * total // count
    return {name: array[chosen] for name, array in self.dataset.test.items()}

  def samples(self, flow, key, count, temperature=1.0, label=None):
    """Draw `count` images (count, h, w, c) of levels 0, 1, ...; `label` (count,) if conditional."""
    return self.quantize(flow.sample(key, count, label, temperature))

  def quantize(self, x):
    """Return the levels of continuous pixels."""
    config = self.config
    return flows.quantize(
      x, num_levels=self.dataset.num_levels, levels=config.levels, low=config.low
    )

  def _bits(self, log_prob):
    return flows.bits_per_dim(log_prob, self.dataset.shape, self.config.levels)


def spherical(first, last, count):
  """Return `count` points on the great circle from `first` to `last`, arrays of one shape.

  Latents of a normal lie near a sphere; straight lines between them would leave it.
  """
  cosine = np.vdot(first, last) / (np.linalg.norm(first) * np.linalg.norm(last))
  angle = math.acos(float(np.clip(cosine, -1.0, 1.0)))
  if angle < 1e-6:
    return np.stack([first] * count)
  weights = np.linspace(0.0, 1.0, count).reshape(-1, *(1,) * np.ndim(first))
  ends = np.sin((1 - weights) * angle) * first[None] + np.sin(weights * angle) * last[None]
  return ends / math.sin(angle)
