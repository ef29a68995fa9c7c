"""The Mahalanobis score: its mean, what it does not depend on, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.diagnostics import fit_mahalanobis, mahalanobis_score


def _features(n=40, d=3):
  return np.random.default_rng(0).normal(size=(n, d)) * np.arange(1, d + 1) + 5


def test_mean_score_of_the_fitted_features_is_their_dimension():
  with jax.enable_x64(True):
    x = jnp.asarray(_features())
    scores = mahalanobis_score(fit_mahalanobis(x, ridge=0.0), x)
  np.testing.assert_allclose(np.mean(np.asarray(scores)), 3, rtol=1e-12)


def test_invertible_linear_maps_of_the_features_change_nothing():
  matrix, offset = np.random.default_rng(1).normal(size=(3, 3)), np.array([[1.0, -2.0, 3.0]])
  query = _features(5) * 2
  with jax.enable_x64(True):
    plain, mapped = (
      mahalanobis_score(fit_mahalanobis(f(_features()), ridge=0.0), f(query))
      for f in (jnp.asarray, lambda v: jnp.asarray(v @ matrix + offset))
    )
  np.testing.assert_allclose(mapped, plain, rtol=1e-9)
  assert np.ptp(plain) > 1


def test_ridge_is_a_share_of_the_mean_variance():
  x = jnp.array([[1.0, 0.0], [-1.0, 0.0]])  # S = diag(1, 0)
  fit = fit_mahalanobis(x, ridge=0.5)
  np.testing.assert_allclose(fit.factor @ fit.factor.T, np.diag([1.25, 0.25]), rtol=1e-6)


@pytest.mark.parametrize(
  ("shape", "ridge", "message"),
  [((4,), 1e-6, "features must"), ((1, 2), 1e-6, "n >= 2"), ((2, 2), 0.0, "ridge must"),
   ((4, 2), -1.0, "ridge must")],
)  # fmt: skip
def test_bad_fits_are_refused(shape, ridge, message):
  with pytest.raises(ValueError, match=message):
    fit_mahalanobis(jnp.ones(shape), ridge=ridge)


def test_features_of_another_dimension_are_refused():
  with pytest.raises(ValueError, match=r"features must have shape \(n, 3\), got \(4, 2\)"):
    mahalanobis_score(fit_mahalanobis(jnp.asarray(_features())), jnp.ones((4, 2)))
