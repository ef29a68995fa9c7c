"""Residual flows: contraction for certain, estimates without bias, implicit gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from normjax import flows
from normjax.flows._contraction import solve_residual
from normjax.flows._lipschitz_network import spectral_norm_bound

EXTREMES = jnp.array([0, 1e-38, 1e-30, 1e-7, 0.5, 1, 9, 1e4, 1e30], jnp.float32)
EXTREMES = jnp.concatenate([-EXTREMES[::-1], EXTREMES]).reshape(-1, 2)


def test_gram_iteration_bounds_the_spectral_norm_from_above():
  rng = np.random.default_rng(0)
  bound = jax.jit(jax.vmap(jax.value_and_grad(spectral_norm_bound)))
  for shape in ((4, 3), (3, 7)):
    kernels = rng.standard_normal((5, *shape)) * np.array([1, 1e-30, 1e30, 3, 0])[:, None, None]
    kernels[3] = np.linalg.qr(kernels[3])[0] if shape[0] > shape[1] else kernels[3]  # equal values
    bounds, gradients = bound(jnp.asarray(kernels, jnp.float32))
    norms = np.linalg.norm(np.asarray(kernels, np.float32).astype(np.float64), 2, axis=(1, 2))
    assert np.all(bounds >= norms * (1 - 1e-6))
    assert np.all(bounds[:4] <= norms[:4] * min(shape) ** (1 / 256) * (1 + 1e-5))
    assert np.all(np.isfinite(gradients))
    # A norm is homogeneous: <gradient, kernel> is the norm.
    products = np.sum(np.asarray(gradients, np.float64) * kernels, axis=(1, 2))
    np.testing.assert_allclose(products[:4], bounds[:4], rtol=1e-4)


def test_the_network_contracts_whatever_its_parameters():
  layer = flows.ResidualFlow(3, width=5, lipschitz=0.9, rngs=nnx.Rngs(0))
  graphdef, state = nnx.split(layer.network)
  run = lambda state, x: nnx.merge(graphdef, state)(x[None], None)[0]
  jacobian = jax.jit(jax.vmap(jax.jacrev(run, argnums=1), in_axes=(None, 0)))
  x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 3)) * 3, jnp.float32)
  for factor in (1.0, 50.0):
    scaled = jax.tree.map(lambda p, factor=factor: factor * p, state)
    norms = np.linalg.norm(jacobian(scaled, x), 2, axis=(1, 2))
    assert np.max(norms) < 0.9
    # An orthogonal start leaves the bound nearly reached, so that it isn't the bound that is loose.
    assert np.max(norms) > 0.3


def _tanh_net(w):
  return lambda x: 0.8 * jnp.tanh(x @ w)


def test_estimates_have_the_exact_value_and_gradient_as_their_mean():
  with jax.enable_x64(True):
    w = jnp.linalg.qr(jnp.asarray(np.random.default_rng(0).standard_normal((2, 2))))[0]
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 2)))
    full = flows.orthogonal_probes(jax.random.key(0), 2, 2, 2, jnp.float64)

    def roulette(key, w, x):
      keys = jax.random.split(key)
      probes = flows.orthogonal_probes(keys[0], 2, 2, 1, jnp.float64)
      return flows.roulette_log_det(keys[1], _tanh_net(w), x, probes, stop=0.4)

    @jax.jit
    def run(w, x):
      graded = lambda f: jax.value_and_grad(lambda w, x: f(w, x)[0], argnums=(0, 1))(w, x)
      exact = graded(lambda w, x: flows.residual_log_det(_tanh_net(w), x))
      series = graded(lambda w, x: flows.series_log_det(_tanh_net(w), x, full, 200))
      keys = jax.random.split(jax.random.key(3), 20_000)
      draws = jax.vmap(lambda key: graded(lambda w, x: roulette(key, w, x)))(keys)
      return exact, series, draws

    exact, series, draws = jax.tree.map(np.asarray, run(w, x))
  for one, other in zip(jax.tree.leaves(exact), jax.tree.leaves(series), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
  for one, drawn in zip(jax.tree.leaves(exact), jax.tree.leaves(draws), strict=True):
    error = drawn.std(axis=0) / np.sqrt(len(drawn))
    assert np.all(np.abs(drawn.mean(axis=0) - one) <= 5 * error)
    assert np.all(error <= 0.02)


def test_truncated_series_is_the_sum_of_its_terms():
  w = jnp.array([[0.3, 0.4], [-0.2, 0.1]])
  probes = np.sqrt(2) * np.eye(2, dtype=np.float32)[None]
  got = flows.series_log_det(lambda x: x @ w, jnp.ones((1, 2)), jnp.asarray(probes), 3)
  wide = np.asarray(w, np.float64)
  powers = [np.trace(np.linalg.matrix_power(wide, k)) for k in (1, 2, 3)]
  np.testing.assert_allclose(got[0], powers[0] - powers[1] / 2 + powers[2] / 3, rtol=1e-6)


def test_the_inverse_has_implicit_derivatives_of_every_order():
  with jax.enable_x64(True):
    w = jnp.asarray([[0.6, 0.5], [-0.4, 0.7]])
    z = jnp.asarray([[0.3, -1.0], [2.0, 0.1]])
    solve = jax.jit(lambda w, z: solve_residual(_tanh_net(w), z))
    x = solve(w, z)
    np.testing.assert_allclose(x + 0.8 * np.tanh(x @ w), z, rtol=0, atol=1e-15)
    check_grads(solve, (w, z), order=2, rtol=1e-6, atol=1e-6)


def test_no_finite_number_gives_nan():
  layer = flows.ResidualFlow(2, width=4, depth=0, rngs=nnx.Rngs(0))

  @jax.jit
  def run(x):
    outputs = []
    for direction in (layer.forward, layer.inverse):
      (y, log_det), vjp = jax.vjp(direction, x)
      outputs += [y, log_det, *vjp((jnp.ones_like(y), jnp.ones_like(log_det)))]
    return outputs, layer.inverse(outputs[0])[0]

  outputs, again = run(EXTREMES)
  assert all(np.all(np.isfinite(output)) for output in outputs)
  scale = np.max(np.abs(EXTREMES), axis=1, keepdims=True)
  assert np.all(np.abs(again - EXTREMES) < 1e-5 * scale + 1e-6)


def test_copies_with_probes_estimate_in_every_layer_of_a_flow():
  make = lambda rngs: flows.ResidualFlow(3, width=4, depth=0, num_probes=2, rngs=rngs)
  scan = flows.Scan(make, 3, rngs=nnx.Rngs(0))
  flow = flows.Flow(flows.Chain([make(nnx.Rngs(1)), scan]), flows.StandardNormal((3,)))
  x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)), jnp.float32)
  graphdef, params, rest = nnx.split(flow, nnx.Param, ...)
  keys = jax.random.split(jax.random.key(0), 4000)

  def estimate(params):
    flow = nnx.merge(graphdef, params, rest)
    draws = jax.vmap(lambda key: flows.with_probes(flow, key).log_prob(x))(keys)
    return jnp.mean(draws), draws

  run = jax.jit(lambda params: (jax.grad(estimate, has_aux=True)(params), flow.log_prob(x)))
  (gradient, draws), exact = run(params)
  error = np.std(draws, axis=0) / np.sqrt(len(draws))
  assert np.all(np.abs(np.mean(draws, axis=0) - exact) <= 5 * error)
  assert np.all(error > 0)
  assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))
  copy = flows.with_probes(flow, jax.random.key(7)).bijector.bijectors
  keys = [jax.random.key_data(layer.probe_key[...]) for layer in (copy[0], copy[1].layers)]
  assert len(np.unique(np.concatenate([keys[0][None], keys[1]]), axis=0)) == 4
  assert scan.layers.exact
  assert not copy[1].layers.exact


def test_both_directions_of_a_copy_estimate_with_the_same_probes():
  layer = flows.ResidualFlow(3, width=4, depth=0, rngs=nnx.Rngs(0))
  copy = flows.with_probes(layer, jax.random.key(0))
  x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)), jnp.float32)

  @jax.jit
  def run(x):
    z, up = copy.forward(x)
    return up, copy.inverse(z), layer.forward(x)[1]

  up, (again, down), exact = run(x)
  np.testing.assert_allclose(again, x, rtol=0, atol=1e-5)
  np.testing.assert_allclose(down, -up, rtol=0, atol=1e-5)
  assert np.all(np.abs(up - exact) > 1e-4)


def test_bad_options_are_refused():
  make = lambda **options: flows.ResidualFlow(2, width=3, rngs=nnx.Rngs(0), **options)
  for options in ({"lipschitz": 1.0}, {"stop": 1.0}, {"num_probes": 3}, {"depth": -1}):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
      make(**options)
  x, probes = jnp.ones((2, 2)), jnp.ones((2, 2, 1))
  with pytest.raises(ValueError, match="num_terms must be"):
    flows.series_log_det(jnp.tanh, x, probes, 0)
  with pytest.raises(ValueError, match="stop must be"):
    flows.roulette_log_det(jax.random.key(0), jnp.tanh, x, probes, stop=0.0)
  with pytest.raises(ValueError, match="probes must have shape"):
    flows.series_log_det(jnp.tanh, x, probes[0])
  with pytest.raises(ValueError, match="residual must return shape"):
    flows.residual_log_det(lambda x: x[:, :1], x)
  with pytest.raises(ValueError, match="x must have shape"):
    flows.residual_log_det(jnp.tanh, x[0])
  with pytest.raises(ValueError, match="flow must have a layer that estimates"):
    flows.with_probes(flows.Tanh(), jax.random.key(0))
  with pytest.raises(ValueError, match=r"flow must be a flows\.Bijector"):
    flows.with_probes(jnp.tanh, jax.random.key(0))
