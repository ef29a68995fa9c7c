"""Fixed functions of single entries: their values, and what they do with extreme ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from normjax import flows
from normjax.flows._exp import stretched

LAYERS = {
  "cauchy_cdf": flows.CauchyCDF(),
  "exp": flows.Exp(),
  "gumbel_cdf": flows.GumbelCDF(),
  "leaky_relu": flows.LeakyReLU(0.01),
  "leaky_tanh": flows.LeakyTanh(3.0),
  "monotone": flows.Monotone(lambda x: x + jnp.tanh(x)),
  "normal_cdf": flows.NormalCDF(),
  "sigmoid": flows.Sigmoid(),
  "signed_power": flows.SignedPower(1.5),
  "signed_root": flows.SignedPower(0.5),
  "softclip": flows.Softclip(3.0),
  "softclip_rounded": flows.Softclip(1.3),  # is less in float32
  "softplus": flows.Softplus(),
  "tanh": flows.Tanh(),
}
MAX, TINY = np.finfo(np.float32).max, np.finfo(np.float32).tiny
EXTREMES = np.array([0, TINY, 1e-20, 1e-7, 0.5, 1 - 2**-24, 1, 2, 9, 50, 120, 1e4, 1e30, MAX])
EXTREMES = jnp.asarray(np.concatenate([-EXTREMES[::-1], EXTREMES])[:, None], jnp.float32)


@pytest.mark.parametrize("name", LAYERS)
def test_no_finite_number_gives_nan(name):
  layer = LAYERS[name]

  @jax.jit
  def run(x):
    outputs, gradients = [], []
    for direction in (layer.forward, layer.inverse):
      (y, log_det), vjp = jax.vjp(direction, x)
      outputs += [y, log_det]
      ones, zeros = jnp.ones_like, jnp.zeros_like
      gradients += [*vjp((ones(y), zeros(log_det))), *vjp((zeros(y), ones(log_det)))]
    return outputs, gradients, layer.inverse(outputs[0])[0]

  outputs, gradients, again = run(EXTREMES)
  for value in [*outputs, *gradients, again]:
    assert not np.any(np.isnan(value))
  z, log_det = outputs[0][:, 0], outputs[1]
  assert np.all(np.diff(z) >= 0)
  moderate = np.abs(EXTREMES[:, 0]) <= 1e4
  assert np.all(np.isfinite(z))
  assert np.all(np.isfinite(log_det[moderate]))
  assert np.all(np.isfinite(again[moderate]))


def test_scales_without_a_bound_stop_growing():
  x = jnp.array([2.0, -2.0, 0.0, 3e35, 2.0, -1e-30])
  log_scale = jnp.array([3.0, 100.0, 100.0, 5.0, -1e30, 1e30])

  @jax.jit
  def run(x, log_scale):
    y, vjp = jax.vjp(stretched, x, log_scale)
    return y, vjp(jnp.ones_like(y))

  y, slopes = run(x, log_scale)
  limit = float(MAX) ** 0.8
  # What is large stays, and what is small is stretched as much as a one.
  expected = [2 * np.exp(3), -limit, 0, 3e35, 0, -1e-30 * limit]
  np.testing.assert_allclose(y, expected, rtol=1e-5)
  np.testing.assert_allclose(slopes[0], [np.exp(3), 0, 0, 0, 0, 0], rtol=1e-6)
  np.testing.assert_allclose(slopes[1], [2 * np.exp(3), 0, 0, 0, 0, 0], rtol=1e-6)


SCIPY = {
  "cauchy_cdf": (
    lambda x: np.arctan2(1, -x) / np.pi,
    lambda x: 1 / (np.pi * (1 + x**2)),
  ),
  "leaky_relu": (lambda x: np.where(x < 0, 0.01 * x, x), lambda x: np.where(x < 0, 0.01, 1)),
  "monotone": (lambda x: x + np.tanh(x), lambda x: 1 + 1 / np.cosh(x) ** 2),
  "sigmoid": (special.expit, lambda x: special.expit(x) * special.expit(-x)),
  "signed_power": (
    lambda x: np.sign(x) * np.abs(x) ** 1.5,
    lambda x: 1.5 * np.abs(x) ** 0.5,
  ),
  "softclip": (lambda x: x / (1 + np.abs(x) / 3), lambda x: (1 + np.abs(x) / 3) ** -2),
  "softplus": (lambda x: np.logaddexp(x, 0), special.expit),
  "tanh": (np.tanh, lambda x: 1 / np.cosh(x) ** 2),
}


@pytest.mark.parametrize("name", SCIPY)
def test_values_and_slopes_keep_their_digits_in_float32(name):
  x = jnp.array([[-60.0], [-9.0], [-0.3], [1e-4], [2.0], [14.0]], jnp.float32)
  z, log_det = LAYERS[name].forward(x)
  value, slope = SCIPY[name]
  wide = np.asarray(x, np.float64)
  np.testing.assert_allclose(z, value(wide), rtol=1e-6)
  np.testing.assert_allclose(log_det, np.log(slope(wide))[:, 0], rtol=1e-6, atol=1e-6)


def test_leaky_tanh_continues_tanh_by_its_tangent():
  layer, end = flows.LeakyTanh(1.5), 1.5
  x = jnp.array([[-4.0], [-1.5], [0.7], [1.5], [4.0]])
  slope = 1 - np.tanh(end) ** 2
  tail = np.tanh(end) + slope * 2.5
  z, log_det = layer.forward(x)
  expected = [-tail, -np.tanh(end), np.tanh(0.7), np.tanh(end), tail]
  np.testing.assert_allclose(z[:, 0], expected, rtol=1e-6)
  expected = np.log([slope, slope, 1 - np.tanh(0.7) ** 2, slope, slope])
  np.testing.assert_allclose(log_det, expected, rtol=1e-5)
  np.testing.assert_allclose(layer.inverse(z)[0], x, rtol=1e-5)


CDFS = {"cauchy_cdf": stats.cauchy, "gumbel_cdf": stats.gumbel_r, "normal_cdf": stats.norm}


@pytest.mark.parametrize("name", CDFS)
def test_distribution_functions_are_scipys(name):
  x = np.array([-3.0, -0.5, 0.0, 1.0, 2.5])[:, None]
  with jax.enable_x64(True):
    z, log_det = LAYERS[name].forward(jnp.asarray(x))
    back, _ = LAYERS[name].inverse(z)
  np.testing.assert_allclose(z, CDFS[name].cdf(x), rtol=1e-12)
  np.testing.assert_allclose(log_det, CDFS[name].logpdf(x)[:, 0], rtol=1e-12)
  np.testing.assert_allclose(back, x, atol=1e-9)


def test_softplus_inverts_tiny_numbers():
  z = jnp.array([[1e-30], [1e-7], [30.0]], jnp.float32)
  x, _ = flows.Softplus().inverse(z)
  np.testing.assert_allclose(x, np.log(np.expm1(np.asarray(z, np.float64))), rtol=1e-6)


def test_sigmoid_is_the_inverted_logit():
  x = jnp.linspace(-8, 8, 9)[:, None]
  for one, other in zip(
    flows.Sigmoid().forward(x), flows.Inverted(flows.Logit(0.0)).forward(x), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("slope", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_slope_is_refused(slope):
  with pytest.raises(ValueError, match="negative_slope must be positive and finite, got"):
    flows.LeakyReLU(slope)


def test_bad_exponents_bounds_and_ends_are_refused():
  with pytest.raises(ValueError, match="exponent must be positive and finite, got 0"):
    flows.SignedPower(0)
  with pytest.raises(ValueError, match="bound must be positive and finite, got inf"):
    flows.Softclip(float("inf"))
  with pytest.raises(ValueError, match="lower must be below upper, got 1.0 and 1.0"):
    flows.Monotone(jnp.sin, lower=1.0, upper=1.0)


def test_monotone_keeps_to_its_ends():
  sine = flows.Monotone(jnp.sin, lower=-np.pi / 2, upper=np.pi / 2)
  x, log_det = sine.inverse(jnp.array([[0.5], [-0.9], [2.0]]))
  np.testing.assert_allclose(x[:, 0], [np.pi / 6, np.arcsin(-0.9), np.pi / 2], rtol=1e-6)
  np.testing.assert_allclose(log_det[0], -np.log(np.cos(np.pi / 6)), rtol=1e-5)


@pytest.mark.parametrize("max_val", [0.0, 9.0, float("nan")])
def test_bad_max_val_is_refused(max_val):
  with pytest.raises(ValueError, match=r"max_val must be in \(0, 8.0\], got"):
    flows.LeakyTanh(max_val)
