"""Compositions: order, nesting, and what they refuse."""

import jax.numpy as jnp
import numpy as np
import pytest

from normjax import flows


def _affine(loc, scale):
  return flows.ElementwiseAffine(loc, scale)


def test_chain_applies_the_first_bijector_first():
  x = jnp.array([[1.0, 5.0]])
  z, log_det = flows.Chain([_affine(1.0, 2.0), _affine(-3.0, 0.5)]).forward(x)
  np.testing.assert_allclose(z, ((x - 1) / 2 + 3) / 0.5)
  np.testing.assert_allclose(log_det, 0.0, atol=1e-6)
  back, _ = flows.Chain((_affine(1.0, 2.0), _affine(-3.0, 0.5))).inverse(z)
  np.testing.assert_allclose(back, x, rtol=1e-6)


def test_chains_nest():
  x = jnp.array([[1.0, 5.0]])
  layers = lambda: [_affine(1.0, 2.0), _affine(-3.0, 0.3), _affine(0.2, 7.0)]
  a, b, c = layers()
  nested, flat = flows.Chain([flows.Chain([a, b]), c]), flows.Chain(layers())
  for actual, expected in zip(nested.forward(x), flat.forward(x), strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_inverted_swaps_the_directions():
  x = jnp.array([[1.0, 5.0]])
  bijector = _affine(1.0, 2.0)
  inverted = flows.Inverted(bijector)
  np.testing.assert_array_equal(inverted.forward(x)[0], 2 * x + 1)
  np.testing.assert_allclose(inverted.forward(x)[1], 2 * np.log(2), rtol=1e-6)
  np.testing.assert_array_equal(inverted.inverse(x)[0], (x - 1) / 2)
  np.testing.assert_array_equal(flows.Inverted(inverted).forward(x)[0], bijector.forward(x)[0])


def test_bad_arguments_are_refused():
  bijector = _affine(0.0, 1.0)
  for bijectors in (bijector, [bijector, 3], [flows.StandardNormal((2,))]):
    with pytest.raises(ValueError, match="bijectors must be a list of Bijectors"):
      flows.Chain(bijectors)
  with pytest.raises(ValueError, match="same object twice"):
    flows.Chain([bijector, _affine(0.0, 2.0), bijector])
  with pytest.raises(ValueError, match="bijector must be a Bijector"):
    flows.Inverted([bijector])
  with pytest.raises(ValueError, match="network must be callable, got None"):
    flows.Conditioned(bijector, None)
