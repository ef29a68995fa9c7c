"""The logit map near the ends of its domain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from normjax import flows


@pytest.mark.parametrize("alpha", [0.05, 1e-6])
def test_ends_of_the_unit_interval_are_finite_and_exact_in_float32(alpha):
  x = jnp.array([[0.0], [1.0], [1e-5], [1 - 2**-24]], jnp.float32)
  z, log_det = flows.Logit(alpha).forward(x)
  v = np.asarray(x, np.float64)
  s, t = alpha + (1 - 2 * alpha) * v, alpha + (1 - 2 * alpha) * (1 - v)
  np.testing.assert_allclose(z, np.log(s / t), rtol=1e-5)
  expected = (np.log(1 - 2 * alpha) - np.log(s * t))[:, 0]
  np.testing.assert_allclose(log_det, expected, rtol=1e-5)
  np.testing.assert_allclose(flows.Logit(alpha).inverse(z)[0], x, rtol=0, atol=1e-6)


def test_inverse_is_finite_far_out():
  z = jnp.array([[-150.0], [150.0]], jnp.float32)
  bijector = flows.Logit(0.0)
  x, log_det = bijector.inverse(z)
  np.testing.assert_allclose(x, [[0.0], [1.0]], atol=1e-30)
  np.testing.assert_allclose(log_det, [-150.0, -150.0], rtol=1e-6)
  gradient = jax.grad(lambda z: jnp.sum(bijector.inverse(z)[1]))(z)
  np.testing.assert_allclose(gradient, [[1.0], [-1.0]], rtol=1e-6)


def test_alpha_of_zero_is_scipys_logit():
  with jax.enable_x64(True):
    x = jnp.linspace(0.01, 0.99, 11)[None]
    np.testing.assert_allclose(flows.Logit(0.0).forward(x)[0], special.logit(x), atol=1e-14)


def test_outside_the_domain_is_not_hidden():
  assert np.isnan(flows.Logit(0.05).forward(jnp.array([[1.5]]))[0]).all()


@pytest.mark.parametrize("alpha", [-0.1, 0.5, float("nan")])
def test_bad_alpha_is_refused(alpha):
  with pytest.raises(ValueError, match=r"alpha must be in \[0, 0.5\)"):
    flows.Logit(alpha)


def test_integers_are_refused():
  with pytest.raises(ValueError, match="x must be floating, got uint8"):
    flows.Logit(0.05).forward(jnp.zeros((1, 2), jnp.uint8))
