"""What simple densities reach on the same split: the numbers that a flow must beat.

All score the continuous x = q + u with u uniform on [0, 1), a bin being one unit wide: bits per
dimension are -log2 p(x) / d, whatever map of pixels a flow uses.

The mixture is fitted to coordinates that the Gaussian whitens, y = L^-1 (x - mean) with
L L^T = covariance: an invertible linear map, so its density is a density of x. One component is
then the Gaussian itself, a floor under the variances shrinks each component towards it, and with
diagonal covariances, all that high dimensions allow, the components still know how pixels
correlate. scikit-learn's mixture on bare pixels is worse than the Gaussian there.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from experiments.data import Dataset

_COVARIANCE_IMAGES = 60_000
# Noisy images that a mixture sees; where there are fewer images each comes several times.
_MIXTURE_IMAGES = {"full": 8192, "diag": 4096}
_FULL_DIMENSIONS = 128
# (components, floor under their variances, where 1 is the variance of the whole); the first is the
# Gaussian, for sets where no mixture does better.
_GRID = {
  "full": [(1, 1e-6), (5, 0.01), (10, 0.1), (15, 0.1), (20, 0.15)],
  "diag": [(1, 1e-6), (16, 0.01), (64, 0.01), (64, 0.003)],
}
_BLOCK = 2048


def references(dataset: Dataset, seed: int = 0, *, tiny: bool = False) -> dict[str, float]:
  """Score three reference densities on the held-out images of a data set.

  Takes 2 seconds for digits and half a minute for 32x32 colour, of one core.

  Args:
    dataset: images in memory.
    seed: of noise, choice of images, and the mixture's start.
    tiny: fit one small mixture, roughly.

  Returns:
    Bits per dimension of held-out images under
    "uniform": all levels alike;
    "gaussian": mean and full covariance of the training images (of 60,000 if there are more;
      variances alone if there are no more images than dimensions);
    "gmm": the Gaussian mixture of a small grid that does best on a fifth of the training images,
      fitted again to all; full covariances up to 128 dimensions, else diagonal, see above.
  """
  rng = np.random.default_rng(seed)
  train, test = (part["image"].reshape(len(part["image"]), -1) for part in dataset[:2])
  d = train.shape[1]
  # The threads of several libraries, or of a training run beside, would wait for each other: one
  # takes a fraction of their time.
  with threadpool_limits(1):
    gaussian = _fit_gaussian(train, rng)
    held_out = gaussian.whiten(test, max(len(test), 64 if tiny else 4096), rng)
    mixture = _fit_mixture(train, gaussian, rng, seed, tiny)
    log_probs = {
      "gaussian": -0.5 * (d * math.log(2 * math.pi) + np.square(held_out).sum(axis=1).mean()),
      "gmm": mixture.score(held_out),
    }
  return {"uniform": math.log2(dataset.num_levels)} | {
    name: float(gaussian.log_det - log_prob) / (d * math.log(2))
    for name, log_prob in log_probs.items()
  }


class _Gaussian(NamedTuple):
  """Mean (d,) and the factor L of a covariance: (d, d) lower triangular, or its diagonal (d,)."""

  mean: np.ndarray
  factor: np.ndarray
  log_det: float

  def whiten(self, images: np.ndarray, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Return L^-1 (x - mean) (rows, d) of images in turn with fresh noise each time."""
    whitened = np.empty((rows, images.shape[1]), np.float32)
    for start in range(0, rows, _BLOCK):
      chosen = np.arange(start, min(start + _BLOCK, rows)) % len(images)
      x = images[chosen] + rng.random((len(chosen), images.shape[1])) - self.mean
      whitened[start : start + _BLOCK] = (
        x / self.factor
        if self.factor.ndim == 1
        else solve_triangular(self.factor, x.T, lower=True).T
      )
    return whitened


def _fit_gaussian(images: np.ndarray, rng: np.random.Generator) -> _Gaussian:
  """Fit to dequantized images: exactly, as uniform noise adds 1/2 to means, 1/12 to variances."""
  n, d = images.shape
  if n > _COVARIANCE_IMAGES:
    images, n = images[rng.choice(n, _COVARIANCE_IMAGES, replace=False)], _COVARIANCE_IMAGES
  mean = images.mean(axis=0, dtype=np.float64)
  blocks = (images[start : start + _BLOCK] - mean for start in range(0, n, _BLOCK))
  if n <= d:
    factor = np.sqrt(sum(np.square(x).sum(axis=0) for x in blocks) / n + 1 / 12)
    return _Gaussian(mean + 0.5, factor, float(np.log(factor).sum()))
  covariance = sum(x.T @ x for x in blocks) / n + np.eye(d) / 12
  factor = np.linalg.cholesky(covariance)
  return _Gaussian(mean + 0.5, factor, float(np.log(np.diag(factor)).sum()))


def _fit_mixture(
  images: np.ndarray, gaussian: _Gaussian, rng: np.random.Generator, seed: int, tiny: bool
) -> GaussianMixture:
  """Choose components and floor of the variances on a fifth of the images; fit again to all."""
  d = images.shape[1]
  kind = "full" if d <= _FULL_DIMENSIONS else "diag"
  rows = 64 if tiny else _MIXTURE_IMAGES[kind]
  grid = [(2, 0.1)] if tiny else _GRID[kind]
  images = images[rng.permutation(len(images))[: 2 * rows]]
  cut = len(images) // 5
  chosen = gaussian.whiten(images[:cut], rows // 4, rng) if cut else None

  def fit(images: np.ndarray, components: int, floor: float) -> GaussianMixture:
    mixture = GaussianMixture(
      components,
      covariance_type=kind,
      reg_covar=floor,
      max_iter=2 if tiny else 30,
      tol=1e-4 * d,
      random_state=seed,
      **(_start(components, d) if kind == "diag" else {}),
    )
    return fit_quietly(mixture, gaussian.whiten(images, rows, rng))

  scores = [fit(images[cut:], *setting).score(chosen) if cut else 0.0 for setting in grid]
  return fit(images, *grid[int(np.argmax(scores))])


def fit_quietly(mixture: GaussianMixture, rows: np.ndarray) -> GaussianMixture:
  """Fit a mixture; one that could still be a little better is good enough."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)
    return mixture.fit(rows)


def _start(components: int, d: int) -> dict[str, np.ndarray]:
  """Start from one center and many scales: images differ in contrast before all else.

  Clusters, the usual start, are in high dimensions one of nearly all images, and lone ones.
  """
  scales = np.geomspace(0.1, 4.0, components)
  return {
    "weights_init": np.full(components, 1 / components),
    "means_init": np.zeros((components, d)),
    "precisions_init": np.repeat(scales[:, None] ** -2, d, axis=1),
  }
