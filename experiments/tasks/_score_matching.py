"""Energy-based flows over images, trained by any objective and scored in bits per dimension."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments import data
from experiments.objectives import OBJECTIVES
from experiments.tasks._density import Density
from experiments.tasks._density_pictures import density_pictures
from normjax import flows

_FLOWS = {"conv": "ebflow_conv", "dense": "ebflow_dense"}


class ScoreMatching(Density):
  """An image density whose flow stands behind a logit, trained on one side of it or the other.

  The model is a flow, the logit of pixels, whose base is a flow of dense layers or convolutions:
  `config.flow` chooses it, `config.model` holds the options of each. With
  `config.match_after_preprocessing` the objective sees logits and the inner flow only (MaP;
  https://arxiv.org/abs/2305.15267), else pixels and the whole. Bits per dimension are always those
  of pixels.
  """

  def __init__(self, config: ConfigDict):
    data.check_name("config.objective.name", config.objective.name, OBJECTIVES)
    data.check_name("config.flow", config.flow, _FLOWS)
    if config.noise:
      raise ValueError(
        f"config.noise must be 0, for objectives have noise of their own, got {config.noise}"
      )
    self.config, self.num_classes = config, None
    self.dataset = data.load(config.data.name, **config.data.options)
    spec = lambda name, **kwargs: {"class": f"normjax.{name}", "kwargs": kwargs}
    logit = [
      spec("flows.Logit", alpha=config.logit.alpha),
      spec("flows.ElementwiseAffine", loc=0.0, scale=config.logit.scale),
    ]
    self.model = spec(
      "flows.Flow",
      bijector=spec("flows.Chain", bijectors=logit),
      base=spec(
        f"models.{_FLOWS[config.flow]}",
        shape=list(self.dataset.shape),
        **config.model[config.flow].to_dict(),
      ),
    )

  def loss(self, flow, batch, key):
    """Return the mean objective per dimension of a batch and the metrics to log."""
    noise_key, draw_key = jax.random.split(key)
    x = self.dequantize(batch["image"], noise_key)
    if self.config.match_after_preprocessing:
      x, flow = flow.bijector.forward(x)[0], flow.base
    options = self.config.objective
    losses = OBJECTIVES[options.name](
      flow, x, draw_key, std=options.std, epsilon=options.epsilon
    )  # fmt: skip
    loss = losses.mean() / math.prod(self.dataset.shape)
    if options.energy_weight:
      loss = loss + options.energy_weight * flow.energy(x).mean()
    return loss, {"loss": loss}

  def evaluate(self, flow, draws=None):
    """Return what `Density.evaluate` does; a singular layer is an error and not an infinity."""
    flows.log_normalizer(flow.base, jnp.zeros((1, *self.dataset.shape)))
    return super().evaluate(flow, draws)

  def pictures(self, flow, workdir, temperatures=(0.7, 0.85, 1.0), count=64, seed=0):
    """Write the pictures of `Density`, with the latents of the inner flow."""
    whole = flows.Chain([flow.bijector, flow.base.bijector])
    flat = flows.Flow(whole, flow.base.base)
    return density_pictures(self, flat, Path(workdir), temperatures, count, seed)
