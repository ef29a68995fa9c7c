"""Region Normalization, by a mask and by learned importance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from normjax import norms

RNG = np.random.default_rng(0)
STATIC = ("epsilon", "stats_axes", "axis_name")
normalize = jax.jit(norms.region_normalize, static_argnames=(*STATIC, "soft"))
region_norm = jax.jit(norms.region_norm, static_argnames=(*STATIC, "masked_bias"))
learnable = jax.jit(norms.learnable_region_norm, static_argnames=(*STATIC, "threshold"))


def draw(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


X = 2 * draw(4, 6, 5, 3) + 1
HOLE = jnp.asarray(RNG.random((4, 6, 5, 1)) < 0.3)
AXES = {"batch": (0, 1, 2), "instance": (1, 2)}


def assert_close(a, b, rtol=1e-5):
  np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


def filled_and_normalized(x, region, axes, epsilon):
  """The authors' form: the mean of the region around it, a norm, and sqrt(S / n)."""
  size = np.sum(region, axes, keepdims=True)
  mean = np.sum(x * region, axes, keepdims=True) / size
  filled = x * region + (1 - region) * mean
  deviations = filled - np.mean(filled, axes, keepdims=True)
  n = np.prod([x.shape[a] for a in axes])
  return deviations / np.sqrt(np.var(filled, axes, keepdims=True) + epsilon) * np.sqrt(size / n)


@pytest.mark.parametrize("stats_axes", AXES)
def test_closed_form_equals_filling_and_normalizing(stats_axes):
  x, region = np.asarray(X, np.float64), np.asarray(HOLE, np.float64)
  y = normalize(X, HOLE, epsilon=0.1, stats_axes=stats_axes)
  wanted = sum(filled_and_normalized(x, r, AXES[stats_axes], 0.1) for r in (region, 1 - region))
  assert_close(y, wanted)


@pytest.mark.parametrize("stats_axes", AXES)
def test_one_region_is_the_norm_of_the_whole(stats_axes):
  axes = AXES[stats_axes]
  wanted = (X - np.mean(X, axes, keepdims=True)) / np.sqrt(np.var(X, axes, keepdims=True) + 1e-5)
  for label in (jnp.ones_like(HOLE), jnp.zeros_like(HOLE)):
    assert_close(normalize(X, label, stats_axes=stats_axes), wanted)


def test_each_region_has_its_own_moments_damped_by_its_size():
  y = normalize(X, HOLE, epsilon=0.1)
  for region in (np.asarray(HOLE)[..., 0], ~np.asarray(HOLE)[..., 0]):
    var, damping = np.var(np.asarray(X)[region], 0), 0.1 * region.size / region.sum()
    assert_close(np.mean(np.asarray(y)[region], 0), 0)
    assert_close(np.var(np.asarray(y)[region], 0), var / (var + damping))


def test_what_is_in_the_hole_leaves_the_rest_alone_bit_by_bit():
  valid = ~np.asarray(HOLE)[..., 0]
  y = normalize(X, HOLE)
  for junk in (0.0, 1e6, jnp.nan, jnp.inf):
    again = normalize(jnp.where(HOLE, junk, X), HOLE)
    np.testing.assert_array_equal(again[valid], y[valid])
  shifted = norms.batch_norm(jnp.where(HOLE, 100.0, X))[0]
  assert np.max(np.abs(shifted - norms.batch_norm(X)[0])[valid]) > 0.1


@pytest.mark.parametrize("epsilon", [0.0, 1e-5])
@pytest.mark.parametrize("count", [0, 1])
def test_empty_and_tiny_regions_add_zero_with_finite_gradients(epsilon, count):
  hole = jnp.zeros_like(HOLE).at[0, 0, 0].set(count == 1)
  epsilon = max(epsilon, 1e-5) if count else epsilon
  y, vjp = jax.vjp(lambda x: normalize(x, hole, epsilon=epsilon), X)
  assert count == 0 or np.array_equal(y[0, 0, 0], np.zeros(3))
  assert jnp.all(jnp.isfinite(y))
  assert jnp.all(jnp.isfinite(vjp(X)[0]))


def test_large_means_lose_no_digits():
  assert_close(normalize(X + 1e4, HOLE), normalize(X, HOLE), rtol=5e-3)


def test_examples_are_alone_with_instance_statistics():
  y = normalize(X, HOLE, stats_axes="instance")
  assert_close(normalize(X[1:2], HOLE[1:2], stats_axes="instance"), y[1:2])
  assert not np.allclose(normalize(X[1:2], HOLE[1:2]), normalize(X, HOLE)[1:2])


def test_soft_masks_are_weights():
  weight = RNG.random((4, 6, 5, 1))
  y = normalize(X, jnp.asarray(weight, jnp.float32), epsilon=0.1, soft=True)
  x, wanted = np.asarray(X, np.float64), 0.0
  for r in (weight, 1 - weight):
    mean = np.average(x, (0, 1, 2), np.broadcast_to(r, x.shape))
    var = np.average((x - mean) ** 2, (0, 1, 2), np.broadcast_to(r, x.shape))
    wanted = wanted + r * (x - mean) / np.sqrt(var + 0.1 * r.size / r.sum())
  assert_close(y, wanted)


PARAMS = [draw(3) for _ in range(4)]


def test_affine_of_each_region():
  r, m = normalize(X, HOLE), HOLE.astype(jnp.float32)
  np.testing.assert_array_equal(region_norm(X, HOLE), r)
  fs, fb, bs, bb = (v[None, None, None] for v in PARAMS)
  gained = r * m * (1 + fs) + r * (1 - m) * (1 + bs)
  assert_close(region_norm(X, HOLE, *PARAMS), gained + fb + bb)
  assert_close(region_norm(X, HOLE, *PARAMS, masked_bias=True), gained + m * fb + (1 - m) * bb)


def test_masks_are_resized_and_have_no_gradient():
  larger = jnp.repeat(jnp.repeat(HOLE, 2, 1), 3, 2)
  wanted = region_norm(X, HOLE, *PARAMS)
  for mask in (larger, larger[..., 0], larger[..., 0].astype(jnp.float32)):
    np.testing.assert_array_equal(region_norm(X, mask, *PARAMS), wanted)
  shared = region_norm(X, HOLE[:1], *PARAMS)
  assert_close(shared, region_norm(X, jnp.repeat(HOLE[:1], 4, 0), *PARAMS))
  loss = lambda m: jnp.sum(region_norm(X, m, *PARAMS) ** 3)
  np.testing.assert_array_equal(jax.grad(loss)(HOLE.astype(jnp.float32)), 0)


def test_layer_starts_without_an_affine_and_takes_one_from_outside():
  layer = norms.RegionNorm(3, rngs=nnx.Rngs(0))
  assert_close(layer(X, HOLE), normalize(X, HOLE), rtol=1e-6)
  given = layer(X, HOLE, foreground_scale=PARAMS[0], background_bias=PARAMS[1])
  assert_close(given, region_norm(X, HOLE, PARAMS[0], None, None, PARAMS[1]))
  bare = norms.RegionNorm(3, use_scale=False, use_bias=False, rngs=nnx.Rngs(0))
  assert not jax.tree.leaves(nnx.state(bare))
  np.testing.assert_array_equal(bare(X, HOLE), layer(X, HOLE))


KERNEL = draw(3, 3, 2, 1)
SCALE, BIAS = ((draw(3, 3, 1, 1), draw(1)) for _ in range(2))


def test_learned_region_is_where_importance_reaches_the_threshold():
  a = norms.region_importance(X, KERNEL)
  assert 0 < np.mean(a >= 0.8) < 1
  assert_close(learnable(X, KERNEL), normalize(X, a >= 0.8))
  whole = norms.batch_norm(X)[0]
  assert_close(learnable(X, jnp.zeros_like(KERNEL)), whole)
  # Pixels of 0 have an importance of exactly 0.5 here, which is enough.
  center = jnp.zeros_like(KERNEL).at[1, 1].set(1.0)
  x = jnp.array([0.0, 0.0, -1.0, -3.0]).reshape(1, 2, 2, 1)
  y = learnable(x, center, threshold=0.5)
  assert_close(y.ravel(), [0, 0, 1, -1], rtol=1e-4)


def test_importance_learns_through_scale_and_bias_only():
  def loss(kernel, scale, bias):
    return jnp.sum(learnable(X, kernel, scale, bias) ** 3)

  np.testing.assert_array_equal(jax.grad(loss)(KERNEL, None, None), 0)
  for pair in ((SCALE, None), (None, BIAS)):
    assert np.max(np.abs(jax.grad(loss)(KERNEL, *pair))) > 1e-3


def test_learnable_layer_draws_as_torch_does():
  layer = norms.LearnableRegionNorm(3, rngs=nnx.Rngs(0))
  for conv, fan_in in ((layer.importance_conv, 98), (layer.scale_conv, 49), (layer.bias_conv, 49)):
    edge = fan_in**-0.5
    assert 0.9 * edge < np.max(np.abs(conv.kernel[...])) <= edge
    assert conv.bias is None or 0 < np.abs(conv.bias[...]) <= edge
  assert layer.importance_conv.bias is None
  assert_close(
    layer(X),
    learnable(
      X, layer.importance_conv.kernel[...], layer.scale_conv.weights(), layer.bias_conv.weights()
    ),
  )
  bare = norms.LearnableRegionNorm(3, use_scale=False, use_bias=False, rngs=nnx.Rngs(0))
  assert [v.shape for v in jax.tree.leaves(nnx.state(bare))] == [(7, 7, 2, 1)]


def test_batch_sharded_by_name_equals_one_device():
  mesh, data = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,)), PartitionSpec("data")

  def run(x, hole, axis_name=None):
    options = {"axis_name": axis_name}
    basic = norms.region_norm(x, hole, *PARAMS, **options)
    return basic, norms.learnable_region_norm(x, KERNEL, SCALE, BIAS, **options)

  sharded = jax.shard_map(
    functools.partial(run, axis_name="data"), mesh=mesh, in_specs=data, out_specs=data
  )
  for a, b in zip(jax.jit(sharded)(X, HOLE), jax.jit(run)(X, HOLE), strict=True):
    assert_close(a, b)


@pytest.mark.parametrize(
  ("error", "change"),
  [
    ("x must have shape", {"x": X[0]}),
    ("x must be floating", {"x": X.astype(int)}),
    ("mask must have shape \\(4, h, w\\)", {"mask": HOLE[:2]}),
    ("mask must have shape", {"mask": HOLE[0, 0]}),
    ("mask must have shape", {"mask": jnp.ones((4, 6, 5, 3))}),
    ("mask must lie in \\[0, 1\\]", {"mask": 2.0 * HOLE}),
    ("mask must lie in", {"mask": jnp.full((4, 6, 5), jnp.nan)}),
    ("mask must be 0 or 1, .*soft=True", {"mask": 0.5 * HOLE}),
    ("scale must have shape", {"foreground_scale": jnp.ones(2)}),
    ("bias must have shape", {"background_bias": jnp.ones(2)}),
    ("epsilon must be >= 0", {"epsilon": -1.0}),
    ("stats_axes must be 'batch' or 'instance', got 'layer'", {"stats_axes": "layer"}),
    ("axis_name must be None", {"stats_axes": "instance", "axis_name": "data"}),
    ("dtype must be a floating", {"dtype": jnp.int32}),
  ],
)
def test_bad_arguments(error, change):
  with pytest.raises(ValueError, match=error):
    norms.region_norm(**{"x": X, "mask": HOLE} | change)


@pytest.mark.parametrize(
  ("error", "change"),
  [
    ("threshold must be in \\(0, 1\\)", {"threshold": 1.0}),
    ("kernel must have a kernel of size 3 or 7", {"importance": draw(5, 5, 2, 1)}),
    ("kernel must have a kernel \\(k, k, 2, 1\\)", {"importance": draw(3, 3, 1, 1)}),
    ("scale must have a kernel of size 3 or 7", {"scale": (draw(1, 1, 1, 1), None)}),
    ("bias must have a kernel \\(k, k, 1, 1\\)", {"bias": (draw(3, 3, 1, 2), None)}),
    ("stats_axes must be", {"stats_axes": "layer"}),
  ],
)
def test_bad_learnable_arguments(error, change):
  with pytest.raises(ValueError, match=error):
    norms.learnable_region_norm(**{"x": X, "importance": KERNEL} | change)


def test_other_bad_arguments():
  with pytest.raises(ValueError, match="label must have 4 axes"):
    norms.region_normalize(X, HOLE[:, :3])
  with pytest.raises(ValueError, match="kernel_size must be 3 or 7"):
    norms.LearnableRegionNorm(3, kernel_size=5, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="threshold must be in"):
    norms.LearnableRegionNorm(3, threshold=0.0, rngs=nnx.Rngs(0))
  for cls in (norms.RegionNorm, norms.LearnableRegionNorm):
    with pytest.raises(ValueError, match="stats_axes must be"):
      cls(3, stats_axes="channel", rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="x must have 2 entries"):
    norms.RegionNorm(2, rngs=nnx.Rngs(0))(X, HOLE)
