"""Flows as samplers know them: shapes, densities, and energies of latents."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import flows

KEY = jax.random.key(0)


def _flow():
  base = flows.MultivariateNormal((2,))
  base.lower[...] = jnp.array([[0.0, 0.0], [3.0, 0.0]])
  return flows.Flow(flows.ElementwiseAffine([1.0, 2.0], [2.0, 0.3]), base)


def test_sampler_takes_any_leading_shape():
  flow = _flow()
  sampler = flows.Sampler(flow)
  assert (sampler.event_shape, sampler.batch_shape) == ((2,), ())
  x, log_prob = sampler.sample_and_log_prob(KEY, (4, 3))
  np.testing.assert_array_equal(x.reshape(12, 2), flow.sample(KEY, 12))
  np.testing.assert_allclose(log_prob.reshape(12), flow.log_prob(x.reshape(12, 2)), rtol=1e-5)
  np.testing.assert_array_equal(
    sampler.sample(seed=KEY, sample_shape=np.int64(12)), x.reshape(12, 2)
  )
  with pytest.raises(ValueError, match="n must be an int of at least 1, got 2.5"):
    sampler.sample(KEY, 2.5)
  np.testing.assert_allclose(sampler.log_prob(x), log_prob, rtol=1e-5)
  np.testing.assert_allclose(sampler.log_prob(x[1, 2]), log_prob[1, 2], rtol=1e-5)
  one, its_log_prob = sampler.sample_and_log_prob(KEY)
  assert (one.shape, its_log_prob.shape) == ((2,), ())
  inside = sampler.support(x.at[0, 0, 1].set(jnp.inf))
  assert inside.shape == (4, 3)
  assert np.sum(~inside) == 1
  box = flows.Sampler(flow, support=lambda x: x[..., 0] > 0)
  np.testing.assert_array_equal(box.support(x), x[..., 0] > 0)


def test_sampler_holds_one_condition():
  base = flows.ClassConditionalNormal((2,), 3)
  base.loc[...] = 10 * jnp.arange(8.0).reshape(4, 2)
  sampler = flows.Sampler(base, cond=2)
  x = sampler.sample(KEY, (5,))
  np.testing.assert_allclose(x, base.sample(KEY, 5, jnp.full(5, 2)))
  np.testing.assert_allclose(sampler.log_prob(x), base.log_prob(x, jnp.full(5, 2)))


def test_sampler_refuses_bad_arguments():
  sampler = flows.Sampler(_flow())
  for value in (jnp.zeros(()), jnp.zeros(3), jnp.zeros((2, 3))):
    with pytest.raises(ValueError, match=r"value must have shape \(\.\.\., 2\)"):
      sampler.log_prob(value)
  for options in ({}, {"key": KEY, "seed": KEY}):
    with pytest.raises(ValueError, match="key or seed must be given, and not both"):
      sampler.sample(**options)
  with pytest.raises(ValueError, match="flow must be a flows.Distribution"):
    flows.Sampler(flows.Chain([]))
  with pytest.raises(ValueError, match=r"flow must be a flows.Flow or a flows.Bijector"):
    flows.pulled_back_potential(flows.StandardNormal((2,)), jnp.sum)


def test_members_of_the_families_of_others(monkeypatch):
  # Stand-ins with what is used of the real base classes.
  class Distribution:
    def __init__(self, batch_shape=(), event_shape=(), *, validate_args=None):
      self.batch_shape, self._event_shape = batch_shape, event_shape

  class Constrained(Distribution):
    event_shape = property(lambda self: self._event_shape)

  constraints = types.SimpleNamespace(real="real", independent=lambda c, n: (c, n))
  numpyro = types.SimpleNamespace(Distribution=Constrained, constraints=constraints)
  monkeypatch.setitem(sys.modules, "numpyro", types.SimpleNamespace(distributions=numpyro))
  monkeypatch.setitem(sys.modules, "numpyro.distributions", numpyro)
  monkeypatch.setitem(sys.modules, "distrax", types.SimpleNamespace(Distribution=Distribution))
  flow = _flow()
  expected, log_prob = flow.sample_and_log_prob(KEY, 3)

  theirs = flows.to_numpyro(flow)
  assert isinstance(theirs, Constrained)
  assert (theirs.event_shape, theirs.batch_shape, theirs.support) == ((2,), (), ("real", 1))
  assert flows.to_numpyro(flow, support="box").support == "box"
  np.testing.assert_array_equal(theirs.sample(KEY, (3,)), expected)
  np.testing.assert_allclose(theirs.log_prob(expected), log_prob, rtol=1e-5)
  draws, intermediates = theirs.sample_with_intermediates(KEY, (3,))
  np.testing.assert_array_equal(draws, expected)
  np.testing.assert_allclose(theirs.log_prob(draws, intermediates), log_prob, rtol=1e-5)

  theirs = flows.to_distrax(flow)
  assert isinstance(theirs, Distribution)
  assert theirs.event_shape == (2,)
  np.testing.assert_array_equal(theirs._sample_n(KEY, 3), expected)
  np.testing.assert_allclose(theirs._sample_n_and_log_prob(KEY, 3)[1], log_prob, rtol=1e-5)
  np.testing.assert_allclose(theirs.log_prob(expected), log_prob, rtol=1e-5)


def test_missing_packages_are_named(monkeypatch):
  for name in ("numpyro.distributions", "distrax"):
    monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(ImportError, match="to_numpyro needs numpyro: pip install numpyro"):
    flows.to_numpyro(_flow())
  with pytest.raises(ImportError, match="to_distrax needs distrax: pip install distrax"):
    flows.to_distrax(_flow())


@pytest.mark.parametrize("graph", [True, False])
def test_the_potential_of_a_perfect_flow_is_that_of_its_base(graph):
  with nnx.set_graph_mode(graph), nnx.set_graph_updates(graph):
    flow = _flow()
    energy = lambda x: 7.0 - flow.log_prob(x)
    z = jax.random.normal(KEY, (5, 2))
    for what in (flow, flow.bijector):
      potential = jax.jit(flows.pulled_back_potential(what, energy))
      np.testing.assert_allclose(potential(z), 7 - flow.base.log_prob(z), rtol=1e-5)
