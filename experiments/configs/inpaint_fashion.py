"""Inpainting with Region Normalization on Fashion-MNIST, 28x28 grey images.

Not measured at full length.
"""

from experiments.configs import inpaint_patches


def get_config(mode: str = ""):
  config = inpaint_patches.get_config(mode)
  if mode:
    config.data.options.size = 28
  else:
    config.data.name = "fashion_mnist"
  return config
