"""GroupNorm and InstanceNorm: what they equal, masks, devices, and the error of each argument."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from normjax import norms

RNG = np.random.default_rng(0)
SHAPE = (2, 4, 3, 6)
X, G = (jnp.asarray(RNG.normal(size=SHAPE), jnp.float32) for _ in range(2))
SCALE, BIAS = (jnp.asarray(RNG.normal(size=6), jnp.float32) for _ in range(2))
BOTH = {
  "group_norm": functools.partial(norms.group_norm, num_groups=3),
  "instance_norm": norms.instance_norm,
}
each = pytest.mark.parametrize("name", BOTH)


@functools.partial(jax.jit, static_argnums=0)
def with_grads(f, x=X, g=G):
  y, vjp = jax.vjp(f, x, SCALE, BIAS)
  return y, vjp(g)


def assert_close(a, b):
  for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(u, v, rtol=0, atol=5e-6 * np.max(np.abs(v)))


def test_as_many_groups_as_channels_are_instance_norm():
  by_number = with_grads(functools.partial(norms.group_norm, num_groups=6))
  assert_close(by_number, with_grads(functools.partial(norms.group_norm, group_size=1)))
  assert_close(by_number, with_grads(norms.instance_norm))


def test_one_group_is_layer_norm_over_positions_and_channels():
  def layer_norm(x, scale, bias):
    return (
      norms.layer_norm(x, axis=(1, 2, 3), epsilon=1e-5) * scale[None, None, None]
      + (bias[None, None, None])
    )

  assert_close(
    with_grads(functools.partial(norms.group_norm, num_groups=1)), with_grads(layer_norm)
  )


def test_groups_are_neighbouring_channels():
  y = norms.group_norm(X, num_groups=3)
  for group in (0, 2, 4):
    alone = norms.group_norm(X[..., group : group + 2], num_groups=1)
    assert_close(y[..., group : group + 2], alone)


def test_thirty_two_groups_are_the_default_and_flax_has_the_same_numbers():
  x = jnp.asarray(RNG.normal(size=(2, 3, 64)), jnp.float32)
  y = norms.GroupNorm(64, rngs=nnx.Rngs(0))(x)
  assert_close(y, norms.GroupNorm(64, group_size=2, rngs=nnx.Rngs(0))(x))
  assert_close(y, nnx.GroupNorm(64, epsilon=1e-5, use_fast_variance=False, rngs=nnx.Rngs(0))(x))
  assert norms.GroupNorm(64, 16, rngs=nnx.Rngs(0)).num_groups == 16


def test_instance_norm_has_no_parameters_unless_asked():
  assert not nnx.state(norms.InstanceNorm(6, rngs=nnx.Rngs(0)))
  module = norms.InstanceNorm(6, use_scale=True, use_bias=True, rngs=nnx.Rngs(0))
  nnx.update(module, {"scale": SCALE, "bias": BIAS})
  np.testing.assert_array_equal(module(X), norms.instance_norm(X, SCALE, BIAS))


def test_group_of_one_entry_gives_the_bias():
  x = 1e3 * X[:, 0, 0]
  for y in (norms.group_norm(x, SCALE, BIAS, num_groups=6), norms.instance_norm(x, SCALE, BIAS)):
    np.testing.assert_array_equal(y, np.broadcast_to(BIAS, x.shape))


@each
def test_masked_positions_of_each_example_stay_out_of_its_statistics(name):
  norm = BOTH[name]
  mask = jnp.asarray(RNG.random(SHAPE[:3]) < 0.6)
  x, g = jnp.where(mask[..., None], X, jnp.nan), jnp.where(mask[..., None], G, 0)
  y, (dx, dscale, dbias) = with_grads(lambda *args: norm(*args, mask=mask), x, g)
  totals = [0, 0]
  for example, keep in enumerate(np.asarray(mask)):
    rows = lambda v, e=example, k=keep: v[e][k][None]
    y_rows, (dx_rows, *dparams) = with_grads(norm, rows(X), rows(G))
    assert_close((y[example][keep], dx[example][keep]), (y_rows[0], dx_rows[0]))
    assert np.all(dx[example][~keep] == 0)
    totals = [t + d for t, d in zip(totals, dparams, strict=True)]
  assert_close((dscale, dbias), totals)
  # All positions are normalized, also those of an example without a valid one.
  mask = mask.at[0].set(False)
  assert np.all(np.isfinite(norm(X, mask=mask)))
  assert np.all(np.abs(norm(X, mask=mask)[~mask]).max(-1) > 0)


@each
def test_positions_sharded_over_devices(name):
  norm = BOTH[name]
  mask = jnp.arange(24).reshape(SHAPE[:3]) % 5 != 0
  mask = mask.at[:, 2].set(False)
  mesh = jax.make_mesh((4,), ("space",), axis_types=(AxisType.Auto,))
  space, whole = PartitionSpec(None, "space"), PartitionSpec()
  shard = jax.shard_map(
    lambda x, scale, bias, mask: norm(x, scale, bias, mask=mask, axis_name="space"),
    mesh=mesh, in_specs=(space, whole, whole, space), out_specs=space,
  )  # fmt: skip
  sharded = with_grads(lambda *args: shard(*args, mask))
  assert_close(sharded, with_grads(lambda *args: norm(*args, mask=mask)))


@each
@pytest.mark.parametrize(
  ("error", "options"),
  [
    ("epsilon must be >= 0, got -1", {"epsilon": -1}),
    (r"scale must have shape \(6,\)", {"scale": jnp.ones(3)}),
    (r"bias must have shape \(6,\)", {"bias": jnp.ones(3)}),
    ("mask must be boolean", {"mask": jnp.ones((2, 4, 3))}),
    (r"mask must have the shape \(2, 4, 3\)", {"mask": jnp.ones((2, 4), bool)}),
    ("dtype must be a floating dtype", {"dtype": jnp.int32}),
    (r"x must have the axes \(batch, ..., c\)", {"x": jnp.ones(6)}),
    ("at least one position", {"x": jnp.ones((2, 0, 6))}),
    ("x must be floating", {"x": jnp.ones(SHAPE, jnp.int32)}),
  ],
)
def test_bad_arguments(name, error, options):
  with pytest.raises(ValueError, match=error):
    BOTH[name](**{"x": X} | options)


@pytest.mark.parametrize(
  ("error", "options"),
  [
    ("num_groups must divide the 6 channels, got 4", {"num_groups": 4}),
    ("num_groups must divide the 6 channels, got 0", {"num_groups": 0}),
    (r"num_groups must divide the 6 channels, got 32 \(the default\)", {}),
    ("group_size must divide the 6 channels, got 4", {"group_size": 4}),
    ("group_size must divide the 6 channels, got 0", {"group_size": 0}),
    ("num_groups and group_size exclude each other, got 2 and 3",
     {"num_groups": 2, "group_size": 3}),
  ],
)  # fmt: skip
def test_bad_groups(error, options):
  with pytest.raises(ValueError, match=error):
    norms.group_norm(X, **options)
  with pytest.raises(ValueError, match=error):
    norms.GroupNorm(6, **options, rngs=nnx.Rngs(0))
