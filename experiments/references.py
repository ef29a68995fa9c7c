"""What simple densities reach on the same split: the numbers that a flow must beat.

All are in bits per dimension of the quantized images, from one uniform dequantization
x = (q + u) / num_levels of training and held-out set, so they compare with any pixel convention.
"""

import math

import numpy as np
from scipy.linalg import solve_triangular
from sklearn.mixture import GaussianMixture

from experiments.data import Dataset

# A mixture sees at most this many training images, and full covariances only up to this dimension.
_MIXTURE_IMAGES = 4000
_FULL_DIMENSIONS = 200


def references(dataset: Dataset, seed: int = 0, *, tiny: bool = False) -> dict[str, float]:
  """Score three reference densities on the held-out images of a data set.

  Args:
    dataset: images in memory.
    seed: of the dequantization and the mixture's start.
    tiny: fit the smallest mixture only.

  Returns:
    {"uniform", "gaussian", "gmm"}: bits per dimension of the uniform density, of a Gaussian with
    full covariance, and of the best Gaussian mixture of a small grid, chosen on a tenth of the
    training images. Mixtures have full covariances up to 200 dimensions, diagonal ones above.
  """
  rng = np.random.default_rng(seed)
  train, test = (
    _flat(part["image"], dataset.num_levels, rng) for part in (dataset.train, dataset.test)
  )
  nats = {"gaussian": _gaussian(train, test), "gmm": _mixture(train, test, seed, rng, tiny)}
  dims = train.shape[1]
  # x has num_levels bins per unit, so log2 of that many is what a density of 1 costs.
  constant = math.log2(dataset.num_levels)
  return {"uniform": constant} | {
    name: constant - value / (dims * math.log(2)) for name, value in nats.items()
  }


def _flat(image: np.ndarray, num_levels: int, rng: np.random.Generator) -> np.ndarray:
  """Dequantize to (n, d) in [0, 1); float32 keeps the 23 bits that matter."""
  flat = image.reshape(len(image), -1)
  return ((flat + rng.random(flat.shape, np.float32)) / num_levels).astype(np.float32)


def _gaussian(train: np.ndarray, test: np.ndarray) -> float:
  """Return the mean log-density of `test` under the Gaussian of `train`."""
  mean = train.mean(axis=0, dtype=np.float64)
  deviations = (train - mean.astype(np.float32)).astype(np.float64)
  covariance = deviations.T @ deviations / len(train)
  if len(train) <= train.shape[1]:
    # Too few images for full rank: shrink a little towards the diagonal.
    covariance = 0.9 * covariance + 0.1 * np.diag(np.diag(covariance))
  factor = np.linalg.cholesky(covariance)
  standard = solve_triangular(factor, (test - mean).T, lower=True)  # (d, n)
  log_det = np.log(np.diag(factor)).sum()
  constant = 0.5 * train.shape[1] * math.log(2 * math.pi)
  return float(-0.5 * np.square(standard).sum(axis=0).mean() - log_det - constant)


def _mixture(train, test, seed: int, rng: np.random.Generator, tiny: bool) -> float:
  """Return the mean log-density of `test` under the mixture that does best on held-out training."""
  full = train.shape[1] <= _FULL_DIMENSIONS
  kind = "full" if full else "diag"
  images = train[rng.permutation(len(train))[:_MIXTURE_IMAGES]]
  cut = max(1, len(images) // 10)
  fitted, chosen = images[cut:], images[:cut]
  variance = float(train.var())
  # (components, floor of the variances as a part of the mean variance)
  grid = [(6, 0.0015), (10, 0.003), (16, 0.003)] if full else [(16, 0.01), (32, 0.01)]
  best = None
  for count, floor in grid[:1] if tiny else grid:
    mixture = GaussianMixture(
      min(count, max(1, len(fitted) // 8)), covariance_type=kind, reg_covar=floor * variance,
      max_iter=5 if tiny else 50, tol=1e-2, random_state=seed,
    )  # fmt: skip
    score = mixture.fit(fitted).score(chosen)
    best = max(best, (score, mixture), key=lambda pair: pair[0]) if best else (score, mixture)
  return float(best[1].score(test))
