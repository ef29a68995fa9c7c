"""Tasks: what an experiment trains, on what, and how it is judged. `make(config)` builds one.

A task is a class with `dataset`, `model` (a JSON spec), `metric` (a name), and the methods

  loss(model, batch, key) -> loss, metrics
  score(model, batch, key, draws) -> (b,), of a model in evaluation mode; less is better
  evaluation_arrays(count) -> held-out examples
  evaluate(model, ...) -> dict of numbers, table(result) -> Markdown
  pictures(model, workdir, ...) -> files, curves(workdir) -> file

whose further arguments have defaults. A task whose model has layers that start from data also has

  start(model, batch, key) -> model, started from training examples

and None by that name if the config chose another model.
"""

import inspect

from ml_collections import ConfigDict

from experiments import data
from experiments.tasks._classification import Classification
from experiments.tasks._density import Density
from experiments.tasks._density_pictures import interpolations, reconstructions, spherical
from experiments.tasks._injective import Injective
from experiments.tasks._inpainting import Inpainting
from experiments.tasks._inverse_problems import InverseProblems
from experiments.tasks._score_matching import ScoreMatching
from experiments.tasks._scoring import score_all, spread
from experiments.tasks._style import Style
from experiments.tasks._table_density import TableDensity
from experiments.tasks._task import Task

TASKS = {
  "classification": Classification,
  "density": Density,
  "injective": Injective,
  "inpainting": Inpainting,
  "inverse_problems": InverseProblems,
  "score_matching": ScoreMatching,
  "style": Style,
  "table_density": TableDensity,
}


def make(config: ConfigDict):
  """Build the task that `config.task` names."""
  data.check_name("config.task", config.task, TASKS)
  data.check_name("config.data.name", config.data.name, data.LOADERS)
  if (config.data.name in data.TABLES) != (config.task == "table_density"):
    kind = "a table" if config.data.name in data.TABLES else "no table"
    raise ValueError(f"config.data.name: {config.data.name!r} is {kind}, see config.task")
  return TASKS[config.task](config)


def chosen(method, **options):
  """Return the options that are not None, as arguments of a task's method.

  Raises:
    ValueError: if the method has no such option.
  """
  given = {name: value for name, value in options.items() if value is not None}
  known = list(inspect.signature(method).parameters)
  for name in given:
    if name not in known:
      task = method.__self__.config.task
      raise ValueError(f"{name} means nothing to the task {task}: leave it out")
  return given


__all__ = [
  "TASKS",
  "Classification",
  "Density",
  "Injective",
  "Inpainting",
  "InverseProblems",
  "ScoreMatching",
  "Style",
  "TableDensity",
  "Task",
  "chosen",
  "interpolations",
  "make",
  "reconstructions",
  "score_all",
  "spherical",
  "spread",
]
