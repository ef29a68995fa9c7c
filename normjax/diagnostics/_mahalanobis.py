"""How far features lie from those of the training set (Lee et al., arXiv 1807.03888)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Mahalanobis(NamedTuple):
  """Holds the Gaussian that was fitted to features.

  mean (d,), factor (d, d) lower triangular with factor factor^T = S + ridge I

  Args:
    mean: the mean of the features.
    factor: the Cholesky factor of their covariance.

  Example:
    >>> Mahalanobis(jnp.zeros(2), jnp.eye(2)).mean.shape
    (2,)
  """

  mean: Float[Array, "d"]
  factor: Float[Array, "d d"]


def fit_mahalanobis(features: Float[Array, "n d"], *, ridge: float = 1e-6) -> Mahalanobis:
  """Fit the Gaussian that `mahalanobis_score` measures distances by.

  mean = sum_i phi_i / n,  S = sum_i (phi_i - mean)(phi_i - mean)^T / n,
  S + ridge trace(S) / d I = factor factor^T

  Args:
    features: (n, d), one row per example, or per pixel.
    ridge: what is added to the diagonal, as a share of the mean variance.

  Returns:
    The `Mahalanobis` of these features.

  Raises:
    ValueError: if `features` is not (n, d) with n >= 2, `ridge` is negative, or it is 0 and n <= d,
      where the covariance has no inverse.

  Reference:
    Lee, Lee, Lee, Shin, "A simple unified framework for detecting out-of-distribution samples and
    adversarial attacks", 2018, arXiv 1807.03888.

  Example:
    >>> fit = fit_mahalanobis(jnp.array([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]]))
    >>> fit.mean
    Array([1., 1.], dtype=float32)
  """
  if features.ndim != 2 or features.shape[0] < 2:
    raise ValueError(f"features must have shape (n, d) with n >= 2, got {features.shape}")
  n, d = features.shape
  if ridge < 0 or (ridge == 0 and n <= d):
    raise ValueError(f"ridge must be at least 0, and above 0 if n <= d = {d}, got {ridge}, n = {n}")
  features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
  mean = jnp.mean(features, axis=0)
  centred = features - mean[None]
  covariance = centred.T @ centred / n
  covariance = covariance + ridge * jnp.trace(covariance) / d * jnp.eye(d, dtype=features.dtype)
  return Mahalanobis(mean, jnp.linalg.cholesky(covariance))


def mahalanobis_score(fit: Mahalanobis, features: Float[Array, "n d"]) -> Float[Array, "n"]:
  """Return squared Mahalanobis distances: high where features are out of distribution.

  score (n,) = (phi - mean)^T (S + ridge)^-1 (phi - mean); its mean is d on Gaussian data

  Args:
    fit: what `fit_mahalanobis` returns.
    features: (n, d).

  Returns:
    The scores (n,).

  Raises:
    ValueError: if `features` is not (n, d).

  Reference:
    Lee, Lee, Lee, Shin, "A simple unified framework for detecting out-of-distribution samples and
    adversarial attacks", 2018, arXiv 1807.03888.

  Example:
    >>> fit = Mahalanobis(jnp.zeros(2), jnp.eye(2))
    >>> mahalanobis_score(fit, jnp.array([[3.0, 4.0]]))
    Array([25.], dtype=float32)

    How well it tells strange features from known ones, and whether it rises with a model's error:

    >>> from scipy import stats
    >>> known = mahalanobis_score(fit, jnp.array([[0.1, 0.2], [1.0, 0.3]]))
    >>> strange = mahalanobis_score(fit, jnp.array([[3.0, 2.0], [0.0, -4.0], [0.5, 0.0]]))
    >>> pairs = len(strange) * len(known)
    >>> round(float(stats.mannwhitneyu(strange, known).statistic) / pairs, 3)  # AUROC
    0.833
    >>> round(float(stats.spearmanr(strange, jnp.array([0.3, 0.9, 0.1])).statistic), 3)
    1.0
  """
  if features.ndim != 2 or features.shape[1:] != fit.mean.shape:
    raise ValueError(f"features must have shape (n, {fit.mean.shape[0]}), got {features.shape}")
  centred = features.astype(fit.mean.dtype) - fit.mean[None]
  white = jax.scipy.linalg.solve_triangular(fit.factor, centred.T, lower=True)
  return jnp.sum(white**2, axis=0)
