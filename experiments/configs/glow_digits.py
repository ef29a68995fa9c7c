"""Glow on scikit-learn's digits; `--config.model.convolution=cinc` and others for its relatives.

Expected, seed 0, held-out bits/dim (360 images x 5 draws) after 1500 steps: 2.434 ± 0.021 with 1x1
convolutions, 2.402 ± 0.023 with "emerging", 2.383 ± 0.032 with "cinc_full", 2.600 ± 0.036 with
"cinc", where a Gaussian mixture has 2.600; 70 seconds of training on 2 idle CPU cores. The last
batches' loss is 2.13 with 1x1, 2.09 with "emerging": all overfit. Samples are blobs of a digit's
size, some of which one can name. "periodic" needs `--config.model.num_levels=1` (2.575 ± 0.019, 1x1
2.624 ± 0.021 then): its kernels of 3 do not fit the 2 x 2 pixels of the second level.
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
