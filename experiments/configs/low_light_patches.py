"""Enhancement of dark, noisy colour patches of natural photos, 32x32 pixels.

Not measured at full length.
"""

from experiments.configs import super_resolution_patches


def get_config(mode: str = ""):
  config = super_resolution_patches.get_config(mode)
  config.problem.name = "low_light"
  return config
