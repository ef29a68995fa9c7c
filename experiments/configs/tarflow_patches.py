"""TarFlow on 32x32 colour patches of natural photos, split by photo.

Not measured at full length.
"""

from experiments.configs.common import density_config


def get_config(mode: str = ""):
  config = density_config("tarflow")
  config.data.name = "natural_patches"
  config.model.update(depth=8, block_depth=2, emb_dim=96, head_dim=32, patch_size=4)
  config.model.memory = "store"
  config.batch_size = 32
  config.total_steps = 1000
  config.optimizer.lr = 1e-3
  config.ema_decay = 0.99
  config.update(eval_every=200, save_every=200)
  config.eval.update(batch_size=200, examples=600, draws=1)
  if mode == "tiny":
    config.data.options = {"photos": "bundled", "stride": 64}
    config.model.update(depth=2, block_depth=1, emb_dim=8, head_dim=4, patch_size=8)
    config.update(batch_size=16, total_steps=6, log_every=1, eval_every=3, save_every=3)
    config.eval.update(batch_size=8, examples=16)
  elif mode:
    raise ValueError(f"mode must be empty or 'tiny', got {mode!r}")
  return config
