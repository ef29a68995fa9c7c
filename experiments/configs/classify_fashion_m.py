"""A small ResNet on Fashion-M: clothes on natural colour patches, 32x32, ten classes."""

from experiments.configs import classify_fashion


def get_config(mode: str = ""):
  config = classify_fashion.get_config(mode)
  if mode:
    config.data.options.size = 32
    config.model.vit.patch_size = 8
  else:
    config.data.name = "fashion_m"
  return config
