"""Assembled flows: compile size, autoregressive order, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import flows, models

BUILDERS = {
  "affine_coupling_flow": models.affine_coupling_flow,
  "maf": models.maf,
  "rqs_autoregressive_flow": models.rqs_autoregressive_flow,
  "rqs_coupling_flow": models.rqs_coupling_flow,
}


@pytest.mark.parametrize("name", BUILDERS)
def test_program_does_not_grow_with_depth(name):
  def size(num_layers):
    flow = BUILDERS[name](3, num_layers=num_layers, width=4, depth=1, rngs=nnx.Rngs(0))
    return str(jax.make_jaxpr(flow.log_prob)(jnp.ones((2, 3)))).count("\n")

  assert size(2) == size(24)


def test_made_sees_features_before_only():
  made = flows.MADE(4, 2, width=7, depth=1, rngs=nnx.Rngs(0))
  jacobian = jax.jacrev(lambda x: made(x[None])[0])(jnp.ones(4))  # (feature, parameter, input)
  seen = np.any(jacobian != 0, axis=1)
  np.testing.assert_array_equal(seen, np.tri(4, k=-1, dtype=bool))


def test_memory_does_not_change_gradients():
  x, cond = (
    jax.random.normal(jax.random.key(0), (5, 3)),
    jax.random.normal(jax.random.key(1), (5, 2)),
  )

  def gradients(memory):
    flow = models.rqs_coupling_flow(
      3, num_layers=3, width=4, depth=1, cond_dim=2, memory=memory, rngs=nnx.Rngs(0)
    )
    graphdef, params, rest = nnx.split(flow, nnx.Param, ...)
    move = lambda p: p + 0.3 * jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape)
    loss = lambda p, x, c: jnp.sum(nnx.merge(graphdef, p, rest).log_prob(x, c))
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(jax.tree.map(move, params), x, cond)

  with jax.enable_x64(True):
    stored, rebuilt = (
      [np.asarray(leaf) for leaf in jax.tree.leaves(gradients(memory))]
      for memory in ("store", "reversible")
    )
  for a, b in zip(stored, rebuilt, strict=True):
    assert np.any(a != 0)
    np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * np.max(np.abs(a)))


@pytest.mark.parametrize("name", BUILDERS)
def test_bad_sizes_are_refused(name):
  for options, message in (
    ({"dim": 1 if "coupling" in name else 0}, "dim must be at least"),
    ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
    ({"width": 0}, "width must be at least 1, got 0"),
    ({"depth": 0}, "depth must be at least 1, got 0"),
    ({"memory": "none"}, "memory must be one of"),
  ):
    with pytest.raises(ValueError, match=message):
      BUILDERS[name](**{"dim": 3} | options, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", BUILDERS)
def test_flows_feel_their_condition(name):
  flow = BUILDERS[name](3, num_layers=2, width=4, depth=1, cond_dim=2, rngs=nnx.Rngs(0))
  params = nnx.state(flow, nnx.Param)
  nnx.update(flow, jax.tree.map(lambda p: p + 0.3, params))
  x, cond = jnp.ones((2, 3)), jnp.array([[0.0, 1.0], [2.0, -1.0]])
  log_prob = flow.log_prob(x, cond)
  assert abs(log_prob[0] - log_prob[1]) > 1e-3
  with pytest.raises(ValueError, match="cond must have shape"):
    flow.log_prob(x)


def test_a_new_autoregressive_spline_flow_is_the_identity():
  flow = models.rqs_autoregressive_flow(3, num_layers=2, width=4, depth=1, rngs=nnx.Rngs(0))
  x = 2 * jax.random.normal(jax.random.key(0), (5, 3))  # inside of the box and outside
  assert jnp.abs(x).min() < 3 < jnp.abs(x).max()
  z, log_det = jax.jit(flow.bijector.forward)(x)
  np.testing.assert_allclose(z, x, rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(log_det, 0, atol=1e-5)


def test_layers_of_autoregressive_splines_are_as_asked_for():
  flow = models.rqs_autoregressive_flow(
    4, num_layers=3, width=4, depth=1, num_bins=3, tail_bound=2.0, dropout_rate=0.5,
    rngs=nnx.Rngs(0),
  )  # fmt: skip
  layers = flow.bijector.layers
  assert (layers.transform.num_bins, layers.transform.tail_bound) == (3, 2.0)
  assert jax.tree.leaves(nnx.state(flow, nnx.RngState))  # of dropout
  orders = np.asarray(layers.order[...])
  np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(4), (3, 1)))
  np.testing.assert_array_equal(orders[1], orders[0][::-1])
  assert np.any(orders[2] != orders[0])


@pytest.mark.parametrize(
  "build",
  [
    *(functools.partial(build, width=4, depth=1) for build in BUILDERS.values()),
    models.gaussianization_flow,
    models.ferumal_flow,
  ],
)
def test_parameters_and_samples_have_the_dtype_asked_for(build):
  def run(param_dtype, x):
    flow = build(2, num_layers=1, param_dtype=param_dtype, rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(flow, nnx.Param))
    return params, flow.sample(jax.random.key(0), 2), flow.log_prob(x)

  dtypes = lambda tree: {leaf.dtype.name for leaf in jax.tree.leaves(tree)}
  with jax.enable_x64(True):
    assert dtypes(jax.eval_shape(lambda: run("float64", jnp.ones((2, 2))))) == {"float64"}
  params, *others = jax.eval_shape(lambda: run(jnp.bfloat16, jnp.ones((2, 2))))
  assert (dtypes(params), dtypes(others)) == ({"bfloat16"}, {"float32"})


def test_sampling_takes_a_step_for_each_feature_after_the_first():
  layer = flows.MaskedAutoregressive(5, width=4, depth=1, rngs=nnx.Rngs(0))
  program = jax.make_jaxpr(layer.inverse)(jnp.ones((2, 5)))
  lengths = [e.params["length"] for e in program.eqns if e.primitive.name == "scan"]
  assert lengths == [4]


def test_affine_couplings_transform_every_feature_twice_in_two_pairs():
  flow = models.affine_coupling_flow(5, num_layers=4, width=4, depth=1, rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(0), (3, 5))
  np.testing.assert_allclose(flow.bijector.forward(x)[0], x, rtol=1e-6)  # a new one
  orders = np.asarray(nnx.state(flow, nnx.Not(nnx.Param))["bijector"]["layers"]["order"][...])
  kept = [set(order[:2]) for order in orders]
  assert all(not kept[i] & kept[i + 1] for i in (0, 2))
  with pytest.raises(ValueError, match="scale must be one of"):
    models.affine_coupling_flow(4, scale="cosh", rngs=nnx.Rngs(0))
