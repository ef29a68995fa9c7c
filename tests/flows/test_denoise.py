import jax.numpy as jnp
import numpy as np
import pytest

from normjax import flows


def test_denoised_gaussian_is_the_posterior_mean():
  loc, spread, sigma = np.array([1.0, -2.0, 0.5]), np.array([0.5, 2.0, 1.0]), 0.7
  total = np.sqrt(spread**2 + sigma**2)  # of clean data plus noise
  noisy = flows.Flow(flows.ElementwiseAffine(loc, total), flows.StandardNormal((3,)))
  x = np.random.default_rng(0).standard_normal((5, 3))
  expected = loc[None] + (spread**2 / total**2)[None] * (x - loc[None])
  clean = flows.denoise(noisy, jnp.asarray(x, jnp.float32), sigma)
  np.testing.assert_allclose(clean, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(flows.denoise(noisy, jnp.ones((2, 3)), 0.0), 1)


def test_wrong_noise_is_refused():
  base, x = flows.StandardNormal((3,)), jnp.ones((2, 3))
  with pytest.raises(ValueError, match="sigma must be at least 0, got -1"):
    flows.denoise(base, x, -1.0)
  with pytest.raises(ValueError, match="sigma must be a scalar"):
    flows.denoise(base, x, jnp.ones(2))
  with pytest.raises(ValueError, match="x must be floating"):
    flows.denoise(base, x.astype(int), 1.0)


def test_tracked_variance_by_hand():
  variance = jnp.array([1.0, 4.0])
  z = jnp.array([[1.0, 2.0], [3.0, 0.0]])  # mean squares 5 and 2
  np.testing.assert_allclose(flows.tracked_variance(variance, z), [1.4, 3.8], rtol=1e-6)
  np.testing.assert_allclose(flows.tracked_variance(variance, z, rate=1.0), [5.0, 2.0], rtol=1e-6)
  with pytest.raises(ValueError, match=r"z must have shape \(b, 2\)"):
    flows.tracked_variance(variance, z[0])
  for rate in (0.0, 1.1):
    with pytest.raises(ValueError, match="rate must be above 0 and at most 1"):
      flows.tracked_variance(variance, z, rate=rate)
