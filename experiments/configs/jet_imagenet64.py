"""Jet on ImageNet at 64x64: the recipe of its authors.

Expected (from the paper, not run here): 3.72 bits/dim after 200 epochs at depth 32, block depth 2;
3.66 at depth 64, block depth 5. Kolesnikov, Susano Pinto, Tschannen, "Jet: A Modern
Transformer-Based Normalizing Flow", 2024, arXiv 2412.15129. Batch 1024 wants `--mesh=data:8`.

The images are yours: `--config.data.options.path=FOLDER_OR_NPZ`, scaled and cropped to 64x64.
"""

from experiments.configs.common import density_config


def get_config(mode: str = ""):
  config = density_config()
  config.data.update(name="image_folder", options={"path": "imagenet", "size": 64})
  config.model.kinds = ("channels",) * 4 + ("spatial",)
  config.model.spatial_projections = (
    "checkerboard", "checkerboard-inv", "vstripes", "vstripes-inv", "hstripes", "hstripes-inv",
  )  # fmt: skip
  config.model.dtype = "bfloat16"
  config.batch_size = 1024
  config.total_steps = 200 * 1_281_167 // 1024
  config.optimizer.mu_dtype = "bfloat16"
  config.update(log_every=100, eval_every=5_000, save_every=5_000)
  config.eval.update(batch_size=1000, examples=10_000, draws=1)
  if mode == "tiny":
    config.data.name = "generated"
    config.data.options = {"size": 64, "num_train": 16, "num_test": 4}
    config.model.update(depth=5, block_depth=1, emb_dim=16, num_heads=2)
    config.update(batch_size=4, total_steps=2, log_every=1, eval_every=2, save_every=1)
    config.eval.update(batch_size=4, examples=4)
  elif mode:
    raise ValueError(f"mode must be empty or 'tiny', got {mode!r}")
  return config
