"""TarFlow on scikit-learn's digits, with as many parameters as `jet_digits` (815 to 825 thousand).

Expected, seed 0: 2.174 ± 0.014 held-out bits/dim (360 images x 5 draws) after 2000 steps, where Jet
has 2.265 ± 0.013 on the same split; 33 minutes on 2 CPU cores that other programs kept busy. The
held-out curve, one draw at every 200 steps: 2.96, 2.57, 2.41, 2.33, 2.27, 2.23, 2.20, 2.19, 2.18,
2.18; the loss of the last training batches is 2.03. About half of the samples are digits that one
can name, the others are strokes of the right thickness in the right place.

`--config.noise=0.1` trains the density of noisy pixels instead, whose samples are denoised.
"""

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
