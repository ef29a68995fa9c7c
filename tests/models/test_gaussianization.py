"""Gaussianization flows are densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import models


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


def test_bad_sizes_are_refused():
  with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
    models.gaussianization_flow(2, num_layers=0, rngs=nnx.Rngs(0))
