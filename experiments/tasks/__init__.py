"""Tasks: what an experiment trains, on what, and how it is judged. `make(config)` builds one."""

import difflib

from ml_collections import ConfigDict

from experiments.tasks._density import Density, spherical

TASKS = {"density": Density}


def make(config: ConfigDict):
  """Build the task that `config.task` names."""
  if config.task not in TASKS:
    nearest = difflib.get_close_matches(config.task, TASKS, 1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"config.task must be one of {sorted(TASKS)}, got {config.task!r}{hint}")
  return TASKS[config.task](config)


__all__ = ["TASKS", "Density", "make", "spherical"]
