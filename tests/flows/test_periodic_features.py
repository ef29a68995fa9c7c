"""Angles in couplings: nothing changes a period further on, all does half a period on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import flows

RNG = np.random.default_rng(0)
BOUND = 1.5  # of angles: their period is 3
SMALL = {"width": 6, "depth": 1}
ORDERS = jnp.array([[2, 0, 3, 1], [1, 3, 0, 2]])


def _moved(bijector):
  move = lambda p: p + 0.5 * jnp.asarray(RNG.standard_normal(p.shape), p.dtype)
  nnx.update(bijector, jax.tree.map(move, nnx.state(bijector, nnx.Param)))
  return bijector


@jax.jit
def _value_and_slopes(x, periods):
  return flows.periodic_features(x, periods), jax.jacrev(
    lambda x: flows.periodic_features(x, periods)
  )(x)


def test_values_and_slopes():
  with jax.enable_x64(True):
    x = np.array([0.3, -7.0, 2.1])
    y, slopes = jax.tree.map(np.asarray, _value_and_slopes(x, np.array([3.0, np.inf, 0.5])))
  rate = 2 * np.pi / np.array([3.0, 1.0, 0.5])
  c, s = np.cos(rate * x), np.sin(rate * x)
  np.testing.assert_allclose(y, [c[0], -7, c[2], s[0], 0, s[2]], atol=1e-14)
  expected = np.concatenate([np.diag(-rate * s), np.diag(rate * c)])
  expected[1, 1], expected[4, 1] = 1, 0
  np.testing.assert_allclose(slopes, expected, atol=1e-13)


def test_extreme_values_are_angles_too():
  x = jnp.array([0.0, 1e-30, -1e-30, 1e4, -1e4, 1e30, -1e30, 3e38])
  for period in (1e-30, 2 * np.pi, 1e30):
    y, slopes = _value_and_slopes(x, jnp.full(8, period))
    np.testing.assert_allclose(y[:8] ** 2 + y[8:] ** 2, 1, atol=1e-5)
    assert np.all(np.isfinite(slopes))
  y, slopes = _value_and_slopes(x, jnp.full(8, jnp.inf))
  np.testing.assert_array_equal(y, [*x, *jnp.zeros(8)])
  np.testing.assert_array_equal(slopes, jnp.eye(16, 8))


def test_a_flow_of_angles_is_one_of_the_torus():
  make = lambda rngs, order: flows.ElementwiseCoupling(
    flows.CircularShiftTransform(bound=BOUND), order, periods=2 * BOUND, rngs=rngs, **SMALL
  )
  with jax.enable_x64(True):
    scan = flows.Scan(make, 2, ORDERS, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(_moved(scan))
    x = jnp.asarray(RNG.uniform(-BOUND, BOUND, (1, 4)))
    # As it is; each angle a period on, or two back; two of them half a period on.
    turns = np.concatenate([np.zeros((1, 4)), np.eye(4), -2 * np.eye(4)[:2], [[0.5, 0.5, 0, 0]]])
    points = x + 2 * BOUND * jnp.asarray(turns)

    @jax.jit
    def run(state, points):
      def total(method, v):
        out, _ = getattr(nnx.merge(graphdef, state), method)(v)
        return jnp.sum(jnp.sin(out)), out

      both = [jax.grad(total, 1, has_aux=True)(m, points) for m in ("forward", "inverse")]
      return jax.tree.leaves(both)

    found = [np.asarray(v) for v in run(state, points)]
  assert len(found) == 4
  for value in found:
    np.testing.assert_allclose(value[1:-1], np.broadcast_to(value[:1], value[1:-1].shape))
    assert np.all(np.abs(value[-1] - value[0]) > 1e-3)


def test_periods_belong_to_features_whatever_their_order():
  with jax.enable_x64(True):
    periods = [jnp.inf, 1.0, 3.0, 1.0]
    layer = _moved(flows.AffineCoupling(ORDERS[0], periods=periods, rngs=nnx.Rngs(1), **SMALL))
    x = jnp.asarray(RNG.standard_normal((1, 4)))
    shifts = jnp.array([[0, 0, 0, 0], [0, 0, 3.0, 0], [3.0, 0, 0, 0], [0, 0, 1.0, 0]])
    z, log_det = jax.tree.map(np.asarray, jax.jit(layer.forward)(x + shifts))
  assert layer.network.first.kernel.shape == (4, 6)
  np.testing.assert_allclose(z[1], z[0] + np.asarray(shifts)[1], rtol=1e-12)
  np.testing.assert_allclose(log_det[1], log_det[0], rtol=1e-12)
  assert np.all(np.abs(log_det[2:] - log_det[0]) > 1e-3)


def test_without_periods_a_network_sees_what_it_did():
  plain = nnx.eval_shape(
    lambda: flows.AdditiveCoupling(ORDERS[0], num_conditioning=3, rngs=nnx.Rngs(0), **SMALL)
  )
  assert plain.periods is None
  assert plain.network.first.kernel.shape == (3, 6)


@pytest.mark.parametrize("periods", [0.0, -1.0, jnp.nan, [1.0, 1.0, 1.0, 0.0]])
def test_periods_are_above_zero(periods):
  with pytest.raises(ValueError, match="periods must be above 0, infinite where there is none"):
    flows.AdditiveCoupling(ORDERS[0], periods=periods, rngs=nnx.Rngs(0))


def test_refusals():
  with pytest.raises(ValueError, match=r"periods must be a scalar or have shape \(4,\), got \(2,"):
    flows.AdditiveCoupling(ORDERS[0], periods=[1.0, 2.0], rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="x must be floating"):
    flows.periodic_features(jnp.ones((2, 3), int), 1.0)
