"""Dropout in the networks of flows: masks that only reseeding changes, in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import flows, models


def _moved(flow):
  rng = np.random.default_rng(0)
  move = lambda p: p + jnp.asarray(0.3 * rng.standard_normal(p.shape), p.dtype)
  nnx.update(flow, jax.tree.map(move, nnx.state(flow, nnx.Param)))
  return flow


def test_masks_change_by_reseeding_only():
  flow = _moved(
    models.rqs_coupling_flow(
      4, num_layers=2, width=16, depth=1, num_bins=2, dropout_rate=0.5, memory="reversible",
      rngs=nnx.Rngs(0),
    )
  )  # fmt: skip
  x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 4)), jnp.float32)
  graphdef, params, rest = nnx.split(flow, nnx.Param, ...)

  @jax.jit
  def run(params, rest, key):
    flow = nnx.merge(graphdef, params, rest, copy=True)
    nnx.reseed(flow, dropout=key, policy="match_shape")

    def loss(params):
      flow_ = nnx.merge(graphdef, params, nnx.split(flow, nnx.Param, ...)[2], copy=True)
      z, log_det = flow_.bijector.forward(x)
      return jnp.sum(z**2) + jnp.sum(log_det), (z, flow_.bijector.inverse(z)[0])

    gradients, (z, back) = jax.grad(loss, has_aux=True)(params)
    return z, back, gradients

  one, again, other = (run(params, rest, jax.random.key(seed)) for seed in (1, 1, 2))
  for _, back, gradients in (one, other):
    np.testing.assert_allclose(back, x, atol=1e-4)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))
  np.testing.assert_array_equal(one[0], again[0])
  assert np.all(np.max(np.abs(one[0] - other[0]), axis=1) > 1e-3)  # every example has its mask


def test_evaluation_keeps_all_units():
  layer = flows.AffineCoupling(jnp.arange(4), width=8, depth=1, dropout_rate=0.5, rngs=nnx.Rngs(0))
  plain = flows.AffineCoupling(jnp.arange(4), width=8, depth=1, rngs=nnx.Rngs(0))
  layer, plain = _moved(layer), _moved(plain)
  x = jnp.ones((2, 4))
  assert np.any(layer.forward(x)[0] != plain.forward(x)[0])
  layer.eval()
  nnx.update(layer, nnx.state(plain, nnx.Param))
  np.testing.assert_array_equal(layer.forward(x)[0], plain.forward(x)[0])
  assert not jax.tree.leaves(nnx.state(plain, nnx.RngState))


def test_dropped_units_are_scaled():
  layer = flows.MADE(2, 1, width=400, depth=1, residual=False, dropout_rate=0.25, rngs=nnx.Rngs(0))
  dropout = nnx.merge(*nnx.split(layer)).blocks.blocks.dropout
  stream = nnx.state(dropout, nnx.RngState)
  graphdef, state = nnx.split(dropout)
  one = nnx.merge(graphdef, jax.tree.map(lambda v: v[0], state))
  kept = one(jnp.ones((10, 400)))
  assert set(np.unique(kept)) == {0.0, np.float32(1 / 0.75)}
  np.testing.assert_allclose(np.mean(kept), 1, atol=0.03)
  assert jax.tree.leaves(stream)
  assert nnx.view(one, deterministic=True)(jnp.ones(3)).tolist() == [1, 1, 1]
  with pytest.raises(ValueError, match=r"dropout_rate must be in \[0, 1\), got 1"):
    flows.MADE(2, 1, dropout_rate=1, rngs=nnx.Rngs(0))
