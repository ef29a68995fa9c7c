"""Feature norm: lengths, invariances and features of zeros."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import norms

RNG = np.random.default_rng(0)


def draw(*shape, dtype=jnp.float32):
  return jnp.asarray(RNG.normal(size=shape), dtype)


@functools.partial(jax.jit, static_argnums=2)
def with_gradient(x, g, mode):
  y, vjp = jax.vjp(lambda x: norms.feature_norm(x, mode=mode), x)
  return y, vjp(g)[0]


@pytest.mark.parametrize(("mode", "length"), [("v", 3.0), ("n", 1.0), ("sv", 3.0), ("sn", 1.0)])
def test_length_of_the_output_and_gradient_orthogonal_to_the_input(mode, length):
  x, g = 2 + draw(4, 9), draw(4, 9)
  y, dx = with_gradient(x, g, mode)
  np.testing.assert_allclose(np.linalg.norm(y, axis=-1), length, rtol=1e-5)
  np.testing.assert_allclose(np.sum(dx * x, -1), 0, atol=1e-5)
  assert np.max(np.abs(dx)) > 1e-2
  if "s" in mode:
    np.testing.assert_allclose(np.mean(y, -1), 0, atol=1e-6)


def test_scale_of_the_input_does_not_matter_even_where_squares_overflow():
  x = draw(4, 9)
  y = norms.feature_norm(x)
  for factor in (3.0, 1e-9, 1e30):
    np.testing.assert_allclose(norms.feature_norm(factor * x), y, rtol=1e-5)


def test_centered_is_layer_norm_and_letters_apply_from_left_to_right():
  x = 2 + draw(2, 3, 5)
  np.testing.assert_allclose(
    norms.feature_norm(x, mode="sv", axis=(1, 2)),
    norms.layer_norm(x, axis=(1, 2), epsilon=0.0),
    rtol=1e-5,
    atol=1e-6,
  )
  unit = norms.feature_norm(x, mode="n")
  np.testing.assert_allclose(
    norms.feature_norm(x, mode="ns"), unit - jnp.mean(unit, -1, keepdims=True), atol=1e-6
  )
  np.testing.assert_array_equal(norms.feature_norm(x, mode=""), x)


@pytest.mark.parametrize("mode", ["v", "n"])
def test_short_features_become_zero_without_a_gradient(mode):
  x = jnp.stack([jnp.zeros(3), jnp.full(3, 1e-14), jnp.array([0.0, 3.0, 4.0])])
  y, dx = with_gradient(x, jnp.ones_like(x), mode)
  np.testing.assert_array_equal(y[:2], np.zeros((2, 3)))
  np.testing.assert_allclose(jnp.linalg.norm(y[2]), np.sqrt(3) if mode == "v" else 1, rtol=1e-6)
  np.testing.assert_array_equal(dx[:2], np.zeros((2, 3)))
  assert np.all(np.isfinite(dx))


def test_weights_of_a_relu_network_without_biases_may_have_any_scale():
  x, w1, w2 = draw(5, 4), draw(4, 6), draw(6, 7)

  def features(w1, w2):
    return norms.feature_norm(jax.nn.relu(jax.nn.relu(x @ w1) @ w2))

  wanted = features(w1, w2)
  np.testing.assert_allclose(features(7 * w1, w2), wanted, rtol=1e-5)
  np.testing.assert_allclose(features(w1, 0.01 * w2), wanted, rtol=1e-5)


def test_feature_norm_refuses():
  x = draw(2, 3)
  for call, message in (
    (lambda: norms.feature_norm(x, mode="vx"), "mode must consist"),
    (lambda: norms.FeatureNorm(3, mode="l2", rngs=nnx.Rngs(0)), "mode must consist"),
    (lambda: norms.feature_norm(x[:, :0]), "at least one entry"),
    (lambda: norms.feature_norm(x, epsilon=-1.0), "epsilon must be"),
    (lambda: norms.FeatureNorm(0, rngs=nnx.Rngs(0)), "num_features must be"),
    (lambda: norms.FeatureNorm(4, rngs=nnx.Rngs(0))(x), "x must have 4 entries"),
  ):
    with pytest.raises(ValueError, match=message):
      call()
