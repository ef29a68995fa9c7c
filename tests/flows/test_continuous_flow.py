"""Continuous flows: known solutions, estimates without bias, gradients, and a missing diffrax."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import linalg

from normjax import flows

MATRIX = np.array([[0.4, -0.9], [0.7, 0.2]])


class LinearVelocity(nnx.Module):
  """dx/dt = 2 t A x for columns x, whose solution is expm(A) x at time 1."""

  def __init__(self, matrix):
    self.matrix = nnx.Param(matrix)

  def __call__(self, t, x, cond):
    return 2 * t * x @ self.matrix[...].T


def _linear(dtype, **options):
  layer = flows.ContinuousFlow(2, width=1, depth=0, rngs=nnx.Rngs(0), **options)
  layer.velocity = LinearVelocity(jnp.asarray(MATRIX, dtype))
  return layer


def test_linear_velocities_give_the_matrix_exponential_and_its_gradient():
  with jax.enable_x64(True):
    layer = _linear(jnp.float64)
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)
    x = jnp.asarray([[1.0, -2.0], [0.3, 1e4], [1e-30, 0.0]])

    @jax.jit
    def run(params, x):
      merge = lambda params: nnx.merge(graphdef, params, rest)
      z, log_det = merge(params).forward(x)
      loss = lambda params: jnp.sum(merge(params).forward(x[:1])[0])
      return z, log_det, merge(params).inverse(z), jax.grad(loss)(params)

    z, log_det, (again, back), gradient = jax.tree.map(np.asarray, run(params, x))
    exponential, x = linalg.expm(MATRIX), np.asarray(x)
  np.testing.assert_allclose(z, x @ exponential.T, rtol=1e-9, atol=1e-9)
  np.testing.assert_allclose(log_det, np.trace(MATRIX), rtol=1e-9)
  np.testing.assert_allclose(again, x, rtol=1e-9, atol=1e-9)
  np.testing.assert_allclose(back, -log_det, rtol=1e-9)
  direction = np.random.default_rng(0).standard_normal((2, 2))
  pushed = linalg.expm_frechet(MATRIX, direction, compute_expm=False) @ x[0]
  np.testing.assert_allclose(
    np.sum(jax.tree.leaves(gradient)[0] * direction), np.sum(pushed), rtol=1e-8
  )


def test_probes_estimate_the_trace_without_bias():
  layer = _linear(jnp.float32)
  x = jnp.array([[1.0, -2.0]])
  keys = jax.random.split(jax.random.key(0), 500)
  estimate = lambda key: flows.with_probes(layer, key).forward(x)
  # As many orthogonal probes as there are features leave nothing to chance.
  full = flows.with_probes(_linear(jnp.float32, num_probes=2), keys[0])

  @jax.jit
  def run(keys):
    return jax.lax.map(estimate, keys), layer.forward(x), full.forward(x)

  (z, log_det), exact, (_, full_log_det) = run(keys)
  np.testing.assert_allclose(z[:, 0], np.broadcast_to(exact[0], (500, 2)), rtol=1e-4)
  error = np.std(log_det) / np.sqrt(500)
  assert 0 < error < 0.05
  assert abs(np.mean(log_det) - exact[1][0]) < 4 * error
  np.testing.assert_allclose(full_log_det, exact[1], rtol=1e-5)


def test_no_finite_number_gives_nan():
  layer = flows.ContinuousFlow(2, width=3, depth=0, rngs=nnx.Rngs(0))
  layer.velocity.last.kernel[...] = jnp.ones((3, 2))
  extremes = np.array([0, 1e-38, 1e-30, 1e-7, 0.5, 1, 9, 1e4, 1e30], np.float32)
  x = jnp.asarray(np.concatenate([-extremes, extremes]).reshape(-1, 2))

  @jax.jit
  def run(x):
    outputs = []
    for direction in (layer.forward, layer.inverse):
      (y, log_det), vjp = jax.vjp(direction, x)
      outputs += [y, log_det, *vjp((jnp.ones_like(y), jnp.ones_like(log_det)))]
    return outputs

  assert all(np.all(np.isfinite(output)) for output in run(x))


def test_a_solution_that_needs_more_steps_is_nan():
  z, log_det = jax.jit(_linear(jnp.float32, max_steps=2).forward)(jnp.ones((1, 2)))
  assert np.all(np.isnan(z))
  assert np.all(np.isnan(log_det))


def test_a_missing_diffrax_and_bad_options_are_refused(monkeypatch):
  make = lambda **options: flows.ContinuousFlow(2, rngs=nnx.Rngs(0), **options)
  for options in ({"tolerance": 0.0}, {"num_probes": 3}, {"depth": -1}, {"max_steps": 0}):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
      make(**options)
  monkeypatch.setitem(sys.modules, "diffrax", None)
  with pytest.raises(ImportError, match="pip install diffrax"):
    make()
