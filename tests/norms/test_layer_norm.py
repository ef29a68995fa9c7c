"""LayerNorm: identities, large means, external parameters, sharded features."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, PartitionSpec

from normjax import norms

RNG = np.random.default_rng(0)


NORMS = [
  norms.layer_norm,
  norms.rms_norm,
  norms.scale_norm,
  norms.l2_normalize,
  norms.lp_normalize,
]


def draw(*shape, dtype=jnp.float32):
  return jnp.asarray(RNG.normal(size=shape), dtype)


@settings(max_examples=25, deadline=None)
@given(
  st.lists(st.floats(-100, 100), min_size=5, max_size=5),
  st.floats(0.01, 100),
  st.floats(-100, 100),
)
def test_affine_changes_of_the_input_change_nothing(row, a, b):
  with jax.enable_x64(True):
    x = jnp.asarray(row, jnp.float64)
    if jnp.var(x) > 1e-3:
      y = norms.layer_norm(x, epsilon=0.0)
      np.testing.assert_allclose(norms.layer_norm(a * x + b, epsilon=0.0), y, atol=1e-8)
      np.testing.assert_allclose(jnp.mean(y), 0, atol=1e-9)
      np.testing.assert_allclose(jnp.mean(y**2), 1, rtol=1e-9)


def test_second_moment_is_variance_over_variance_plus_epsilon():
  x, epsilon = draw(4, 32), 0.3
  y = norms.layer_norm(x, epsilon=epsilon)
  variance = jnp.var(x, -1)
  np.testing.assert_allclose(jnp.mean(y, -1), 0, atol=1e-6)
  np.testing.assert_allclose(jnp.mean(y**2, -1), variance / (variance + epsilon), rtol=1e-5)


def test_gradient_is_orthogonal_to_constants_and_to_the_output():
  with jax.enable_x64(True):
    x, g = draw(3, 7, dtype=jnp.float64), draw(3, 7, dtype=jnp.float64)
    y, vjp = jax.vjp(lambda x: norms.layer_norm(x, epsilon=0.0), x)
    (dx,) = vjp(g)
    np.testing.assert_allclose(jnp.sum(dx, -1), 0, atol=1e-12)
    np.testing.assert_allclose(jnp.sum(dx * y, -1), 0, atol=1e-12)
    assert jnp.max(jnp.abs(dx)) > 0.1


@pytest.mark.parametrize("mean", [1e4, -1e6])
def test_large_mean_costs_no_accuracy(mean):
  x = np.float32(mean + RNG.normal(size=(8, 512)))
  wide = x.astype(np.float64)
  exact = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(norms.layer_norm(x), exact, rtol=0, atol=1e-5)
  one_pass = np.mean(x * x, -1) - np.mean(x, -1) ** 2  # float32: the variance that we do not use
  assert np.max(np.abs(one_pass - 1)) > 0.1


def test_one_feature_gives_exactly_the_bias():
  x, bias = draw(5, 1) * 1e3, jnp.array([0.7])
  assert np.array_equal(norms.layer_norm(x, jnp.array([3.0]), bias), np.full((5, 1), bias))


def test_constant_row_gives_the_bias():
  bias = draw(6)
  y = norms.layer_norm(jnp.full((2, 6), 0.1), draw(6), bias)
  np.testing.assert_allclose(y, np.broadcast_to(bias, (2, 6)), atol=1e-6)


def test_two_axes_are_normalized_together():
  x, scale, bias = draw(2, 4, 3, 5), draw(4, 5), draw(4, 5)
  y = norms.layer_norm(x, scale, bias, axis=(1, -1))
  moved = jnp.moveaxis(x, 2, 1).reshape(2, 3, 20)
  flat = norms.layer_norm(moved, scale.reshape(20), bias.reshape(20))
  np.testing.assert_allclose(y, jnp.moveaxis(flat.reshape(2, 3, 4, 5), 1, 2), atol=1e-6)


def test_scale_per_example_and_stand_in_parameters():
  x, scale, bias = draw(2, 3, 4), draw(2, 1, 4), draw(2, 1, 4)
  plain = norms.layer_norm(x)
  y = norms.layer_norm(x, scale, bias)
  np.testing.assert_allclose(y, plain * scale + bias, rtol=1e-6, atol=1e-6)
  module = norms.LayerNorm(4, rngs=nnx.Rngs(0))
  np.testing.assert_array_equal(module(x, scale=scale, bias=bias), y)
  np.testing.assert_array_equal(module(x, scale=scale), norms.layer_norm(x, scale, jnp.zeros(4)))


def test_mask_takes_statistics_from_the_kept_positions():
  x, keep = draw(3, 6), np.array([True, False, True, True, False, True])
  y = norms.layer_norm(x, mask=jnp.asarray(keep)[None])
  kept = np.asarray(x)[:, keep]
  mean, var = kept.mean(-1, keepdims=True), kept.var(-1, keepdims=True)
  np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-6), rtol=1e-5, atol=1e-6)
  per_row = jnp.arange(18).reshape(3, 6) % 5 != 0
  y = norms.layer_norm(x, mask=per_row)
  for row in range(3):
    own = norms.layer_norm(x[row], mask=per_row[row])
    np.testing.assert_allclose(y[row], own, rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS, ids=lambda f: f.__name__)
def test_masked_number_whose_square_overflows_stays_out_of_the_gradient(norm):
  mask = jnp.array([[True, True, False, True]])

  @jax.jit
  def value_and_grad(x):
    loss = lambda x: jnp.sum(jnp.where(mask, norm(x, mask=mask), 0) ** 3)
    return jax.value_and_grad(loss)(x)

  value, grad = value_and_grad(jnp.array([[1.0, 2.0, 1e30, 4.0]]))
  other_value, other_grad = value_and_grad(jnp.array([[1.0, 2.0, 7.0, 4.0]]))
  np.testing.assert_allclose(value, other_value, rtol=1e-6)
  np.testing.assert_allclose(grad, other_grad, rtol=1e-5, atol=1e-6)


def test_row_without_kept_positions_is_finite():
  y = norms.layer_norm(draw(2, 4), mask=jnp.array([[True], [False]]))
  assert jnp.all(jnp.isfinite(y))


@pytest.mark.parametrize("norm", NORMS, ids=lambda f: f.__name__)
def test_features_sharded_over_devices(norm):
  x, g, mask = draw(2, 8), draw(2, 8), jnp.arange(16).reshape(2, 8) % 3 != 0
  mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))
  spec = PartitionSpec(None, "model")

  def both(x, mask, axis_name=None):
    return norm(x, axis_name=axis_name) + norm(x, mask=mask, axis_name=axis_name)

  sharded = jax.shard_map(
    lambda x, mask: both(x, mask, "model"), mesh=mesh, in_specs=spec, out_specs=spec
  )

  @functools.partial(jax.jit, static_argnums=0)
  def value_and_vjp(f, x):
    y, vjp = jax.vjp(lambda x: f(x, mask), x)
    return y, vjp(g)[0]

  for got, wanted in zip(value_and_vjp(sharded, x), value_and_vjp(both, x), strict=True):
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  ("ours", "theirs"), [(norms.LayerNorm, nnx.LayerNorm), (norms.RMSNorm, nnx.RMSNorm)]
)
def test_swapping_the_flax_module_keeps_parameters_and_numbers(ours, theirs, dtype):
  old, new = theirs(6, rngs=nnx.Rngs(3)), ours(6, rngs=nnx.Rngs(3))
  params = {k: draw(6) for k in nnx.to_pure_dict(nnx.state(old))}
  nnx.update(old, params)
  nnx.update(new, params)
  x = draw(4, 6, dtype=dtype)
  np.testing.assert_allclose(new(x), old(x).astype(dtype), rtol=3 * jnp.finfo(dtype).eps, atol=2e-6)
  assert new(x).dtype == dtype
  # Both take the same keys, so that the layers built after them start from the same values.
  rngs = [nnx.Rngs(0, params=3), nnx.Rngs(0, params=3)]
  theirs(6, rngs=rngs[0]), ours(6, rngs=rngs[1])
  assert rngs[0].params() == rngs[1].params()
  assert rngs[0]() == rngs[1]()


def test_swapping_keyword_arguments():
  options = {
    "epsilon": 1e-3, "dtype": jnp.float32, "param_dtype": jnp.float32, "use_bias": False,
    "use_scale": True, "bias_init": nnx.initializers.ones,
    "scale_init": nnx.initializers.constant(2.0), "axis_name": None,
  }  # fmt: skip
  x = draw(3, 5)
  old, new = (
    nnx.LayerNorm(5, **options, rngs=nnx.Rngs(0)),
    norms.LayerNorm(5, **options, rngs=nnx.Rngs(0)),
  )
  np.testing.assert_allclose(new(x), old(x), rtol=1e-5, atol=1e-6)
  for cls in (norms.RMSNorm, norms.ScaleNorm, norms.L2Normalize, norms.LpNormalize):
    assert cls(5, **options, rngs=nnx.Rngs(0))(x).shape == x.shape
