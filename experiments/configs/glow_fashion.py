"""Glow on Fashion-MNIST, 28x28 grey images of 256 levels.

Expected, seed 0: 4.801 ± 0.072 held-out bits/dim (10,000 images, one draw) after 1000 steps, some 2
minutes of one CPU core's time; the error is large since a few images are far out. On the same
split: Gaussian 6.46, Gaussian mixture 5.41. The first 1000 held-out images at every 200 steps:
5.98, 5.32, 4.96, 4.77, 4.71. Samples are grey blobs with the outlines of clothes here and there.
`--config.model.convolution=cinc_full`: 4.533 ± 0.008; `=emerging`: 4.504 without the one image of
10,000 that has 4e6.
"""

from experiments.configs.common import density_config


def get_config(mode: str = ""):
  config = density_config("glow")
  config.data.name = "fashion_mnist"
  config.model.update(num_levels=2, num_steps=4, width=64)
  config.batch_size = 16
  config.total_steps = 1000
  config.optimizer.lr = 1e-3
  config.ema_decay = 0.99
  config.update(eval_every=200, save_every=200)
  config.eval.update(batch_size=200, examples=1000, draws=1)
  if mode == "tiny":
    config.data.update(name="generated", options={"size": 28, "num_train": 64, "num_test": 16})
    config.model.update(num_steps=2, width=8)
    config.update(batch_size=16, total_steps=6, log_every=1, eval_every=3, save_every=3)
    config.eval.update(batch_size=8, examples=16)
  elif mode:
    raise ValueError(f"mode must be empty or 'tiny', got {mode!r}")
  return config
