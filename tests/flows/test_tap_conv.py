"""Convolutions as products over the taps are convolutions, and so are their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.flows._tap_conv import tap_conv

NUMBERS = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize(
  ("kernel_shape", "x_shape"),
  [((3, 2, 2, 5), (2, 4, 3, 2)), ((2, 3, 5, 2), (2, 3, 5, 5)), ((1, 1, 2, 3), (2, 2, 3, 2))],
)
def test_values_and_derivatives_are_those_of_a_convolution(kernel_shape, x_shape):
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape))
    x, kernel, x_dot, kernel_dot = (draw(*s) for s in (x_shape, kernel_shape) * 2)
    library = lambda x, kernel: jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "VALID", dimension_numbers=NUMBERS
    )

    @jax.jit
    def run(x, kernel, x_dot, kernel_dot):
      results = []
      for function in (tap_conv, library):
        loss = lambda x, kernel, f=function: jnp.sum(jnp.sin(f(x, kernel)))
        gradient = jax.grad(loss, argnums=(0, 1))
        # Forward over reverse: score matching differentiates a score.
        second = jax.jvp(gradient, (x, kernel), (x_dot, kernel_dot))[1]
        results.append((function(x, kernel), gradient(x, kernel), second))
      return results

    ours, theirs = (jax.tree.leaves(r) for r in run(x, kernel, x_dot, kernel_dot))
    for one, other in zip(ours, theirs, strict=True):
      np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


def test_the_narrow_side_is_repeated_for_the_taps():
  def largest(fan_in, features):
    jaxpr = jax.make_jaxpr(tap_conv)(
      jnp.ones((1, 4, 4, fan_in)), jnp.ones((3, 3, fan_in, features))
    )
    return max(v.aval.size for e in jaxpr.eqns for v in e.outvars if v.aval.shape[:1] == (1,))

  assert largest(2, 64) <= 4 * 4 * 64
  assert largest(64, 2) <= 4 * 4 * 64
