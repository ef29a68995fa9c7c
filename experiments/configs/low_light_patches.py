"""Enhancement of dark, noisy colour patches of natural photos, 32x32 pixels.

Not measured at full length. Measured small, with the flags of `super_resolution_patches` for that,
seed 0, 584 held-out patches: splines 5.247 ± 0.027 bits/dim, affine 5.285 ± 0.029; PSNR 12.2 and
14.1 dB of a sample, 15.5 and 16.0 of the mean of 8, where undoing the exponent has 21.0. Given
sixteen times the contrast 309 and 385 of 512 samples exploded, none otherwise. Samples are colour
noise.
"""

from experiments.configs import super_resolution_patches


def get_config(mode: str = ""):
  config = super_resolution_patches.get_config(mode)
  config.problem.name = "low_light"
  return config
