"""Transforms that are given by an increasing function: values, slopes, extremes, derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import integrate, interpolate, special, stats

from normjax import flows
from normjax.flows._unconstrained_monotone import clenshaw_curtis

TRANSFORMS = {
  "bernstein": lambda: flows.BernsteinTransform(5, tail_bound=2.0),
  "deep_sigmoidal": lambda: flows.DeepSigmoidalTransform(3),
  "gaussianization": lambda: flows.GaussianizationTransform(3),
  "logistic_mixture": lambda: flows.LogisticMixtureTransform(3),
  "sum_of_squares": lambda: flows.SumOfSquaresTransform(2, degree=2, tail_bound=2.0),
  "umnn": lambda: flows.UMNNTransform(3, width=4, depth=1, num_nodes=65, rngs=nnx.Rngs(0)),
}
EXTREMES = np.array([0, 1e-38, 1e-30, 1e-7, 0.5, 1, 2, 9, 1e4, 1e30])
EXTREMES = np.concatenate([-EXTREMES[:0:-1], EXTREMES])


@functools.cache
def _case(name):
  """Return the transform, and raw numbers for it."""
  with jax.enable_x64(False):
    transform = TRANSFORMS[name]()
  return transform, 0.7 * np.random.default_rng(3).standard_normal(transform.num_parameters)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_no_finite_number_gives_nan(name):
  transform, raw = _case(name)

  @jax.jit
  def run(x, raw):
    raw = jnp.broadcast_to(raw[None], (*x.shape, raw.size))
    forward, vjp = jax.vjp(transform.forward, x, raw)
    inverse, inverse_vjp = jax.vjp(transform.inverse, forward[0], raw)
    ones = jnp.ones_like(x), jnp.ones_like(x)
    return forward, inverse, (*vjp(ones), *inverse_vjp(ones))

  results = run(jnp.asarray(EXTREMES, jnp.float32), jnp.asarray(raw, jnp.float32))
  (y, slope), (again, back), gradients = results
  for value in (y, slope, again, back, *gradients):
    assert np.all(np.isfinite(value))
  assert np.all(np.diff(y) >= 0)
  np.testing.assert_allclose(again, EXTREMES, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(back, -slope, rtol=1e-3, atol=1e-4)


@functools.cache
def _wide(name):
  """Return points, values and log-slopes, and gradients of a round trip, in float64."""
  transform, raw = _case(name)
  x = np.linspace(-4, 4, 19)

  @jax.jit
  def run(x, raw):
    spread = lambda raw: jnp.broadcast_to(raw[None], (*x.shape, raw.size))
    there_and_back = lambda y, raw: transform.forward(transform.inverse(y, raw)[0], raw)[0]
    y, vjp = jax.vjp(lambda y, raw: there_and_back(y, spread(raw)), x, raw)
    return transform.forward(x, spread(raw)), vjp(jnp.ones_like(y))

  with jax.enable_x64(True):
    return x, *jax.tree.map(np.asarray, run(jnp.asarray(x), jnp.asarray(raw)))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_inverse_has_the_derivatives_of_an_inverse(name):
  y_bar, raw_bar = _wide(name)[2]
  np.testing.assert_allclose(y_bar, 1, rtol=0, atol=1e-9)
  np.testing.assert_allclose(raw_bar, 0, rtol=0, atol=1e-9)


def _mixture(raw, slopes, shifts):
  """Return F(x) and 1 - F(x) of a mixture of logistics with slopes a_k and shifts b_k."""
  weights = special.softmax(raw[:3])

  def run(x):
    p = slopes * x[:, None] + shifts
    return special.expit(p) @ weights, special.expit(-p) @ weights

  return run


def _softplus(v):
  return np.logaddexp(v + np.log(np.expm1(1 - 1e-3)), 0) + 1e-3


def _mixture_of(raw):
  slopes = np.exp(-5 * np.tanh(raw[6:9] / 5))
  return _mixture(raw, slopes, -slopes * (raw[3:6] + np.linspace(-2, 2, 3)))


def _deep_sigmoidal(raw, x):
  below, above = _mixture(raw, _softplus(raw[3:6]), raw[6:9] + np.linspace(-2, 2, 3))(x)
  return np.log(below / above)


def _gaussianization(raw, x):
  below, above = _mixture_of(raw)(x)
  return np.where(below < above, stats.norm.ppf(below), stats.norm.isf(above))


def _logistic_mixture(raw, x):
  below, above = _mixture_of(raw)(x)
  return np.exp(2 * np.tanh(raw[9] / 2)) * np.log(below / above) + raw[10]


def _bernstein(raw, x):
  steps = 4 / 5 * _softplus(raw[1:])
  theta = np.cumsum(np.concatenate([raw[:1] - 2, steps]))
  polynomial = interpolate.BPoly(theta[:, None], [-2, 2])
  tail = np.where(x < 0, steps[0], steps[-1]) * 5 / 4
  return polynomial(np.clip(x, -2, 2)) + tail * (x - np.clip(x, -2, 2))


def _sum_of_squares(raw, x):
  a = raw[:6].reshape(2, 3) + [[1, 0, 0], [0, 0.1, 0]]
  polynomial = np.polynomial.Polynomial
  slope = sum(polynomial(row) ** 2 for row in a) + 1e-3
  near = np.clip(x, -2, 2)
  return raw[6] + slope.integ()(near) + slope(near) * (x - near)


def _umnn(raw, x):
  network = _case("umnn")[0].log_integrand
  first, block, last = network.first, network.blocks.blocks.linear, network.last
  layers = [(first.kernel, first.bias), (block.kernel[0], block.bias[0]), (last.kernel, last.bias)]
  layers = [tuple(np.asarray(v, np.float64) for v in layer) for layer in layers]

  def integrand(s):
    h = np.concatenate([[s], raw[:3]])
    for kernel, bias in layers[:2]:
      h = np.tanh(h @ kernel + bias)
    return _softplus((h @ layers[2][0] + layers[2][1])[0])

  return raw[3] + np.array([integrate.quad(integrand, 0, v, epsabs=1e-12)[0] for v in x])


ORACLES = {
  "bernstein": _bernstein,
  "deep_sigmoidal": _deep_sigmoidal,
  "gaussianization": _gaussianization,
  "logistic_mixture": _logistic_mixture,
  "sum_of_squares": _sum_of_squares,
  "umnn": _umnn,
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_values_and_slopes_agree_with_scipy(name):
  raw, step = _case(name)[1], 1e-4
  x, (y, log_slope), _ = _wide(name)
  np.testing.assert_allclose(y, ORACLES[name](raw, x), rtol=1e-10, atol=1e-10)
  # Fourth order; no entry is at the end of an interval.
  differences = [ORACLES[name](raw, x + k * step) for k in (-2, -1, 1, 2)]
  slope = np.array([1, -8, 8, -1]) @ differences / (12 * step)
  np.testing.assert_allclose(np.exp(log_slope), slope, rtol=1e-7, atol=1e-9)


def test_gaussianization_keeps_its_digits_in_far_tails():
  transform = flows.GaussianizationTransform(1)
  x = jnp.array([-1e4, -300.0, -25.0, 25.0, 1e30], jnp.float32)
  z, log_slope = jax.jit(transform.forward)(x, jnp.zeros((5, 3)))
  wide = np.asarray(z, np.float64)
  # A logistic variable at x has log F(x) = x for x far below zero.
  np.testing.assert_allclose(stats.norm.logcdf(wide[:3]), x[:3], rtol=1e-5)
  np.testing.assert_allclose(stats.norm.logsf(wide[3:]), -x[3:], rtol=1e-5)
  # dz/dx = 1 / hazard, which tends to 1 / |z|.
  far = np.abs(wide) > 20
  np.testing.assert_allclose(np.asarray(log_slope)[far], -np.log(np.abs(wide[far])), atol=3e-3)


def test_clenshaw_curtis_is_exact_for_polynomials():
  for n in (3, 4, 9):
    nodes, weights = clenshaw_curtis(n)
    assert np.all(weights > 0)
    moments = np.array([weights @ nodes**k for k in range(n)])
    exact = np.array([(1 - (-1) ** (k + 1)) / (k + 1) for k in range(n)])
    np.testing.assert_allclose(moments, exact, atol=1e-14)


def test_components_are_not_equal_at_first():
  # Equal ones would have equal gradients and stay equal.
  names = "deep_sigmoidal", "logistic_mixture", "sum_of_squares"
  transforms = [_case(name)[0] for name in names]

  @jax.jit
  def run(x):
    zeros = [jnp.zeros((1, t.num_parameters)) for t in transforms]
    return [
      jax.grad(lambda raw, t=t: t.value(x, raw)[0])(raw)[0]
      for t, raw in zip(transforms, zeros, strict=True)
    ]

  gradients = run(jnp.full(1, 0.7))
  components = [np.asarray(g[:9]).reshape(3, 3).T for g in gradients[:2]]
  for rows in (*components, np.asarray(gradients[2][:6]).reshape(2, 3)):
    assert len(np.unique(np.round(rows, 6), axis=0)) == len(rows)


def test_monotone_trains_what_it_inverts():
  class Steep(nnx.Module):
    def __init__(self):
      self.slope = nnx.Param(jnp.full((), 0.5))

    def __call__(self, x):
      return self.slope[...] * x + jnp.arcsinh(x)

  layer = flows.Monotone(Steep())
  graphdef, params = nnx.split(layer)
  z = jnp.array([[2.0, -40.0]])
  run = lambda params: nnx.merge(graphdef, params).inverse(z)[0]
  ones = jax.tree.map(jnp.ones_like, params)
  x, tangent = jax.jit(lambda params: jax.jvp(run, (params,), (ones,)))(params)
  np.testing.assert_allclose(0.5 * x + np.arcsinh(x), z, rtol=1e-6)
  # dx / d slope = -x / f'(x)
  np.testing.assert_allclose(tangent, -x / (0.5 + 1 / np.sqrt(1 + x**2)), rtol=1e-5)


def test_bad_arguments_are_refused():
  for make, match in (
    (lambda: flows.BernsteinTransform(0), "degree must be"),
    (lambda: flows.BernsteinTransform(101), "degree must be 1 to 100, got 101"),
    (lambda: flows.BernsteinTransform(2, tail_bound=0.0), "tail_bound must be"),
    (lambda: flows.SumOfSquaresTransform(1, degree=-1), "degree must be"),
    (lambda: flows.SumOfSquaresTransform(0), "num_polynomials must be"),
    (lambda: flows.SumOfSquaresTransform(3, degree=1), "num_polynomials must be at most 2, got 3"),
    (lambda: flows.DeepSigmoidalTransform(0), "num_units must be"),
    (lambda: flows.GaussianizationTransform(0), "num_components must be"),
    (lambda: flows.UMNNTransform(num_nodes=4, rngs=nnx.Rngs(0)), "num_nodes must be odd"),
    (lambda: flows.UMNNTransform(depth=-1, rngs=nnx.Rngs(0)), "depth must be"),
    (lambda: flows.Monotone(3), "function must be"),
    (lambda: flows.Elementwise(flows.AdditiveTransform(), (0,)), "shape must be"),
  ):
    with pytest.raises(ValueError, match=match):
      make()
