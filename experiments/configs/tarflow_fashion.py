"""TarFlow on Fashion-MNIST, 28x28 grey images of 256 levels.

Expected, seed 0: 4.819 ± 0.010 held-out bits/dim (10,000 images, one draw) after 600 steps, 3 to 4
minutes of CPU time; after as many steps, of patches of 2x2 pixels, Jet has 5.15. The first 1000
held-out images at every 200 steps: 5.69, 4.99, 4.80. Its samples are stripes of the patches'
height: errors of one token go on in the next.
"""

from experiments.configs.common import density_config


def get_config(mode: str = ""):
  config = density_config("tarflow")
  config.data.name = "fashion_mnist"
  config.model.update(depth=8, block_depth=2, emb_dim=64, head_dim=32, patch_size=4)
  config.model.memory = "store"
  config.batch_size = 16
  config.total_steps = 600
  config.optimizer.lr = 1e-3
  config.ema_decay = 0.99
  config.update(eval_every=200, save_every=200)
  config.eval.update(batch_size=200, examples=1000, draws=1)
  if mode == "tiny":
    config.data.update(name="generated", options={"size": 28, "num_train": 64, "num_test": 16})
    config.model.update(depth=2, block_depth=1, emb_dim=8, head_dim=4, patch_size=7)
    config.update(batch_size=16, total_steps=6, log_every=1, eval_every=3, save_every=3)
    config.eval.update(batch_size=8, examples=16)
  elif mode:
    raise ValueError(f"mode must be empty or 'tiny', got {mode!r}")
  return config
