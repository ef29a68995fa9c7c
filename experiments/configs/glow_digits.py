"""Glow on scikit-learn's digits; `--config.model.convolution=cinc` and others for its relatives.

Not measured at full length.
"""

from experiments.configs.common import density_config


def get_config(mode: str = ""):
  config = density_config("glow")
  config.data.name = "digits"
  config.levels = 17 / 2
  config.model.update(num_levels=2, num_steps=4, width=64)
  config.batch_size = 128
  config.total_steps = 1500
  config.optimizer.lr = 1e-3
  config.ema_decay = 0.99
  config.eval_every = 250
  if mode == "tiny":
    config.model.update(num_steps=2, width=8)
    config.update(batch_size=16, total_steps=6, log_every=1, eval_every=3, save_every=3)
    config.eval.update(batch_size=40, examples=80, draws=1)
  elif mode:
    raise ValueError(f"mode must be empty or 'tiny', got {mode!r}")
  return config
