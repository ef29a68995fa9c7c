"""SPADE on scikit-learn's digits: an 8x8 digit from its thresholded mask and its class."""

from experiments.configs.common import style_config


def get_config(mode: str = ""):
  config = style_config()
  config.data.name = "digits"
  config.batch_size = 64
  config.total_steps = 300
  config.update(log_every=10, eval_every=50, save_every=100)
  config.eval.update(batch_size=360, examples=360)
  if mode == "tiny":
    config.model.update(widths=(4, 4), hidden_features=4)
    config.update(batch_size=16, total_steps=12, log_every=1, eval_every=6, save_every=4)
    config.eval.update(batch_size=40, examples=80)
  elif mode:
    raise ValueError(f"mode must be empty or 'tiny', got {mode!r}")
  return config
