"""What tasks share."""

import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments.data import Dataset
from experiments.tasks._scoring import spread
from normjax import flows


class Task:
  """A task whose held-out examples are those of its data set.

  Attributes:
    config: of the run.
    dataset: examples in memory.
    start: `start(model, batch, key)` returns the model with what starts from data, or None.
    whole: names of arrays that a batch holds as they are, where others give it rows.
  """

  config: ConfigDict
  dataset: Dataset
  start = None
  whole: tuple[str, ...] = ()

  def evaluation_arrays(self, count=None):
    """Return `count` held-out examples, or all, spread evenly over the set."""
    return spread(self.dataset.test, count)

  def middle(self, image):
    """Return the middles of the bins of uint8 images (b, h, w, c) as pixels."""
    half = jnp.full(image.shape, 0.5)
    return flows.dequantize(image, half, levels=self.config.levels, low=self.config.low)
