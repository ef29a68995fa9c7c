"""Conditional image flows: scales, kinds, the bound of the splines, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import flows, models

TINY = {"num_levels": 2, "num_steps": 1, "width": 3, "cond_features": 2}


def _flow(shape=(8, 8, 1), cond_shape=(4, 4, 1), **options):
  return models.ConditionalImageFlow(shape, cond_shape, **TINY | options, rngs=nnx.Rngs(0))


def _moved(flow):
  """Return a flow away from its initial values."""
  rng = np.random.default_rng(1)
  move = lambda p: p + jnp.asarray(0.2 * rng.standard_normal(p.shape), p.dtype)
  nnx.update(flow, jax.tree.map(move, nnx.state(flow, nnx.Param)))
  return flow


def test_a_start_from_data_and_the_way_back():
  flow = _flow()
  rng = np.random.default_rng(0)
  x = jnp.asarray(3 + rng.standard_normal((16, 8, 8, 1)), jnp.float32)
  y = jnp.asarray(rng.standard_normal((16, 4, 4, 1)), jnp.float32)
  graphdef, state = nnx.split(flow)

  @jax.jit
  def run(state, x, y):
    flow = _moved(flows.init_from_data(nnx.merge(graphdef, state), x, y))
    z, log_det = flow.bijector.forward(x, y)
    again, back = flow.bijector.inverse(z, y)
    fresh = flows.init_from_data(nnx.merge(graphdef, state), x, y)
    squeezed = flow.bijector.bijectors[0].forward(x)[0]
    stack = fresh.bijector.bijectors[1].bijector.layers
    log_scale, shift = (p[...] for p in (stack.bijectors[0].log_scale, stack.bijectors[0].shift))
    first = jnp.exp(log_scale.reshape(1, 1, 1, 4)) * squeezed + shift.reshape(1, 1, 1, 4)
    return z, log_det, again, back, first, flow.log_prob(x, y), flow.features(y)

  z, log_det, again, back, first, log_prob, features = run(state, x, y)
  assert z.shape == (16, 2, 2, 16)
  assert features.shape == (16, 2, 2, 2)
  np.testing.assert_allclose(again, x, atol=1e-4)
  np.testing.assert_allclose(back, -log_det, atol=1e-4)
  base = jax.scipy.stats.norm.logpdf(z).sum((1, 2, 3))
  np.testing.assert_allclose(log_prob, base + log_det, rtol=1e-5)
  np.testing.assert_allclose(jnp.mean(first, (0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(jnp.std(first, (0, 1, 2)), 1, atol=1e-5)


def test_splines_stay_where_affine_maps_explode():
  # Raw parameters that no training gives: far beyond the sigmoid's and the exponential's range.
  raw = jnp.asarray(np.random.default_rng(0).uniform(-1e3, 1e3, (4, 2, 2, 12)), jnp.float32)
  raw = raw.at[..., 1::2].set(-1e3)
  network = lambda in_features, out_features, *, rngs: lambda cond: raw[..., :out_features]
  z, cond = jnp.full((4, 2, 2, 3), 0.4), jnp.zeros((4, 2, 2, 5))

  def largest(transform):
    options = {"cond_features": 5, "make_net": network, "rngs": nnx.Rngs(0)}
    layer = flows.FeatureConditional(3, transform, **options)
    shift = raw[..., : 3 * transform.num_parameters].reshape(4, 2, 2, 3, -1)
    x = layer.inverse(z, cond)[0]
    return np.max(np.abs(x)), x, shift

  worst, x, raws = largest(flows.ModifiedRQSTransform(bound=0.5))
  assert np.max(np.abs(x - (z - raws[..., 3]))) <= 1.0 + 1e-3
  affine, x, raws = largest(flows.ConditionalAffineTransform())
  np.testing.assert_allclose(x + raws[..., 0], 0.4 * 1e4, rtol=1e-3)
  assert affine > worst


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"kind": "cubic"}, "kind must be one of .*'affine'.*'spline'.*, got 'cubic'"),
    ({"shape": (8, 4, 1)}, "shape must be .side, side, channels."),
    ({"shape": (6, 6, 1)}, r"2\^num_levels = 4 divides"),
    ({"cond_shape": (3, 3, 1)}, r"cond_shape must have sides .* got \(3, 3, 1\) for 4 x 4"),
    ({"bound": -1.0}, "bound must be above 0 and finite, got -1"),
    ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
    ({"cond_shape": (4, 4)}, "cond_shape must be .height, width, channels."),
    ({"cond_shape": (0, 4, 1)}, "cond_shape must be .height, width, channels."),
  ],
)
def test_bad_arguments_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    nnx.eval_shape(lambda: _flow(**options))


def test_measurements_of_another_shape_are_refused():
  with pytest.raises(ValueError, match=r"cond must have shape \(b, 4, 4, 1\), got \(2, 8, 8, 1\)"):
    _flow().log_prob(jnp.ones((2, 8, 8, 1)), jnp.ones((2, 8, 8, 1)))
