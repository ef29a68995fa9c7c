"""The constant affine map: constants of every kind, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import flows


@pytest.mark.parametrize(
  ("loc", "scale"),
  [
    (1.0, -2.0),
    ([1.0, 2.0], 3.0),
    (1, [[2.0, 4.0]][0]),
    (np.array([1.0, 2.0]), jnp.array([-1.0, 0.5])),
  ],
)
def test_standardizes(loc, scale):
  x = jnp.array([[0.5, -1.0], [3.0, 2.0]])
  z, log_det = flows.ElementwiseAffine(loc, scale).forward(x)
  full = np.broadcast_to(np.asarray(scale, np.float64), (2,))
  np.testing.assert_allclose(z, (np.asarray(x) - np.asarray(loc)) / full, rtol=1e-6)
  np.testing.assert_allclose(log_det, np.full(2, -np.sum(np.log(np.abs(full)))), rtol=1e-6)


def test_constants_are_saved_but_not_trained():
  bijector = flows.ElementwiseAffine([1.0, 2.0], 3.0)
  assert not jax.tree.leaves(nnx.state(bijector, nnx.Param))
  assert len(jax.tree.leaves(nnx.state(bijector))) == 2


def test_may_be_made_under_a_trace():
  stack = jax.vmap(lambda loc: flows.ElementwiseAffine(loc, 2.0).forward(jnp.ones((1, 2)))[0])
  np.testing.assert_allclose(stack(jnp.array([0.0, 1.0]))[:, 0, 0], [0.5, 0.0])


@pytest.mark.parametrize("scale", [0.0, [1.0, 0.0], float("inf"), float("nan")])
def test_scales_without_an_inverse_are_refused(scale):
  with pytest.raises(ValueError, match="scale must be finite and not zero"):
    flows.ElementwiseAffine(0.0, scale)


def test_a_location_that_is_not_finite_is_refused():
  with pytest.raises(ValueError, match="loc must be finite, got nan"):
    flows.ElementwiseAffine(float("nan"), 1.0)


def test_shapes_that_would_be_broadcast_are_refused():
  with pytest.raises(ValueError, match="of one shape"):
    flows.ElementwiseAffine([1.0, 2.0], [[1.0, 2.0]])
  with pytest.raises(ValueError, match=r"x must have shape \(b, 2\)"):
    flows.ElementwiseAffine([1.0, 2.0], 1.0).forward(jnp.ones((3, 5, 2)))
