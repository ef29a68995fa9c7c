"""Enhancement of dark, noisy colour patches of natural photos, 32x32 pixels.

Expected, seed 0, 8842 held-out patches, after 2000 steps, 25 minutes on one CPU core that other
programs shared: splines 4.158 ± 0.010 bits/dim; PSNR of 600 patches 19.4 dB of a sample, 21.5 of
the mean of 8, 22.3 at temperature 0, where undoing the exponent has 20.8. Affine maps of as many
parameters (`super_resolution_patches` has the flags): 4.017 ± 0.010; 20.1, 21.7 and 22.1 dB. Of 512
samples each, exploded with splines: none of any kind; with affine maps: 497 and 512 given 4 and 16
times the contrast, none otherwise; AUROC 0.996 of the Mahalanobis score.
"""

from experiments.configs import super_resolution_patches


def get_config(mode: str = ""):
  config = super_resolution_patches.get_config(mode)
  config.problem.name = "low_light"
  if not mode:
    config.total_steps = 2000
  return config
