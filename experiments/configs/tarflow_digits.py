"""TarFlow on scikit-learn's digits, with as many parameters as `jet_digits`."""

from experiments.configs.common import density_config


def get_config(mode: str = ""):
  config = density_config("tarflow")
  config.data.name = "digits"
  config.levels = 17 / 2
  config.model.update(depth=8, block_depth=2, emb_dim=64, head_dim=32, memory="store")
  config.batch_size = 128
  config.total_steps = 2000
  config.optimizer.lr = 1e-3
  config.ema_decay = 0.99
  if mode == "tiny":
    config.model.update(depth=2, block_depth=1, emb_dim=8, head_dim=4)
    config.update(batch_size=16, total_steps=12, log_every=1, eval_every=6, save_every=4)
    config.eval.update(batch_size=40, examples=80, draws=1)
  elif mode:
    raise ValueError(f"mode must be empty or 'tiny', got {mode!r}")
  return config
