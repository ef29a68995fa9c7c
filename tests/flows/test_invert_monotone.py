"""Roots of increasing functions: digits, bounds, and derivatives of the implicit function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from normjax import flows

C = np.array([-0.999, -0.5, 3.0, 50.0])


def _bend(c, x):
  return x + c * jnp.tanh(x + 0.3)


_invert = jax.jit(lambda c, y: flows.invert_monotone(lambda x: _bend(c, x), y))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_finds_the_root_wherever_it_is(dtype):
  eps = np.finfo(dtype).eps
  with jax.enable_x64(dtype == "float64"):
    c = jnp.asarray(C, dtype)
    for x in ([0, 0, 0, 0], [1, -2, 5, 7], [1e4, 1e30, -1e30, -1e4], [-1e-30, 1e-30, 1, -1]):
      x = jnp.asarray(x, dtype)
      found = _invert(c, _bend(c, x))
      assert found.dtype == dtype
      # y is rounded, and so are the terms of f: the root moves by that over the slope.
      slope = 1 + C * (1 - np.tanh(np.asarray(x, np.float64) + 0.3) ** 2)
      np.testing.assert_array_less(
        np.abs(found - x), 4 * eps * (np.abs(x) + np.abs(C)) / slope + 1e-300
      )


def test_derivatives_are_those_of_the_implicit_function():
  with jax.enable_x64(True):
    y = jnp.array([1.0, -2.0, 0.5, 7.0])
    check_grads(_invert, (jnp.asarray(C), y), order=2, modes=["fwd", "rev"], rtol=1e-4)


def test_flat_and_steep_functions_take_no_more_than_their_bits():
  with jax.enable_x64(True):
    calls = []

    def stairs(x):
      jax.debug.callback(calls.append, x[0])
      return jnp.floor(x) + jnp.arctan(1e9 * (x - 0.3))

    # Newton has no use for these slopes: what is left is halving.
    x = flows.invert_monotone(stairs, jnp.array([1e15 + 0.5, -3.0, 0.4]))
    jax.effects_barrier()
    assert len(calls) <= 3 * 64
    np.testing.assert_allclose(x[2], 0.3, rtol=1e-8)
    np.testing.assert_allclose(x[0], 1e15, rtol=1e-14)
    cube = lambda x: x**3
    y = jnp.array([0.0, 1e-30, -8.0, 1e30])
    x, slope = jax.vmap(jax.value_and_grad(lambda y: flows.invert_monotone(cube, y)))(y)
    np.testing.assert_allclose(x, [0, 1e-10, -2, 1e10], rtol=1e-9)
    assert np.all(np.isfinite(slope))


def test_values_out_of_reach_give_the_end():
  y = jnp.array([-2.0, 0.5, 3.0, jnp.nan])
  x = flows.invert_monotone(lambda x: 2 * x, y, lower=-0.5, upper=jnp.array([1.0, 1.0, 2.0, 1.0]))
  np.testing.assert_array_equal(x[:3], [-0.5, 0.25, 1.5])
  assert np.isnan(x[3])
  root = lambda x: jnp.where(x > 5, jnp.nan, jnp.log(x))  # what is no number is too far away
  x = flows.invert_monotone(root, jnp.array([1.0]), guess=jnp.array([0.5]))
  np.testing.assert_allclose(x, np.e, rtol=1e-6)


def test_bad_arguments_are_refused():
  y = jnp.ones(2)
  with pytest.raises(ValueError, match="y must be floating, got int32"):
    flows.invert_monotone(lambda x: x, jnp.arange(2))
  with pytest.raises(ValueError, match=r"guess must have the shape \(2,\) of y, got \(\)"):
    flows.invert_monotone(lambda x: x, y, guess=jnp.ones(()))
  with pytest.raises(ValueError, match=r"function must keep the shape \(2,\)"):
    flows.invert_monotone(jnp.sum, y)
