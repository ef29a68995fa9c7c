"""Open a finished workdir: its task from the recorded config, its model from the checkpoint."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from experiments import tasks
from normjax import checkpoint


def open_workdir(workdir: str, step: int | None = None):
  """Return `(task, model)` of a workdir of `experiments.train` at a step, the newest if None.

  The model is in evaluation mode.

  Raises:
    ValueError: if the workdir or its checkpoint is missing or damaged.
  """
  model = checkpoint.load(workdir, step)
  model.eval()
  return tasks.make(read_config(workdir)), model


def read_config(workdir: str) -> ConfigDict:
  """Return the config that a workdir was trained with."""
  return ConfigDict(json.loads((Path(workdir) / "record.json").read_text())["config"])
