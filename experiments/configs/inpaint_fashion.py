"""Inpainting with Region Normalization on Fashion-MNIST, 28x28 grey images.

Not measured at full length.
"""

from experiments.configs.common import inpainting_config


def get_config(mode: str = ""):
  config = inpainting_config()
  config.data.name = "fashion_mnist"
  config.batch_size = 16
  config.total_steps = 1000
  config.update(log_every=20, eval_every=250, save_every=250)
  config.eval.update(batch_size=200, examples=600)
  if mode == "tiny":
    config.data.update(name="generated", options={"size": 28, "num_train": 64, "num_test": 16})
    config.model.update(features=2, num_blocks=2)
    config.update(batch_size=16, total_steps=6, log_every=1, eval_every=3, save_every=3)
    config.eval.update(batch_size=8, examples=16)
  elif mode:
    raise ValueError(f"mode must be empty or 'tiny', got {mode!r}")
  return config
