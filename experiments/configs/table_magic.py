"""Densities of the MAGIC telescope events, a table of 10 columns; `--config.flow=maf` and so on."""

from experiments.configs.common import table_density_config


def get_config(mode: str = ""):
  config = table_density_config()
  config.data.name = "magic"
  config.total_steps = 4000
  config.update(log_every=50, eval_every=400, save_every=1000)
  if mode == "tiny":
    config.data.name = "iris"
    for options in config.model.values():
      options.num_layers = 2
    for flow in ("affine_coupling", "maf", "rqs_autoregressive", "rqs_coupling"):
      config.model[flow].update(width=8, depth=1)
    config.model.ferumal.num_points = 5
    config.update(batch_size=16, total_steps=12, log_every=1, eval_every=6, save_every=4)
    config.eval.update(batch_size=8, examples=14)
  elif mode:
    raise ValueError(f"mode must be empty or 'tiny', got {mode!r}")
  return config
