"""Density estimation of tables: a flow under a standard normal, scored in nats per example."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import data, plots
from experiments.table_references import table_references
from experiments.tasks._scoring import markdown, mean_and_error, score_all
from experiments.tasks._task import Task
from normjax import flows

_FLOWS = {
  "affine_coupling": "affine_coupling_flow",
  "ferumal": "ferumal_flow",
  "maf": "maf",
  "rqs_autoregressive": "rqs_autoregressive_flow",
  "rqs_coupling": "rqs_coupling_flow",
}


class TableDensity(Task):
  """What the training loop and the evaluation need to know about densities of tables.

  `config.flow` chooses the model, `config.model` holds the options of each.

  Attributes:
    dataset: a standardized table in memory.
    model: JSON spec of the flow, for `normjax.checkpoint.build`.
    metric: the held-out number that curves show.
    start: starts a Ferumal flow's auxiliary points from training rows; None for other flows.
  """

  metric = "nats"

  def __init__(self, config: ConfigDict):
    self.config = config
    self.dataset = data.load(config.data.name, **config.data.options)
    data.check_name("config.flow", config.flow, _FLOWS)
    options = {"dim": self.dataset.shape[0], **config.model[config.flow].to_dict()}
    self.model = {"class": f"normjax.models.{_FLOWS[config.flow]}", "kwargs": options}
    if config.flow == "ferumal":
      self.start = self._start

  def _start(self, flow, batch, key):
    del key
    return flows.init_from_data(flow, batch["x"])

  def loss(self, flow, batch, key):
    """Return the mean of -log p, in nats, of a batch and the metrics to log."""
    del key
    loss = -flow.log_prob(batch["x"]).mean()
    return loss, {"loss": loss}

  def score(self, flow, batch, key, draws):
    """Return -log p (b,) of held-out rows."""
    del key, draws
    return -flow.log_prob(batch["x"])

  def evaluate(self, flow):
    """Return the nats per example of all held-out rows, next to simple densities.

    Returns:
      `nats`, the mean of -log p over rows, `nats_se`, its standard error, `references`, the same
      mean under a Gaussian and a Gaussian mixture, and `examples`.
    """
    scores = score_all(self, flow)
    mean, error = mean_and_error(scores)
    train, test = self.dataset.train["x"], self.dataset.test["x"]
    tiny = self.config.total_steps < 50
    return {
      "nats": mean,
      "nats_se": error,
      "references": table_references(train, test, self.config.seed, tiny=tiny),
      "examples": len(scores),
    }

  def table(self, result):
    """Return the Markdown table of an evaluation."""
    rows = [("this model", f"{result['nats']:.3f} ± {result['nats_se']:.3f}")]
    names = {"gaussian": "full-covariance Gaussian", "gmm": "Gaussian mixture"}
    rows += [(names[name], f"{value:.3f}") for name, value in result["references"].items()]
    return markdown(f"held-out, {result['examples']} rows", "nats", rows)

  def curves(self, workdir):
    """Draw the curves of a workdir."""
    return plots.panels(workdir, {"nats per example": ["loss", "test_nats"]})

  def pictures(self, flow, workdir, count=1000, seed=0):
    """Write held-out rows and samples as scatters of pairs of columns.

    Args:
      flow: the trained model.
      workdir: the folder.
      count: how many rows, and how many samples.
      seed: seed of the samples.

    Returns:
      The files written.
    """
    if count < 1:
      raise ValueError(f"count must be at least 1, got {count}")
    draw = jax.jit(lambda flow, key: flow.sample(key, count))
    samples = np.asarray(draw(flow, jax.random.key(seed)))
    rows = self.evaluation_arrays(count)["x"]
    return [plots.pairs(rows, samples, self.dataset.columns, Path(workdir) / "pairs.png")]
