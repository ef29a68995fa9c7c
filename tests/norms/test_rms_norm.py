"""RMSNorm and its partial form, CRMSNorm and the equivalences between them and LayerNorm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normjax import norms

RNG = np.random.default_rng(0)


def draw(*shape, dtype=jnp.float32):
  return jnp.asarray(RNG.normal(size=shape), dtype)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.1, 100), min_size=4, max_size=4), st.floats(0.01, 100), st.booleans())
def test_only_the_sign_of_a_factor_remains(row, a, negative):
  with jax.enable_x64(True):
    x = jnp.asarray(row, jnp.float64)
    a = -a if negative else a
    y = norms.rms_norm(x, epsilon=0.0)
    np.testing.assert_allclose(norms.rms_norm(a * x, epsilon=0.0), np.sign(a) * y, rtol=1e-12)


def test_equals_layer_norm_on_zero_mean_rows():
  x = draw(5, 8)
  x = x - jnp.mean(x, -1, keepdims=True)
  np.testing.assert_allclose(norms.rms_norm(x), norms.layer_norm(x), rtol=1e-4, atol=1e-6)


def test_doubling_a_row_changes_nothing():
  x = draw(5, 8)
  both = norms.rms_norm(jnp.concatenate([x, -x], -1))
  np.testing.assert_allclose(both[:, :8], norms.rms_norm(x), rtol=1e-5, atol=1e-6)


def test_epsilon_stands_where_it_is_placed():
  x = jnp.array([3.0, 4.0, 0.0, 0.0])  # root mean square 2.5
  inside = norms.rms_norm(x, epsilon=0.5)
  outside = norms.rms_norm(x, epsilon=0.5, epsilon_placement="outside")
  np.testing.assert_allclose(inside, x / np.sqrt(6.75), rtol=1e-6)
  np.testing.assert_allclose(outside, x / 3.0, rtol=1e-6)


def test_partial_measures_the_first_features_rounded_down():
  x = draw(3, 10)
  options = {"epsilon": 1e-8, "epsilon_placement": "outside"}
  whole = norms.rms_norm(x, partial=1.0, **options)
  np.testing.assert_allclose(whole, norms.rms_norm(x, **options), rtol=1e-6)
  y = norms.rms_norm(x, partial=0.29, **options)  # int(2.9) = 2
  size = np.linalg.norm(np.asarray(x)[:, :2], axis=-1, keepdims=True) / np.sqrt(2)
  np.testing.assert_allclose(y, x / size, rtol=1e-5)
  first = norms.rms_norm(x.T, partial=0.29, axis=0, **options)
  np.testing.assert_allclose(first.T, y, rtol=1e-6)


def test_partial_with_a_mask_measures_what_both_keep():
  x = draw(2, 6)
  mask = jnp.array([[False, True, True, True, True, True]])
  y = norms.rms_norm(x, partial=0.5, epsilon=0.0, mask=mask)
  size = np.sqrt(np.mean(np.asarray(x)[:, 1:3] ** 2, -1, keepdims=True))
  np.testing.assert_allclose(y, x / size, rtol=1e-5)


@pytest.mark.parametrize("placement", ["inside", "outside"])
def test_row_of_zeros_gives_zeros_and_a_finite_gradient(placement):
  norm = lambda x: norms.rms_norm(x, epsilon=1e-8, epsilon_placement=placement)
  zeros = jnp.zeros((2, 5))
  assert np.array_equal(norm(zeros), zeros)
  g = draw(2, 5)
  slope = 1e4 if placement == "inside" else 1e8
  (dx,) = jax.vjp(norm, zeros)[1](g)
  np.testing.assert_allclose(dx, slope * g, rtol=1e-5)


def test_one_feature_keeps_the_sign():
  np.testing.assert_allclose(
    norms.rms_norm(jnp.array([[3.0], [-0.5]]), jnp.array([2.0])), [[2.0], [-2.0]], rtol=1e-5
  )


def test_crms_norm_is_rms_norm_of_the_vectors_that_it_stands_for():
  x = draw(4, 7)
  y = norms.crms_norm(x)
  full = norms.decompress(x)
  np.testing.assert_allclose(jnp.sum(full, -1), 0, atol=1e-5)
  np.testing.assert_allclose(norms.decompress(y), norms.rms_norm(full), rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(norms.compress(full), x)


def test_crms_norm_of_centered_vectors_is_layer_norm():
  v = draw(4, 8)
  stored = norms.compress(v - jnp.mean(v, -1, keepdims=True))
  np.testing.assert_allclose(
    norms.decompress(norms.crms_norm(stored)), norms.layer_norm(v), rtol=1e-5, atol=1e-6
  )


def test_crms_norm_along_another_axis():
  x = draw(5, 3)
  np.testing.assert_allclose(
    norms.crms_norm(x, axis=0), norms.crms_norm(x.T).T, rtol=1e-6, atol=1e-7
  )
  np.testing.assert_array_equal(norms.decompress(x, axis=0), norms.decompress(x.T).T)
  np.testing.assert_array_equal(norms.compress(x, axis=0), x[:-1])
