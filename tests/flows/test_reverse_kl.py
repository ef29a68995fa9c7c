"""Flows fitted to energies: estimators against each other, closed forms and quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special, stats

from normjax import flows

KEY, N = jax.random.key(0), 64


@pytest.fixture(autouse=True)
def _x64():
  with jax.enable_x64(True):
    yield


def _flow(loc, log_scale):
  base = flows.DiagonalNormal((2,), param_dtype="float64")
  base.loc[...], base.log_scale[...] = jnp.asarray(loc), jnp.asarray(log_scale)
  return flows.Flow(flows.ElementwiseAffine([0.5, -1.0], [2.0, 0.5]), base)


def _energy(x):
  return jnp.sum(jnp.cosh(x), axis=1)


def _gradient(flow, estimate):
  graphdef, params, rest = nnx.split(flow, nnx.Param, ...)
  params = nnx.to_pure_dict(params)
  run = lambda params: estimate(nnx.merge(graphdef, params, rest))
  return jax.jit(lambda params: (run(params), jax.jacrev(run)(params)))(params)


@pytest.mark.parametrize("graph", [True, False])
def test_path_derivative_is_the_gradient_without_the_score(graph):
  with nnx.set_graph_mode(graph), nnx.set_graph_updates(graph):
    flow = _flow([0.3, -0.2], [0.1, -0.5])
    x = flow.sample(KEY, N)
    expected = jnp.mean(flow.log_prob(x) + _energy(x))
    run = lambda **options: _gradient(
      flow, lambda flow: flows.reverse_kl(flow, _energy, KEY, N, **options)
    )
    (loss, plain), (same, path) = run(), run(path_derivative=True)
    _, score = _gradient(flow, lambda flow: jnp.mean(flow.log_prob(x)))
  np.testing.assert_allclose([loss, same], expected, rtol=1e-10)
  # x = 2 z + 0.5 etc. with z = loc + s eps: the gradient by hand, through x alone for the energy.
  scale = np.array([2.0, 0.5])
  slope = np.mean(np.sinh(x), axis=0) * scale
  np.testing.assert_allclose(plain["base"]["loc"], slope, rtol=1e-10)
  for name in ("loc", "log_scale"):
    np.testing.assert_allclose(
      plain["base"][name], path["base"][name] + score["base"][name], rtol=1e-9, atol=1e-12
    )
  assert np.all(np.abs(score["base"]["loc"]) > 1e-3)


def test_path_derivative_of_every_draw_is_zero_at_the_optimum():
  flow = _flow([0.3, -0.2], [0.1, -0.5])
  target = _flow([0.3, -0.2], [0.1, -0.5])
  energy = lambda x: 3.0 - target.log_prob(x)
  weights = lambda **options: _gradient(
    flow, lambda flow: flows.importance_log_weights(flow, energy, KEY, N, **options)
  )
  (log_w, path), (_, plain) = weights(path_derivative=True), weights()
  np.testing.assert_allclose(log_w, -3, rtol=1e-12)
  for leaf in jax.tree.leaves(path):
    np.testing.assert_allclose(leaf, 0, atol=1e-12)
  assert np.std(plain["base"]["loc"]) > 0.1
  np.testing.assert_allclose(flows.effective_sample_size(log_w), N, rtol=1e-12)


class _Given(flows.Distribution):
  """N(loc, exp(log_scale)^2), with standard normal numbers (n,) in place of a key."""

  def __init__(self):
    self.loc, self.log_scale = nnx.Param(jnp.full((), 0.5)), nnx.Param(jnp.full((), -0.2))

  def log_prob(self, z, cond=None):
    return jax.scipy.stats.norm.logpdf(z, self.loc[...], jnp.exp(self.log_scale[...]))

  def sample(self, key, n, cond=None, temperature=1.0):
    return self.loc[...] + jnp.exp(self.log_scale[...]) * key


def test_path_weights_give_the_gradient_of_every_bound():
  # The mean over all pairs of draws by the trapezoidal rule, exact to rounding.
  steps = np.linspace(-9, 9, 121)
  pairs = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)
  density = np.prod(stats.norm.pdf(pairs), axis=1) * (steps[1] - steps[0]) ** 2
  alphas = (0.0, 0.3, 1.0, 1.5)
  graphdef, params = nnx.split(_Given())
  ways = [(False, False), (True, True), (True, False)]

  def run(eps):
    def bounds(params):
      flow = nnx.merge(graphdef, params)
      energy = lambda x: (x - 0.1) ** 2 / 2
      weights = lambda path: flows.importance_log_weights(
        flow, energy, eps, 2, path_derivative=path
      )
      log_w = [weights(False), weights(True)]
      bound = lambda alpha, path, told: flows.renyi_bound(log_w[path], alpha, path_derivative=told)
      return jnp.stack([jnp.stack([bound(a, *way) for way in ways]) for a in alphas])

    return bounds(params), nnx.to_pure_dict(jax.jacrev(bounds)(params))

  values, gradients = jax.jit(jax.vmap(run))(jnp.asarray(pairs))
  np.testing.assert_allclose(values, np.repeat(values[:, :, :1], 3, axis=2), rtol=1e-12)
  for gradient in map(np.asarray, gradients.values()):  # (pairs, alphas, ways)
    mean = np.einsum("p,paw->aw", density, gradient)
    noise = np.sqrt(np.einsum("p,paw->aw", density, (gradient - mean) ** 2))
    np.testing.assert_allclose(mean[:, 1], mean[:, 0], rtol=1e-8)
    assert np.all(noise[:, 1] < 0.8 * noise[:, 0])
    untold = np.abs(mean[:, 2] - mean[:, 0])
    assert np.all(np.delete(untold, 2) > 0.05)
    assert untold[2] < 1e-8  # alpha = 1


@pytest.mark.parametrize("name", flows.POTENTIALS)
def test_importance_sampling_finds_the_partition_function_of_the_potentials(name):
  # U2 to U4 do not decay along their wave: a bowl bounds them.
  energy = lambda x: flows.POTENTIALS[name](x) + jnp.sum(x**2, axis=1) / 8
  proposal = flows.DiagonalNormal((2,), param_dtype="float64")
  proposal.log_scale[...] = jnp.full(2, np.log(2.0))
  n = 40_000

  @jax.jit
  def run():
    log_w = flows.importance_log_weights(proposal, energy, KEY, n)
    bounds = [flows.renyi_bound(log_w, alpha) for alpha in (0.0, 0.5, 1.0)]
    loss = flows.reverse_kl(proposal, energy, KEY, n)
    steps = jnp.linspace(-12, 12, 601)
    grid = jnp.stack(jnp.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)
    log_z = jax.nn.logsumexp(-energy(grid)) + 2 * jnp.log(steps[1] - steps[0])
    return bounds, loss, flows.effective_sample_size(log_w), log_z

  bounds, loss, size, log_z = map(np.asarray, run())
  assert 100 < size < n
  np.testing.assert_allclose(bounds[0], log_z, rtol=0, atol=4 / np.sqrt(size))
  assert bounds[0] > bounds[1] > bounds[2]
  np.testing.assert_allclose(bounds[2], -loss, rtol=1e-12)


def test_bounds_and_sample_sizes_of_given_weights():
  log_w = np.random.default_rng(0).normal(size=50) * 3
  w = np.exp(log_w)
  weights = jnp.asarray(log_w)
  np.testing.assert_allclose(flows.effective_sample_size(weights), w.sum() ** 2 / (w**2).sum())
  far = flows.effective_sample_size(weights + 1e4)  # weights beyond floating point
  np.testing.assert_allclose(far, w.sum() ** 2 / (w**2).sum(), rtol=1e-9)
  np.testing.assert_allclose(flows.renyi_bound(weights), special.logsumexp(log_w) - np.log(50))
  np.testing.assert_allclose(flows.renyi_bound(weights, 0.5), 2 * np.log(np.mean(w**0.5)))
  near, one = flows.renyi_bound(weights, 1 - 1e-7), flows.renyi_bound(weights, 1.0)
  np.testing.assert_allclose(near, one, rtol=1e-5)


def test_reverse_kl_is_the_divergence_of_gaussians():
  flow, n = _flow([0.3, -0.2], [0.1, -0.5]), 40_000
  loc, scale = np.array([1.1, -1.1]), np.exp([0.1, -0.5]) * [2.0, 0.5]
  energy = lambda x: jnp.sum(x**2, axis=1) / 2
  closed = np.sum((loc**2 + scale**2) / 2 - stats.norm(0, scale).entropy())
  log_w = flows.importance_log_weights(flow, energy, KEY, n)
  error = np.std(log_w) / np.sqrt(n)
  np.testing.assert_allclose(-np.mean(log_w), closed, rtol=0, atol=4 * error)


def test_conditions_reach_the_flow_and_bad_arguments_are_refused():
  base = flows.ClassConditionalNormal((2,), 3, param_dtype="float64")
  base.loc[...] = 10 * jnp.arange(8.0).reshape(4, 2)
  cond = jnp.array([0, 2, 3])
  log_w = flows.importance_log_weights(base, lambda x: x[:, 0], KEY, 3, cond)
  x = base.sample(KEY, 3, cond)
  np.testing.assert_allclose(log_w, -x[:, 0] - base.log_prob(x, cond), rtol=1e-12)
  normal = flows.StandardNormal((2,))
  with pytest.raises(ValueError, match=r"energy must return shape \(3,\) for x of shape \(3, 2\)"):
    flows.reverse_kl(normal, lambda x: x, KEY, 3)
  with pytest.raises(ValueError, match="n must be an int"):
    flows.reverse_kl(normal, _energy, KEY, 0)
  for bad in (jnp.zeros(()), jnp.zeros((0,)), jnp.zeros((2, 2))):
    for function in (flows.renyi_bound, flows.effective_sample_size):
      with pytest.raises(ValueError, match=r"log_weights must have shape \(n,\) with n >= 1"):
        function(bad)
  with pytest.raises(ValueError, match="alpha must be finite"):
    flows.renyi_bound(jnp.zeros(3), float("inf"))
