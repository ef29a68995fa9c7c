"""Every norm that takes x alone, on one small ResNet, at batch sizes 128 and 2.

Fashion-MNIST: 10,000 training images, 1000 others of its training set to choose the learning rate
by, 4000 test images. A ResNet with three blocks of 8, 16 and 32 channels behind a stem of stride 4:
small, so that all of it takes less than an hour on two cores.
"""

from ml_collections import ConfigDict

from experiments.configs import classify_digits, classify_fashion
from normjax import norms

# What a norm can't do without here: the narrowest layer has 8 channels, and warm-ups that their
# authors count in steps of runs of many epochs become shares of this run.
_OPTIONS = {"group_norm": {"num_groups": 4}}
_WARMUPS = {
  "power_norm": {"warmup_iters": 0.1},
  "unified_norm": {"warmup_iters": 0.1, "ratio_warmup": 0.1},
}


def get_config(mode: str = ""):
  grid = ConfigDict()
  grid.config = classify_fashion.get_config()
  grid.config.model.resnet.update(width=8, depths=(1, 1, 1), stem_stride=4)
  grid.config.eval.batch_size = 500
  grid.config.optimizer.weight_decay = 0.0
  grid.norms = {name: _OPTIONS.get(name, {}) for name in sorted(norms.NAMES)}
  grid.norms.none = {}
  # Its default decays average over 1000 examples and 100 gradients: at batch size 2 this run has
  # 3000 examples.
  grid.norms["online_norm/short"] = {"decay": 0.99, "backward_decay": 0.9}
  grid.warmups = {name: _WARMUPS[name] for name in _WARMUPS if name in norms.NAMES}
  grid.batch_sizes = (128, 2)
  grid.steps = (300, 1500)  # for each batch size
  grid.learning_rates = (3e-3, 1e-2, 3e-2)
  grid.seeds = (0, 1, 2)
  grid.train_examples = 10_000
  grid.validation_examples = 1_000
  grid.test_examples = 4_000
  grid.points = 5  # of a curve
  if mode == "tiny":
    grid.config = classify_digits.get_config("tiny")
    grid.norms = {"batch_norm": {}, "layer_norm": {}}
    grid.warmups = {}
    grid.update(batch_sizes=(16, 2), steps=(4, 4), learning_rates=(1e-2, 1e-4), seeds=(0, 1))
    grid.update(train_examples=64, validation_examples=80, test_examples=120, points=2)
  elif mode:
    raise ValueError(f"mode must be empty or 'tiny', got {mode!r}")
  return grid
