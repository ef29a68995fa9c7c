"""What tasks share."""

from experiments.data import Dataset
from experiments.tasks._scoring import spread


class Task:
  """A task whose held-out examples are those of its data set.

  Attributes:
    dataset: examples in memory.
    start: `start(model, batch, key)` returns the model with what starts from data, or None.
    whole: names of arrays that a batch holds as they are, where others give it rows.
  """

  dataset: Dataset
  start = None
  whole: tuple[str, ...] = ()

  def evaluation_arrays(self, count=None):
    """Return `count` held-out examples, or all, spread evenly over the set."""
    return spread(self.dataset.test, count)
