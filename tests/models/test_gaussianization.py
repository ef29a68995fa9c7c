"""Gaussianization flows are densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from normjax import flows, models


def test_the_density_integrates_to_one():
  flow = models.gaussianization_flow(2, num_layers=2, num_components=3, rngs=nnx.Rngs(0))
  rng = np.random.default_rng(0)
  move = lambda p: p + 0.5 * jnp.asarray(rng.standard_normal(p.shape), p.dtype)
  nnx.update(flow, jax.tree.map(move, nnx.state(flow, nnx.Param)))
  # Tails are as heavy as exp(-sqrt(|x|)), so the integral is over arcsinh(x).
  u = np.stack(np.meshgrid(*2 * [np.linspace(-9, 9, 361)]), axis=-1).reshape(-1, 2)
  grid = jnp.asarray(np.sinh(u), jnp.float32)
  density = np.exp(jax.jit(flow.log_prob)(grid), dtype=np.float64)
  np.testing.assert_allclose(np.sum(density * np.cosh(u).prod(axis=1)) * 0.05**2, 1, rtol=1e-3)
  # It is not the normal density that it would be with identity layers.
  assert np.max(np.abs(density - np.exp(-np.sum(grid**2, axis=1) / 2) / (2 * np.pi))) > 0.01


def test_a_start_from_data_is_a_density_of_them():
  rng = np.random.default_rng(1)
  modes = rng.choice([-1.0, 1.0], (2000, 1)) * [1.2, 0.8]
  x = jnp.asarray(modes + 0.3 * rng.standard_normal((2000, 2)), jnp.float32)
  flow = models.gaussianization_flow(2, num_layers=3, rngs=nnx.Rngs(0))
  start = jax.jit(flows.init_from_data)

  @jax.jit
  def evaluate(flow):
    z, log_det = flow.bijector.forward(x)
    return -(flow.base.log_prob(z) + log_det).mean(), z

  new = start(flow, x)
  again = start(new, x)
  (untouched, _), (started, z) = evaluate(flow), evaluate(new)
  for one, other in zip(*(jax.tree.leaves(nnx.state(f)) for f in (new, again)), strict=True):
    np.testing.assert_array_equal(one, other)
  rotations = (f.bijector.layers.bijectors[0].vectors[...] for f in (flow, new))
  np.testing.assert_array_equal(*rotations)
  # The entropy of two normal densities of this deviation, far from each other.
  entropy = np.log(2 * np.pi * np.e * 0.3**2) + np.log(2)
  assert entropy < started < entropy + 0.2 < untouched - 1
  for marginal in np.asarray(z).T:
    assert stats.ks_1samp(marginal, stats.norm.cdf).statistic < 0.05


def test_bad_sizes_are_refused():
  with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
    models.gaussianization_flow(2, num_layers=0, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
    models.gaussianization_flow(0, rngs=nnx.Rngs(0))
