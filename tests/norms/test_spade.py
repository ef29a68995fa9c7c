"""SPADE and FADE: gain and bias of each pixel from a layout or from features."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from normjax import norms

RNG = np.random.default_rng(0)
C, K, M = 3, 4, 5


def draw(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def convolution(i, o, size=3):
  return draw(size, size, i, o), draw(o)


X = 2 * draw(4, 6, 5, C) + 1
LABELS = jnp.asarray(RNG.integers(0, K, (4, 9, 12)))
SHARED, SCALE, BIAS = convolution(K, M), convolution(M, C), convolution(M, C)
ZERO = (jnp.zeros((3, 3, M, C)), None)
STATIC = ("norm", "use_running_average", "epsilon", "decay", "axis_name")
spade = jax.jit(functools.partial(norms.spade, num_classes=K), static_argnames=STATIC)
fade = jax.jit(norms.fade, static_argnames=STATIC)


def assert_close(a, b, rtol=1e-5):
  np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


def test_zero_convolutions_leave_the_norm_without_parameters():
  y, state = spade(X, LABELS, SHARED, ZERO, ZERO)
  mean, var = np.mean(X, (1, 2), keepdims=True), np.var(X, (1, 2), keepdims=True)
  assert_close(y, (X - mean) / np.sqrt(var + 1e-5))
  assert state is None
  got = spade(X, LABELS, SHARED, ZERO, ZERO, norm="batch", decay=0.75)
  for a, b in zip(
    jax.tree.leaves(got), jax.tree.leaves(norms.batch_norm(X, decay=0.75)), strict=True
  ):
    assert_close(a, b)


def test_fade_is_spade_behind_an_identity():
  features = jnp.abs(draw(*X.shape[:3], K))
  identity = jnp.zeros((1, 1, K, K)).at[0, 0].set(jnp.eye(K))
  scale, bias = convolution(K, C), convolution(K, C, size=1)
  y, _ = spade(X, features, (identity, None), scale, bias)
  assert_close(y, fade(X, features, scale, bias)[0])
  assert not np.allclose(y, fade(X, features, bias, scale)[0])


def test_uniform_layout_scales_and_shifts_by_class_inside():
  plain, _ = spade(X, LABELS, SHARED, ZERO, ZERO)
  shown = []
  for label in (0, 3):
    y, _ = spade(X, jnp.full((4, 1, 1), label), SHARED, SCALE, BIAS)
    hidden = jax.nn.relu(SHARED[0].sum((0, 1))[label] + SHARED[1])
    gain, shift = (hidden @ kernel.sum((0, 1)) + bias for kernel, bias in (SCALE, BIAS))
    wanted = plain * (1 + gain[None, None, None]) + shift[None, None, None]
    assert_close(y[:, 2:-2, 2:-2], wanted[:, 2:-2, 2:-2], rtol=1e-4)
    shown.append(y)
  assert not np.allclose(*shown)


def test_instance_norm_washes_a_uniform_layout_away():
  kernel = convolution(K, C, size=1)[0][0, 0]
  for label in range(K):
    maps = jnp.broadcast_to(kernel[label], (1, 4, 4, C))
    zero = (jnp.zeros((1, 1, K, C)), None)
    washed, _ = fade(maps, jnp.ones((1, 4, 4, K)), zero, zero)
    np.testing.assert_allclose(washed, 0, atol=1e-4)


def test_labels_are_one_hot_channels():
  one_hot = jax.nn.one_hot(LABELS, K)
  wanted, _ = spade(X, one_hot, SHARED, SCALE, BIAS)
  np.testing.assert_array_equal(spade(X, LABELS, SHARED, SCALE, BIAS)[0], wanted)
  np.testing.assert_array_equal(spade(X, one_hot == 1, SHARED, SCALE, BIAS)[0], wanted)
  # Under jit a label out of range is no class.
  nowhere, _ = spade(X, jnp.full_like(LABELS, K), SHARED, SCALE, BIAS)
  assert_close(nowhere, spade(X, jnp.zeros_like(one_hot), SHARED, SCALE, BIAS)[0])


def test_masked_positions_do_not_enter_and_are_normalized():
  mask = jnp.arange(5) < 3
  mask = jnp.broadcast_to(mask, (4, 6, 5))
  junk = jnp.where(mask[..., None], X, jnp.nan)
  y, _ = spade(junk, LABELS, SHARED, ZERO, ZERO, mask=mask)
  cut, _ = spade(X[:, :, :3], LABELS, SHARED, ZERO, ZERO)
  assert_close(y[:, :, :3], cut)
  scaled, _ = spade(X, LABELS, SHARED, ZERO, ZERO, mask=mask)
  mean, var = np.mean(X[:, :, :3], (1, 2)), np.var(X[:, :, :3], (1, 2))
  assert_close(scaled[:, 0, 4], (X[:, 0, 4] - mean) / np.sqrt(var + 1e-5))


def test_state_of_a_layer_moves_in_training_only():
  features = draw(4, 6, 5, K)
  layer = norms.FADE(C, K, norm="batch", decay=0.5, kernel_size=1, rngs=nnx.Rngs(0))
  layer(X, features)
  mean, var = norms.batch_norm(X, decay=0.5)[1]
  assert_close(layer.mean[...], mean)
  assert_close(layer.var[...], var)
  shown = layer(X[:1], features[:1], use_running_average=True)
  assert_close(layer.mean[...], mean)
  wanted, _ = fade(
    X[:1], features[:1], layer.scale_conv.weights(), layer.bias_conv.weights(), (mean, var),
    norm="batch", use_running_average=True,
  )  # fmt: skip
  assert_close(shown, wanted)


def test_batch_sharded_by_name_equals_one_device():
  mesh, data = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,)), PartitionSpec("data")
  run = functools.partial(
    norms.spade, shared=SHARED, scale=SCALE, bias=BIAS, num_classes=K, norm="batch"
  )
  sharded = jax.jit(
    jax.shard_map(
      functools.partial(run, axis_name="data"),
      mesh=mesh,
      in_specs=(data, data),
      out_specs=(data, PartitionSpec()),
    )
  )(X, LABELS)
  for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(jax.jit(run)(X, LABELS)), strict=True):
    assert_close(a, b)


@pytest.mark.parametrize(
  ("error", "change"),
  [
    ("x must have shape \\(b, h, w, c\\)", {"x": X[0]}),
    ("x must be floating", {"x": X.astype(int)}),
    ("segmap must be integer labels", {"segmap": LABELS[..., None]}),
    ("segmap must be integer labels", {"segmap": LABELS[:3]}),
    ("segmap must be integer labels", {"segmap": jnp.ones((4, 3, 3))}),
    ("num_classes must be positive", {"num_classes": None}),
    ("segmap must hold labels in \\[0, 3\\)", {"num_classes": 3}),
    (
      "segmap must hold labels in \\[0, 4\\), got some from -1",
      {"segmap": LABELS.at[0, 0].set(-1)},
    ),
    ("shared must have a kernel \\(k, k, 4, any\\)", {"shared": SCALE}),
    ("scale must have a kernel \\(k, k, 5, 3\\)", {"scale": convolution(M, 2)}),
    ("bias kernel must be odd", {"bias": convolution(M, C, size=2)}),
    ("bias must have a bias \\(3,\\)", {"bias": (BIAS[0], jnp.ones(2))}),
    ("norm must be 'instance' or 'batch', got 'group'", {"norm": "group"}),
    ("state must be None", {"state": (jnp.zeros(C), jnp.ones(C))}),
    ("state must be \\(mean, var\\)", {"state": (jnp.zeros(2), jnp.ones(2)), "norm": "batch"}),
    ("epsilon must be >= 0", {"epsilon": -1.0}),
    ("decay must be in", {"decay": 1.0, "norm": "batch"}),
    ("mask must have the shape", {"mask": jnp.ones((4, 6), bool)}),
    ("dtype must be a floating", {"dtype": jnp.int32}),
  ],
)
def test_bad_arguments(error, change):
  arguments = dict(x=X, segmap=LABELS, shared=SHARED, scale=SCALE, bias=BIAS, num_classes=K)
  with pytest.raises(ValueError, match=error):
    norms.spade(**arguments | change)


def test_other_bad_arguments():
  with pytest.raises(ValueError, match="features must have the batch and the size"):
    norms.fade(X, draw(4, 3, 5, M), SCALE, BIAS)
  zeros = {"kernel_init": nnx.initializers.zeros, "rngs": nnx.Rngs(0)}
  for cls in (norms.SPADE, norms.FADE):
    with pytest.raises(ValueError, match="kernel_size must be odd"):
      cls(C, K, kernel_size=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="norm must be"):
      cls(C, K, norm="syncbatch", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="x must have 2 entries"):
      cls(2, K, **zeros)(X, LABELS)
    with pytest.raises(ValueError, match="use_running_average must be given"):
      cls(C, K, norm="batch", use_running_average=None, **zeros)(X, LABELS)
