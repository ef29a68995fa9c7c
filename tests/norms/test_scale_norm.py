"""Norms that divide by a length: ScaleNorm, FixNorm, L2 and Lp normalization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from normjax import norms

RNG = np.random.default_rng(0)


def draw(*shape, dtype=jnp.float32):
  return jnp.asarray(RNG.normal(size=shape), dtype)


def test_scale_is_the_length_of_every_row():
  x, g = draw(4, 9), jnp.float32(-2.5)
  y = norms.scale_norm(x, g)
  np.testing.assert_allclose(jnp.linalg.norm(y, axis=-1), 2.5, rtol=1e-5)
  root = norms.scale_norm(x, jnp.float32(3.0))  # sqrt of the 9 features
  np.testing.assert_allclose(root, norms.rms_norm(x, epsilon=0.0), rtol=1e-5)


def test_rows_shorter_than_epsilon_are_scaled_linearly():
  x, g = 1e-3 * draw(2, 5), draw(2, 5)
  y, vjp = jax.vjp(lambda x: norms.scale_norm(x, jnp.float32(3.0), epsilon=0.1), x)
  np.testing.assert_allclose(y, 30 * x, rtol=1e-6)
  np.testing.assert_allclose(vjp(g)[0], 30 * g, rtol=1e-6)


@pytest.mark.parametrize("norm", [norms.scale_norm, norms.l2_normalize])
def test_row_of_zeros_gives_zeros_and_a_finite_gradient(norm):
  y, vjp = jax.vjp(lambda x: norm(x, epsilon=1e-5), jnp.zeros((2, 3)))
  assert np.array_equal(y, np.zeros((2, 3)))
  np.testing.assert_allclose(vjp(jnp.ones((2, 3)))[0], 1e5, rtol=1e-5)


def test_scale_norm_module_has_one_number_or_none():
  x = draw(3, 16)
  module = norms.ScaleNorm(16, rngs=nnx.Rngs(0))
  (scale,) = jax.tree.leaves(nnx.state(module))
  assert scale.shape == ()
  assert scale == 4.0
  fixed = norms.ScaleNorm(16, trainable=False, rngs=nnx.Rngs(0))
  assert not jax.tree.leaves(nnx.state(fixed))
  np.testing.assert_array_equal(fixed(x), module(x))
  per_example = jnp.array([1.0, 2.0, 3.0])[:, None]
  lengths = jnp.linalg.norm(module(x, scale=per_example), axis=-1)
  np.testing.assert_allclose(lengths, [1, 2, 3], rtol=1e-5)
  unit = norms.ScaleNorm(16, use_scale=False, rngs=nnx.Rngs(0))
  np.testing.assert_array_equal(unit(x), norms.scale_norm(x))


def test_fix_norm_ignores_the_length_of_its_rows():
  table, tokens, features = draw(6, 4), jnp.array([[0, 2], [5, 2]]), draw(3, 4)
  longer = table.at[2].multiply(3.0)
  np.testing.assert_allclose(
    norms.fix_norm_embed(longer, tokens), norms.fix_norm_embed(table, tokens), rtol=1e-6
  )
  np.testing.assert_allclose(
    norms.fix_norm_logits(longer, features), norms.fix_norm_logits(table, features), rtol=1e-5
  )
  embedded = norms.fix_norm_embed(table, tokens)
  assert embedded.shape == (2, 2, 4)
  np.testing.assert_allclose(jnp.linalg.norm(embedded, axis=-1), 2.0, rtol=1e-6)


def test_gradient_of_the_table_is_orthogonal_to_its_rows():
  table, tokens, features = draw(6, 4), jnp.array([0, 2, 5, 2]), draw(3, 4)

  def loss(table):
    logits = norms.fix_norm_logits(table, features)
    return jnp.sum(norms.fix_norm_embed(table, tokens) ** 3) + jnp.sum(logits**3)

  grad = jax.grad(loss)(table)
  np.testing.assert_allclose(jnp.sum(grad * table, -1), 0, atol=1e-4)
  assert jnp.min(jnp.linalg.norm(grad, axis=-1)) > 1e-2


def test_fix_norm_row_of_zeros_has_a_finite_gradient():
  table = jnp.zeros((3, 4))
  grad = jax.grad(lambda table: jnp.sum(norms.fix_norm_embed(table, jnp.arange(3))))(table)
  assert jnp.all(jnp.isfinite(grad))


def test_fix_norm_module_uses_one_table_for_both_ends():
  module = norms.FixNorm(7, 4, rngs=nnx.Rngs(0))
  table = module.embedding[...]
  assert jnp.max(jnp.abs(table)) <= 0.01
  assert jnp.min(table) < 0 < jnp.max(table)
  tokens = jnp.arange(7)
  np.testing.assert_array_equal(module(tokens), norms.fix_norm_embed(table, tokens))
  module.bias[...] = draw(7)
  logits = module.attend(module(tokens))
  wanted = 2 * norms.fix_norm(table) @ norms.fix_norm(table).T + module.bias[...][None]
  np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-6)
  half = norms.FixNorm(7, 4, use_bias=False, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  assert half(tokens).dtype == half.attend(draw(2, 4)).dtype == jnp.bfloat16
  assert half.embedding[...].dtype == jnp.float32


def test_token_outside_the_table_gives_nan():
  embedded = norms.fix_norm_embed(draw(3, 2), jnp.array([0, 3]))
  assert jnp.all(jnp.isfinite(embedded[0]))
  assert jnp.all(jnp.isnan(embedded[1]))


def test_lp_normalize_is_layer_norm_and_rms_norm_at_two():
  x, scale, bias = draw(3, 8), draw(8), draw(8)
  for ours, theirs in (
    (
      norms.lp_normalize(x, scale, bias, epsilon=0.1),
      norms.layer_norm(x, scale, bias, epsilon=0.1),
    ),
    (norms.lp_normalize(x, scale, center=False), norms.rms_norm(x, scale)),
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.floats(1, 12), st.floats(0, 2))
def test_mean_power_of_the_output(p, epsilon):
  with jax.enable_x64(True):
    x = draw(3, 9, dtype=jnp.float64)
    c = x - jnp.mean(x, -1, keepdims=True)
    power = jnp.mean(jnp.abs(c) ** p, -1)
    y = norms.lp_normalize(x, p=p, epsilon=epsilon)
    np.testing.assert_allclose(jnp.mean(jnp.abs(y) ** p, -1), power / (power + epsilon), rtol=1e-9)


@pytest.mark.parametrize("p", [1, 1.5, 2, 8])
def test_lp_normalize_survives_large_and_constant_rows(p):
  x = draw(2, 6)
  big = norms.lp_normalize(x * 1e12, p=p)  # 1e12 to the eighth is no float32
  np.testing.assert_allclose(big, norms.lp_normalize(x, p=p, epsilon=0.0), rtol=1e-5, atol=1e-6)
  y, vjp = jax.vjp(lambda x: norms.lp_normalize(x, p=p), jnp.full((2, 6), 3.0))
  assert np.array_equal(y, np.zeros((2, 6)))
  assert jnp.all(jnp.isfinite(vjp(draw(2, 6))[0]))


def test_gradient_of_the_mean_deviation_is_zero_at_the_mean():
  x, g = jnp.array([4.0, -4.0, 0.0, 0.0]), draw(4)
  (dx,) = jax.vjp(lambda x: norms.lp_normalize(x, p=1, center=False, epsilon=0.0), x)[1](g)
  np.testing.assert_allclose(dx[2:], g[2:] / 2, rtol=1e-6)  # mean|x| is 2
