"""Injective flows of images: an encoder and a decoder of few latents, trained by free-form loss."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import data, plots
from experiments.tasks._scoring import markdown, mean_and_error, over_held_out, score_all
from experiments.tasks._task import Task
from normjax import flows

_ROW = 12  # pictures in a row


class Injective(Task):
  """What the training loop and the evaluation need to know about injective flows of images.

  Pixels x are the middles of their bins, on [-1, 1] by the config's map; the loss is
  `flows.injective_loss` of x plus normal noise. `config.nll_weight=0` trains the plain autoencoder
  of the same networks.

  Attributes:
    dataset: images in memory.
    model: JSON spec of the flow, for `normjax.checkpoint.build`.
    metric: the held-out number that curves show.
  """

  metric = "squared_error"

  def __init__(self, config: ConfigDict):
    self.config = config
    self.dataset = data.load(config.data.name, **config.data.options)
    dim, latent_dim = math.prod(self.dataset.shape), config.model.latent_dim
    for name, least in (("noise", 0), ("beta", 0), ("nll_weight", 0)):
      if not config[name] >= least:
        raise ValueError(f"config.{name} must be at least {least}, got {config[name]}")
    if not 1 <= config.num_probes <= latent_dim <= dim:
      raise ValueError(
        f"config.num_probes must be 1 to latent_dim, and that at most {dim}, got "
        f"{config.num_probes} and {latent_dim}"
      )
    model = {"dim": dim, **config.model.to_dict()}
    self.model = {"class": "normjax.models.InjectiveFlow", "kwargs": model}

  def inputs(self, image):
    """Return uint8 images as vectors (b, D), the middles of their bins."""
    x = self.middle(jnp.asarray(image))
    return x.reshape(len(x), -1)

  def loss(self, model, batch, key):
    """Return the mean loss of a batch and the metrics to log."""
    config = self.config
    noise_key, probe_key = jax.random.split(key)
    x = self.inputs(batch["image"])
    x = x + config.noise * jax.random.normal(noise_key, x.shape)
    probes = flows.orthogonal_probes(probe_key, len(x), config.model.latent_dim, config.num_probes)
    losses, parts = flows.injective_loss(
      model.encode, model.decode, x, probes, beta=config.beta, nll_weight=config.nll_weight
    )
    loss = jnp.mean(losses)
    return loss, {"loss": loss, "train_squared_error": jnp.mean(parts["squared_error"])}

  def reconstruct(self, model, batch):
    """Return the reconstructions (b, D) of a batch."""
    return model.decode(model.encode(self.inputs(batch["image"])))

  def score(self, model, batch, key, draws):
    """Return the squared error (b,), a sum over pixels on [-1, 1]."""
    del key, draws
    return jnp.sum((self.reconstruct(model, batch) - self.inputs(batch["image"])) ** 2, axis=1)

  def evaluate(self, model):
    """Return how well all held-out images are reconstructed and how well samples match them.

    Returns:
      `squared_error` and `squared_error_se`, its standard error over images; `pca`, the error of as
      many principal components of the training images; `log_prob`, the mean log-density on the
      decoder's manifold; `frechet`, between Gaussians fitted to 10,000 samples and to the held-out
      images, and `frechet_train`, the same of the training images; `examples`.
    """
    scores = score_all(self, model)
    mean, error = mean_and_error(scores)
    log_prob = over_held_out(
      self, model,
      lambda model, batch, key: flows.injective_log_prob(
        model.encode, model.decode, self.inputs(batch["image"])
      ),
    )  # fmt: skip
    train, test = (np.asarray(self.inputs(part["image"])) for part in self.dataset[:2])
    samples = jax.jit(lambda model: model.sample(jax.random.key(self.config.seed), 10_000))(model)
    return {
      "squared_error": mean,
      "squared_error_se": error,
      "pca": float(np.mean(np.sum((principal(train, test, self.latent_dim) - test) ** 2, axis=1))),
      "log_prob": float(log_prob.mean()),
      "frechet": frechet(np.asarray(samples), test),
      "frechet_train": frechet(train, test),
      "examples": len(scores),
    }

  @property
  def latent_dim(self) -> int:
    """The number of latents."""
    return self.config.model.latent_dim

  def table(self, result):
    """Return the Markdown table of an evaluation."""
    error = f"{result['squared_error']:.3f} ± {result['squared_error_se']:.3f}"
    rows = [
      ("squared error", error),
      (f"squared error of {self.latent_dim} principal components", f"{result['pca']:.3f}"),
      ("log-density on the manifold", f"{result['log_prob']:.2f}"),
      ("Frechet distance of samples", f"{result['frechet']:.3f}"),
      ("Frechet distance of training images", f"{result['frechet_train']:.3f}"),
    ]
    return markdown(f"held-out, {result['examples']} images", "this model", rows)

  def curves(self, workdir):
    """Draw the curves of a workdir."""
    names = ["train_squared_error", "test_squared_error"]
    return plots.panels(workdir, {"squared error": names, "loss": ["loss"]})

  def pictures(self, model, workdir, count=96, seed=0):
    """Write samples, and reconstructions in three rows: held-out, this model, as many components.

    Args:
      model: the trained model.
      workdir: the folder.
      count: how many samples.
      seed: seed of the samples.

    Returns:
      The files written.
    """
    if count < 1:
      raise ValueError(f"count must be at least 1, got {count}")
    files = [Path(workdir) / "samples.png", Path(workdir) / "reconstructions.png"]
    show = {"num_levels": self.dataset.num_levels}
    drawn = jax.jit(lambda model: model.sample(jax.random.key(seed), count))(model)
    plots.image_grid(self.quantize(drawn), files[0], columns=_ROW, **show)
    batch = self.evaluation_arrays(_ROW)
    ours = jax.jit(self.reconstruct)(model, batch)
    train, test = (np.asarray(self.inputs(v["image"])) for v in (self.dataset.train, batch))
    rows = [test, ours, principal(train, test, self.latent_dim)]
    images = np.concatenate([self.quantize(row) for row in rows])
    plots.image_grid(images, files[1], columns=len(test), **show)
    return files

  def quantize(self, x):
    """Return the levels (b, h, w, c) of vectors."""
    config = self.config
    levels = flows.quantize(
      jnp.asarray(x), num_levels=self.dataset.num_levels, levels=config.levels, low=config.low
    )
    return np.asarray(levels).reshape(-1, *self.dataset.shape)


def principal(train: np.ndarray, x: np.ndarray, count: int) -> np.ndarray:
  """Return `x` projected on the first `count` principal components of `train`."""
  mean = train.mean(axis=0)
  _, _, components = np.linalg.svd(train - mean, full_matrices=False)
  return mean + (x - mean) @ components[:count].T @ components[:count]


def frechet(a: np.ndarray, b: np.ndarray) -> float:
  """Return the Frechet distance of the Gaussians that two sets (n, D) have mean and covariance of.

  |mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)
  """
  first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
  root = _root(first)
  cross = _root(root @ second @ root)
  shift = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
  return float(shift + np.trace(first + second - 2 * cross))


def _root(matrix: np.ndarray) -> np.ndarray:
  values, vectors = np.linalg.eigh(matrix)
  return vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
