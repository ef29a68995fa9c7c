"""Planar, radial, Sylvester, Householder flows: matrices, constraints, and extreme values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import flows

EXTREMES = jnp.asarray([0, 1e-30, -1, -1e4, 1e30], jnp.float32)


def _softplus(a):
  return np.logaddexp(a, 0)


def test_planar_is_its_equation():
  rng = np.random.default_rng(0)
  x, w, u = rng.normal(size=(5, 3)), rng.normal(size=3), -5 * rng.normal(size=3)
  bias = 0.3
  # m(a) = (1 - l) (softplus(a + log(e - 1)) - 1), v.w = m(u.w), and v differs from u along w only.
  m = 0.999 * (_softplus(w @ u + np.log(np.e - 1)) - 1)
  v = u + (m - w @ u) * w / (w @ w)
  expected = x + v * np.tanh(x @ w + bias)[:, None]
  with jax.enable_x64(True):
    arguments = [jnp.asarray(a) for a in (x, w, u, bias)]
    z, log_det = flows.planar(*arguments)
    back, _ = flows.planar_inverse(jnp.asarray(expected), *arguments[1:])
  np.testing.assert_allclose(z, expected, rtol=1e-12)
  np.testing.assert_allclose(log_det, np.log(1 + m / np.cosh(x @ w + bias) ** 2), rtol=1e-11)
  np.testing.assert_allclose(back, x, rtol=1e-11)


def test_small_parameters_take_the_series():
  """m(a) of the flows near zero is what it is beyond the threshold of its series."""
  with jax.enable_x64(True):
    x, zeros = jnp.zeros((4, 1)), jnp.zeros(4)
    a = np.array([1e-3, -9.99e-3, 1.01e-2, -0.3])
    # At x = 0 and bias = 0 the log-determinant of a planar flow is log(1 + m(w u)).
    _, log_det = flows.planar(x, jnp.ones((4, 1)), jnp.asarray(a)[:, None], zeros)
  m = 0.999 * np.log1p((1 - np.exp(-1)) * np.expm1(a))
  np.testing.assert_allclose(np.expm1(log_det), m, rtol=1e-12)


def test_radial_is_its_equation():
  rng = np.random.default_rng(0)
  x, center = rng.normal(size=(5, 3)), rng.normal(size=3)
  for raw_beta in (-9.0, 2.0):
    alpha = _softplus(0.4) + 1e-3
    beta = alpha * 0.999 * (_softplus(raw_beta + np.log(np.e - 1)) - 1)
    r = np.linalg.norm(x - center, axis=1)
    expected = x + (beta / (alpha + r))[:, None] * (x - center)
    h = 1 / (alpha + r)
    log_det = 2 * np.log(1 + beta * h) + np.log(1 + beta * h - beta * r * h**2)
    with jax.enable_x64(True):
      arguments = [jnp.asarray(a) for a in (center, 0.4, raw_beta)]
      z, found = flows.radial(jnp.asarray(x), *arguments)
      back, _ = flows.radial_inverse(jnp.asarray(expected), *arguments)
    np.testing.assert_allclose(z, expected, rtol=1e-12)
    np.testing.assert_allclose(found, log_det, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(back, x, rtol=1e-9)


def test_one_sylvester_plane_is_planar():
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    x, w, u = (jnp.asarray(rng.normal(size=s)) for s in ((5, 3), 3, 1))
    length, bias = jnp.linalg.norm(w), jnp.asarray(0.2)
    # v = u w / |w| with u.w = m: planar's direction, if u is along w from the start.
    m = 0.999 * (jnp.logaddexp(u[0] * length + jnp.log(jnp.e - 1), 0) - 1)
    planar = flows.planar(x, w, u * w / length, bias)
    q, one = (w / length)[:, None], jnp.ones((1, 1))
    parameters = q, m / length * one, length * one, bias[None]
    sylvester = flows.sylvester(x, *parameters)
    back = flows.sylvester_inverse(sylvester[0], *parameters)[0]
  for a, b in zip(planar, sylvester, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
  np.testing.assert_allclose(back, x, rtol=1e-11)


def test_sylvester_reads_triangles_only():
  full = jnp.full((2, 2), 0.5)
  arguments = jnp.eye(2), jnp.zeros(2)
  x = jnp.array([[0.3, -0.4]])
  one = flows.sylvester(x, arguments[0], full, full, arguments[1])
  other = flows.sylvester(x, arguments[0], jnp.triu(full), jnp.triu(full), arguments[1])
  np.testing.assert_array_equal(one[0], other[0])


LAYERS = {
  "householder": lambda: flows.HouseholderFlow(2, rngs=nnx.Rngs(0)),
  "planar": lambda: flows.PlanarFlow(2, rngs=nnx.Rngs(0)),
  "radial": lambda: flows.RadialFlow(2, rngs=nnx.Rngs(0)),
  "sylvester": lambda: flows.SylvesterFlow(2, rngs=nnx.Rngs(0)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_nothing_is_nan_at_extreme_values(name):
  """Inputs of every size, and parameters of every size: outputs and gradients stay numbers."""
  graphdef, state = nnx.split(LAYERS[name]())
  pairs = jnp.stack(jnp.meshgrid(EXTREMES, EXTREMES), axis=-1).reshape(-1, 2)

  def loss(state, x):
    layer = nnx.merge(graphdef, state)
    (z, up), (back, down) = layer.forward(x), layer.inverse(x)
    total = jnp.sum(jnp.where(jnp.abs(z) < 1e10, z, 0)) + jnp.sum(up) + jnp.sum(down)
    return total + jnp.sum(jnp.where(jnp.abs(back) < 1e10, back, 0)), (z, up, back, down)

  run = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
  for scale in (0.0, 1e-30, 1.0, -40.0, 1e4):
    outputs = run(jax.tree.map(lambda p, s=scale: jnp.full_like(p, s), state), pairs)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(outputs)), scale


def test_new_layers_are_the_identity():
  x = jnp.array([[0.3, -2.0]])
  for name in LAYERS.keys() - {"householder"}:
    z, log_det = LAYERS[name]().forward(x)
    np.testing.assert_allclose(z, x, atol=1e-6)
    np.testing.assert_allclose(log_det, 0, atol=1e-6)


def test_householder_reflects_each_example_by_its_own_matrix():
  rng = np.random.default_rng(0)
  x, vectors = rng.normal(size=(4, 3)), rng.normal(size=(4, 2, 3))
  vectors[1] *= 1e-30
  vectors[2, 0] = 0
  expected = np.empty_like(x)
  for row, (first, second) in enumerate(vectors):
    mirror = lambda v: np.eye(3) - 2 * np.outer(v, v) / np.where(np.any(v), v @ v, 1)
    expected[row] = x[row] @ mirror(first) @ mirror(second)
  with jax.enable_x64(True):
    z, log_det = flows.householder(jnp.asarray(x), jnp.asarray(vectors))
    back, _ = flows.householder_inverse(jnp.asarray(expected), jnp.asarray(vectors))
  np.testing.assert_allclose(z, expected, rtol=1e-12)
  np.testing.assert_allclose(back, x, rtol=1e-12)
  np.testing.assert_array_equal(log_det, 0)
  # Without a condition it is the linear layer of the same vectors.
  flow = flows.HouseholderFlow(3, rngs=nnx.Rngs(0))
  linear = flows.HouseholderLinear(3, rngs=nnx.Rngs(1))
  linear.vectors[...] = flow.parameters.values["vectors"][...]
  x = jnp.asarray(x, jnp.float32)
  np.testing.assert_allclose(flow.forward(x)[0], linear.forward(x)[0], rtol=1e-5, atol=1e-6)


def test_bad_arguments_are_refused():
  x, zero = jnp.ones((2, 3)), jnp.zeros(())
  with pytest.raises(ValueError, match=r"w must have shape \(3,\) or \(2, 3\), got \(2,\)"):
    flows.planar(x, jnp.ones(2), jnp.ones(3), zero)
  with pytest.raises(ValueError, match=r"bias must have shape \(\) or \(2,\), got \(3,\)"):
    flows.planar(x, jnp.ones(3), jnp.ones(3), jnp.ones(3))
  with pytest.raises(ValueError, match="center must have shape"):
    flows.radial(x, jnp.ones(2), zero, zero)
  with pytest.raises(ValueError, match="raw_beta must have shape"):
    flows.radial(x, jnp.ones(3), zero, jnp.ones(3))
  with pytest.raises(ValueError, match=r"q must have shape \(3, 2\), got \(2, 2\)"):
    flows.sylvester(x, jnp.eye(2), jnp.eye(2), jnp.eye(2), jnp.zeros(2))
  for shape in ((3,), (2, 2), (3, 2, 3), (1, 2, 2, 3)):
    with pytest.raises(ValueError, match=r"vectors must have shape \(k, 3\) or \(2, k, 3\)"):
      flows.householder(x, jnp.ones(shape))
  with pytest.raises(ValueError, match="num_reflections must be at least 1, got 0"):
    flows.HouseholderFlow(3, num_reflections=0, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="num_planes must be 1 to features = 3, got 4"):
    flows.SylvesterFlow(3, num_planes=4, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="features must be at least 1, got 0"):
    flows.PlanarFlow(0, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="cond_dim must be at least 1, got 0"):
    flows.RadialFlow(2, cond_dim=0, rngs=nnx.Rngs(0))
