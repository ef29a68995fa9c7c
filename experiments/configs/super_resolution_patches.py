"""Super-resolution of colour patches of natural photos, from 8x8 to 32x32 pixels.

Not measured at full length.
"""

from experiments.configs.common import inverse_problems_config


def get_config(mode: str = ""):
  config = inverse_problems_config()
  config.data.name = "natural_patches"
  config.data.options = {"size": 32, "stride": 8, "long_side": 400}
  config.batch_size = 16
  config.total_steps = 1000
  config.update(eval_every=250, save_every=250)
  config.eval.update(batch_size=100, examples=600)
  if mode == "tiny":
    config.data.name = "generated"
    config.data.options = {"size": 16, "num_train": 64, "num_test": 16}
    config.model.update(num_levels=1, num_steps=1, width=4, cond_features=4)
    config.update(batch_size=16, total_steps=6, log_every=1, eval_every=3, save_every=3)
    config.eval.update(batch_size=8, examples=16, restored=8, conditions=8, draws=2)
  elif mode:
    raise ValueError(f"mode must be empty or 'tiny', got {mode!r}")
  return config
