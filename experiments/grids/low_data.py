"""Ferumal flows against neural couplings where there is little to train on.

Wine and breast cancer are split 60 / 20 / 20 with noise of 0.05 standard deviations; of the larger
table n training rows are taken and n / 2 others to choose rate and step by. Statistics that
standardize a table are those of all its rows but the held-out ones, alike for all flows.
"""

import itertools

from ml_collections import ConfigDict

from experiments.configs import table_magic
from experiments.grids import tables

_SMALL = {
  "wine": {"train": 107, "validation": 36, "test": 35},
  "breast_cancer": {"train": 343, "validation": 113, "test": 113},
}
_LARGE, _SIZES = ("magic",), (50, 200, 1000)


def get_config(mode: str = ""):
  if mode == "tiny":
    return tables.get_config("tiny")
  if mode:
    raise ValueError(f"mode must be empty or 'tiny', got {mode!r}")
  grid = ConfigDict()
  grid.head = "Little data."
  grid.config = table_magic.get_config()
  grid.config.total_steps = 800
  grid.config.batch_size = 128
  grid.config.eval.batch_size = 2000
  grid.flows = {
    "gaussian": {},
    "gmm": {},
    "affine_coupling": {},
    "maf": {},
    "rqs_autoregressive": {},
    "rqs_coupling": {},
    "ferumal": {},
  }
  smooth = {"held_out": 0.2, "noise": 0.05}
  grid.columns = {
    name: {"table": name, "options": smooth, **sizes} for name, sizes in _SMALL.items()
  } | {
    f"{name}/{n}": {
      "table": name, "options": {}, "train": n, "validation": n // 2, "test": 2000,
    }
    for name, n in itertools.product(_LARGE, _SIZES)
  }  # fmt: skip
  grid.peer_columns = ()
  grid.learning_rates = (1e-3, 3e-3, 1e-2)
  grid.seeds = (0, 1, 2)
  grid.points = 20
  return grid
