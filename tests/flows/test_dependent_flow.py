"""Flows of dependent examples: the joint density, and a correlation that is learned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from normjax import flows

BLOCKS = np.array([0, 1, 0, 2, 0, 1])


def flow_of(dim=2, **options):
  affine = flows.ElementwiseAffine(loc=1.0, scale=0.5)
  return flows.DependentFlow(flows.Flow(affine, flows.StandardNormal((dim,))), **options)


def test_the_joint_is_that_of_correlated_normals():
  with jax.enable_x64(True):
    x = np.random.default_rng(0).normal(size=(6, 2))
    flow = flow_of(rho=[0.7, 0.3, 0.5], speed=4.0, param_dtype=jnp.float64)
    np.testing.assert_allclose(flow.rho, [0.7, 0.3, 0.5], rtol=1e-12)
    joint = np.asarray(flow.joint_log_prob(jnp.asarray(x), BLOCKS))
    part = flow.joint_log_prob(jnp.asarray(x[[4, 0]]), BLOCKS, index=jnp.array([4, 0]))
    (z, log_det), plain = flow.flow.bijector.forward(jnp.asarray(x)), flow.log_prob(jnp.asarray(x))
    expected = np.asarray(flows.block_log_prob(z, BLOCKS, jnp.array([0.7, 0.3, 0.5])) + log_det)
    rows = flows.block_log_prob(z[jnp.array([4, 0])], BLOCKS, flow.rho, index=jnp.array([4, 0]))
    ordinary, part, rows = (np.asarray(v) for v in (flow.flow.log_prob(jnp.asarray(x)), part, rows))
  np.testing.assert_allclose(joint, expected, rtol=1e-12)
  np.testing.assert_allclose(part, rows + np.asarray(log_det)[:2], rtol=1e-12)
  np.testing.assert_array_equal(plain, ordinary)
  assert abs(joint - ordinary).max() > 0.1


def test_rho_is_a_parameter_unless_it_is_fixed():
  free, fixed = flow_of(rho=0.9), flow_of(rho=0.9, trainable=False)
  assert float(free.rho) == pytest.approx(0.9)
  assert len(jax.tree.leaves(nnx.state(free, nnx.Param))) == 1
  assert not jax.tree.leaves(nnx.state(fixed, nnx.Param))
  samples = free.sample(jax.random.key(0), 4, temperature=0.5)
  np.testing.assert_array_equal(samples, free.flow.sample(jax.random.key(0), 4, temperature=0.5))


def test_correlations_are_recovered():
  """The likelihood of many small blocks finds their correlation."""
  key, block_id = jax.random.key(0), jnp.arange(900) // 3
  z = flows.dependent_normals(key, block_id, jnp.full(300, 0.8))
  graphdef, params, rest = nnx.split(flow_of(speed=5.0), nnx.Param, ...)
  optimizer = optax.adam(0.02)

  def loss(params):
    flow = nnx.merge(graphdef, params, rest)
    x, _ = flow.flow.bijector.inverse(z)
    return -flow.joint_log_prob(x, block_id).mean()

  @jax.jit
  def learn(params):
    def step(carry, _):
      params, state = carry
      updates, state = optimizer.update(jax.grad(loss)(params), state)
      return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), None, 60)[0][0]

  assert float(nnx.merge(graphdef, learn(params), rest).rho) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"rho": 0.0}, "rho must be between 0 and 1, a scalar or"),
    ({"rho": [0.5, 1.0]}, "rho must be between 0 and 1"),
    ({"rho": [[0.5]]}, "rho must be between 0 and 1"),
    ({"speed": 0.0}, "speed must be above 0 and finite, got 0.0"),
  ],
)
def test_wrong_numbers(options, message):
  with pytest.raises(ValueError, match=message):
    flow_of(**options)


def test_other_flows_are_refused():
  affine = flows.ElementwiseAffine(loc=1.0, scale=2.0)
  for base in (flows.StandardNormal((2, 2)), flows.Laplace((2,))):
    with pytest.raises(ValueError, match="flow's base must be a StandardNormal of vectors"):
      flows.DependentFlow(flows.Flow(affine, base))
  with pytest.raises(ValueError, match="flow must be a flows.Flow, got"):
    flows.DependentFlow(affine)
