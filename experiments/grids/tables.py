"""Flows of ours, of flowjax and of zuko on four real tables, with a Gaussian and mixtures beside.

10,000 training rows, 2000 validation rows, 2000 test rows of each table; a new split for each seed.
"""

from ml_collections import ConfigDict

from experiments.configs import table_magic

_TABLES = ("magic", "casp", "weather", "diamonds")
_SIZES = {"train": 10_000, "validation": 2000, "test": 2000}


def get_config(mode: str = ""):
  grid = ConfigDict()
  grid.head = "Tables, standardized and dequantized."
  grid.config = table_magic.get_config()
  grid.config.total_steps = 1000
  grid.config.eval.batch_size = 2000
  grid.flows = {
    "gaussian": {},
    "gmm": {},
    "affine_coupling": {},
    "ferumal": {},
    "maf": {},
    "rqs_autoregressive": {},
    "rqs_coupling": {},
    "flowjax/maf": {"flow_layers": 5, "nn_width": 64, "nn_depth": 2},
    "flowjax/rqs_coupling": {
      "flow_layers": 6, "nn_width": 64, "nn_depth": 2, "knots": 8, "interval": 5,
    },
    "zuko/maf": {"transforms": 5, "hidden_features": (64, 64)},
    # Two passes make couplings of its autoregressive splines.
    "zuko/nsf": {"transforms": 6, "hidden_features": (64, 64), "bins": 8, "passes": 2},
  }  # fmt: skip
  grid.columns = {name: {"table": name, "options": {}, **_SIZES} for name in _TABLES}
  grid.peer_columns = ("magic",)  # those of other libraries take longer
  grid.learning_rates = (1e-3, 3e-3)
  grid.seeds = (0, 1, 2)
  grid.points = 10  # of a curve
  if mode == "tiny":
    grid.config = table_magic.get_config("tiny")
    grid.flows = {"gaussian": {}, "ferumal": {}, "affine_coupling": {}}
    grid.columns = {
      "wine/60": {
        "table": "wine", "options": {"held_out": 0.2, "noise": 0.05}, "train": 60,
        "validation": 30, "test": 30,
      },
    }  # fmt: skip
    grid.update(peer_columns=(), learning_rates=(1e-2, 1e-4), seeds=(0, 1), points=2)
    grid.config.total_steps = 4
  elif mode:
    raise ValueError(f"mode must be empty or 'tiny', got {mode!r}")
  return grid
