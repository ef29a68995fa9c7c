"""Autoregression along graphs: what depends on what, and inverses by generations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import flows

# 3 -> 1 -> 0 and 3 -> 2; 4 alone.
GRAPH = np.zeros((5, 5), bool)
GRAPH[1, 3] = GRAPH[0, 1] = GRAPH[2, 3] = True


def _moved(layer):
  rng = np.random.default_rng(0)
  move = lambda p: jnp.asarray(p + 0.4 * rng.standard_normal(p.shape), p.dtype)
  nnx.update(layer, jax.tree.map(move, nnx.state(layer, nnx.Param)))
  return layer


def test_features_depend_on_their_parents_and_the_condition():
  options = {"width": 40, "depth": 1, "residual": False, "cond_dim": 2, "rngs": nnx.Rngs(0)}
  layer = _moved(flows.MaskedAutoregressive(5, adjacency=GRAPH.tolist(), **options))
  assert layer.generations == (2, 1, 1, 0, 0)
  x, cond = jnp.linspace(-1, 1, 5), jnp.array([0.5, -0.3])
  z_of = lambda x, cond: layer.forward(x[None], cond[None])[0][0]

  @jax.jit
  def run(x, cond):
    z, log_det = layer.forward(x[None], cond[None])
    back, down = layer.inverse(z, cond[None])
    program = jax.make_jaxpr(layer.inverse)(z, cond[None])
    assert sum(eqn.params.get("length") == 3 for eqn in program.eqns) == 1  # a pass for each
    return jax.jacrev(z_of, argnums=(0, 1))(x, cond), back[0], log_det + down

  (by_x, by_cond), back, difference = run(x, cond)
  np.testing.assert_array_equal(by_x != 0, GRAPH | np.eye(5, dtype=bool))
  assert np.all(by_cond != 0)
  np.testing.assert_allclose(back, x, atol=1e-5)
  np.testing.assert_allclose(difference, 0, atol=1e-5)


def test_the_graph_of_an_order_is_the_order():
  graph = np.tri(4, k=-1, dtype=bool)
  ordered, along = (
    _moved(flows.MaskedAutoregressive(4, width=7, depth=1, rngs=nnx.Rngs(0), **options))
    for options in ({}, {"adjacency": graph})
  )
  z = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)), jnp.float32)
  for method in ("forward", "inverse"):
    for a, b in zip(getattr(ordered, method)(z), getattr(along, method)(z), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_without_edges_every_feature_is_alone():
  layer = flows.MaskedAutoregressive(3, adjacency=np.zeros((3, 3), bool), rngs=nnx.Rngs(0))
  jacobian = jax.jacrev(lambda x: layer.forward(x[None])[0][0])(jnp.ones(3))
  np.testing.assert_array_equal(jacobian != 0, np.eye(3, dtype=bool))


def test_bad_graphs_are_refused():
  make = lambda **options: flows.MaskedAutoregressive(2, rngs=nnx.Rngs(0), **options)
  one = np.array([[False, True], [False, False]])
  for adjacency, match in [
    (one | one.T, r"adjacency must have no cycle, .* got one among the features \[0, 1\]"),
    (np.eye(2, dtype=bool), "adjacency must have no cycle"),
    (one.astype(int), r"adjacency must be booleans of shape \(2, 2\), got int64 \(2, 2\)"),
    (one[:1], r"adjacency must be booleans of shape \(2, 2\), got bool \(1, 2\)"),
  ]:
    with pytest.raises(ValueError, match=match):
      make(adjacency=adjacency)
  with pytest.raises(ValueError, match="order must be None where there is an adjacency"):
    make(adjacency=one, order=jnp.arange(2))
  with pytest.raises(ValueError, match=r"adjacency must be booleans of shape \(2, 2\)"):
    flows.MADE(2, 1, adjacency=one[:1], rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="adjacency must be known, got a traced array"):
    jax.jit(lambda adjacency: make(adjacency=adjacency).order[...])(one)
