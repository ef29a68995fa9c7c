"""Positional norm, moment shortcut and moment exchange."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from normjax import norms

RNG = np.random.default_rng(0)
TYPES = ["pono", "in", "ln", "gn2", "gn-d3", "gpono2", "gpono-d3"]


def draw(*shape, dtype=jnp.float32):
  return jnp.asarray(RNG.normal(size=shape), dtype)


@functools.cache
def exchange(norm_type, epsilon=0.0, positive_only=False):
  options = dict(norm_type=norm_type, epsilon=epsilon, positive_only=positive_only)
  return jax.jit(functools.partial(norms.moment_exchange, **options))


# -- Positional norm -------------------------------------------------------------------------------


def test_shortcut_undoes_the_norm():
  x = 3 + draw(2, 3, 4, 6)
  np.testing.assert_allclose(norms.moment_shortcut(*norms.positional_norm(x)), x, rtol=1e-5)


def test_moments_of_the_output_and_its_moments():
  x = 3 + 0.1 * draw(2, 3, 4, 6)
  y, mean, std = norms.positional_norm(x, epsilon=0.01)
  assert mean.shape == std.shape == (2, 3, 4, 1)
  var = np.var(x, axis=-1, ddof=1)
  np.testing.assert_allclose(mean[..., 0], np.mean(x, -1), rtol=1e-6)
  np.testing.assert_allclose(std[..., 0] ** 2, var + 0.01, rtol=1e-5)
  np.testing.assert_allclose(np.mean(y, -1), 0, atol=1e-6)
  np.testing.assert_allclose(np.var(y, axis=-1, ddof=1), var / (var + 0.01), rtol=1e-4)


def test_moments_stay_wide():
  x = (100 + draw(2, 3, 8)).astype(jnp.bfloat16)
  y, mean, std = norms.positional_norm(x)
  assert (y.dtype, mean.dtype, std.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
  assert norms.moment_shortcut(y, mean, std).dtype == jnp.bfloat16
  assert norms.moment_shortcut(y, mean, std, dtype=jnp.float32).dtype == jnp.float32


def test_affine_is_one_number_per_position():
  x = draw(2, 3, 4, 6)
  norm = norms.PositionalNorm(6, positions=(3, 4), use_scale=True, use_bias=True, rngs=nnx.Rngs(0))
  assert norm.scale.shape == norm.bias.shape == (1, 3, 4, 1)
  norm.scale[...], norm.bias[...] = draw(1, 3, 4, 1), draw(1, 3, 4, 1)
  y, _, _ = norms.positional_norm(x)
  np.testing.assert_allclose(norm(x), y * norm.scale[...] + norm.bias[...], rtol=1e-5, atol=1e-6)


def test_positional_norm_refuses():
  x, rngs = draw(2, 3, 4), nnx.Rngs(0)
  for call, message in (
    (lambda: norms.positional_norm(x[..., :1]), "x must have at least 2 channels"),
    (lambda: norms.PositionalNorm(1, rngs=rngs), "num_features must be at least 2"),
    (lambda: norms.PositionalNorm(4, use_bias=True, rngs=rngs), "positions must be given"),
    (lambda: norms.positional_norm(x, jnp.ones(4)), "scale must have"),
    (lambda: norms.positional_norm(x, epsilon=-1.0), "epsilon must be"),
    (lambda: norms.moment_shortcut(x, jnp.ones((2, 3)), jnp.ones((2, 3, 1))), "mean must have"),
    (lambda: norms.moment_shortcut(x, 0 * x, jnp.ones((1, 2, 1))), "std must have"),
  ):
    with pytest.raises(ValueError, match=message):
      call()


# -- Moment exchange -------------------------------------------------------------------------------


def _moments(x, norm_type):
  """The moments in numpy, (b, ...) without the reduced axes."""
  x = np.asarray(x, np.float64)
  groups = {"in": 6, "gn2": 2, "gn-d3": 2, "gpono2": 2, "gpono-d3": 2}.get(norm_type, 1)
  x = x.reshape(*x.shape[:-1], groups, -1)
  axes = -1 if "pono" in norm_type else (1, 2, -1)
  return np.mean(x, axes), np.var(x, axis=axes, ddof=1)


@pytest.mark.parametrize("norm_type", TYPES)
def test_moments_are_those_of_the_other_example(norm_type):
  x, perm = draw(4, 2, 3, 6), jnp.array([2, 0, 1, 3])
  y = exchange(norm_type)(x, perm)
  for got, wanted in zip(_moments(y, norm_type), _moments(x, norm_type), strict=True):
    np.testing.assert_allclose(got, wanted[perm], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(y[3], x[3], rtol=1e-5, atol=1e-6)
  assert not np.allclose(y[0], x[0])


@pytest.mark.parametrize("norm_type", ["pono", "in", "gn2"])
def test_the_same_swap_twice_gives_the_features_back(norm_type):
  x, swap = draw(4, 2, 3, 6), jnp.array([1, 0, 3, 2])
  swapped = exchange(norm_type)(x, swap)
  np.testing.assert_allclose(exchange(norm_type)(swapped, swap), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("a", "b"), [("gn1", "ln"), ("gn6", "in"), ("gpono1", "pono")])
def test_norm_types_that_are_the_same(a, b):
  x, perm = draw(3, 2, 3, 6), jnp.array([2, 0, 1])
  np.testing.assert_allclose(exchange(a)(x, perm), exchange(b)(x, perm), rtol=1e-6, atol=1e-6)


def test_pono_acts_on_each_position_alone():
  x, perm, order = draw(3, 5, 6), jnp.array([2, 0, 1]), jnp.array([3, 1, 4, 0, 2])
  f = exchange("pono", 1e-5)
  np.testing.assert_allclose(f(x[:, order], perm), f(x, perm)[:, order], rtol=1e-6)


def test_positive_only_takes_moments_of_positive_entries_and_maps_all():
  x, perm = draw(3, 4, 6), jnp.array([1, 2, 0])
  x = x.at[0, 0].set(-jnp.abs(x[0, 0]))  # without a positive entry: mean and variance 0
  y = np.asarray(exchange("pono", 1e-2, True)(x, perm))
  for i in range(3):
    for t in range(4):
      (mean, std), (mean_there, std_there) = (
        (np.mean(p), np.sqrt(np.var(p) + 1e-2)) if len(p) else (0.0, 0.1)
        for p in (np.asarray(v[t])[np.asarray(v[t]) > 0] for v in (x[i], x[perm[i]]))
      )
      wanted = (x[i, t] - mean) / std * std_there + mean_there
      np.testing.assert_allclose(y[i, t], wanted, rtol=1e-4, atol=1e-5)


def test_gradients_flow_through_the_moments_of_both_examples():
  with jax.enable_x64(True):
    x, g = draw(2, 3, 4, dtype=jnp.float64), draw(3, 4, dtype=jnp.float64)
    loss = lambda x: jnp.sum(exchange("pono", 1e-5)(x, jnp.array([1, 0]))[0] * g)
    dx = jax.jit(jax.grad(loss))(x)
    assert np.all(np.abs(dx) > 1e-8)
    # y[0] does not move with its own mean and scale; it moves with those of the other example.
    np.testing.assert_allclose(jnp.sum(dx[0], -1), 0, atol=1e-12)
    np.testing.assert_allclose(jnp.sum(dx[1], -1), jnp.sum(g, -1), rtol=1e-9)


def test_constant_positions_and_single_examples_are_finite():
  x = jnp.ones((2, 3, 4)).at[1].set(draw(3, 4))
  f = lambda x: jnp.sum(exchange("pono", 1e-5)(x, jnp.array([1, 0])) ** 2)
  assert np.all(np.isfinite(jax.jit(jax.grad(f))(x)))
  alone = draw(1, 3, 4)
  np.testing.assert_allclose(exchange("pono", 1e-5)(alone, jnp.array([0])), alone, rtol=1e-5)


def test_shards_exchange_their_own_moments_or_those_of_all():
  x = draw(8, 2, 6)
  mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
  spec = PartitionSpec("data")

  def sharded(perm, axis_name):
    f = functools.partial(norms.moment_exchange, axis_name=axis_name)
    mapped = jax.shard_map(f, mesh=mesh, in_specs=(spec, spec), out_specs=spec)
    return jax.jit(mapped)(x, perm)

  whole = jnp.asarray(RNG.permutation(8))
  f = exchange("pono", 1e-5)
  np.testing.assert_allclose(sharded(whole, "data"), f(x, whole), rtol=1e-5, atol=1e-6)
  local = jnp.array([1, 0] * 4)
  wanted = f(x, jnp.arange(8) ^ 1)
  np.testing.assert_allclose(sharded(local, None), wanted, rtol=1e-5, atol=1e-6)


# -- Labels and the step ---------------------------------------------------------------------------


def test_loss_is_the_cross_entropy_at_one_and_its_gradient_is_as_derived():
  logits, labels, perm = draw(5, 3), jnp.array([0, 2, 1, 1, 0]), jnp.array([4, 2, 0, 3, 1])
  hot = jax.nn.one_hot(labels, 3)
  plain = -jnp.mean(jnp.sum(hot * jax.nn.log_softmax(logits), -1))
  loss = jax.jit(norms.moment_exchange_loss)
  np.testing.assert_allclose(loss(logits, labels, perm, 1.0), plain, rtol=1e-6)
  grad = jax.jit(jax.grad(norms.moment_exchange_loss))(logits, labels, perm, 0.7)
  wanted = (jax.nn.softmax(logits) - 0.7 * hot - 0.3 * hot[perm]) / 5
  np.testing.assert_allclose(grad, wanted, rtol=1e-5, atol=1e-7)
  soft = jax.nn.softmax(draw(5, 3))
  mixed = norms.moment_exchange_labels(soft, perm, 0.7)
  np.testing.assert_allclose(mixed, 0.7 * soft + 0.3 * soft[perm], rtol=1e-6)


def test_draw_exchanges_with_the_given_probability_and_else_changes_nothing():
  draws = jax.jit(
    jax.vmap(lambda key: norms.moment_exchange_draw(key, 6, probability=0.3, lam=0.5))
  )
  perms, lams = draws(jax.random.split(jax.random.key(0), 600))
  np.testing.assert_array_equal(np.sort(perms, 1), np.broadcast_to(np.arange(6), (600, 6)))
  exchanged = np.asarray(lams) == 0.5
  assert abs(exchanged.mean() - 0.3) < 0.08
  assert np.all(lams[~exchanged] == 1)
  moved = np.any(np.asarray(perms) != np.arange(6), axis=1)
  assert not moved[~exchanged].any()
  assert moved[exchanged].mean() > 0.97  # 1 - 1/720
  for position in range(6):
    counts = np.bincount(np.asarray(perms)[exchanged, position], minlength=6) / exchanged.sum()
    np.testing.assert_allclose(counts, 1 / 6, atol=0.12)
  _, always = norms.moment_exchange_draw(jax.random.key(1), 6)
  assert np.float32(always) == np.float32(0.9)


def test_moment_exchange_refuses():
  x, perm, key = draw(2, 3, 6), jnp.array([1, 0]), jax.random.key(0)
  moex, mix = norms.moment_exchange, norms.moment_exchange_labels
  for call, message in (
    (lambda: moex(x, perm, norm_type="bn"), "norm_type must be"),
    (lambda: moex(x, perm, norm_type="gn0"), "norm_type must be"),
    (lambda: moex(x, perm, norm_type="gn4"), "norm_type 'gn4' must divide the 6"),
    (lambda: moex(x, perm, norm_type="gpono-d5"), "must divide the 6"),
    (lambda: moex(x[..., :1], perm), "moments of single entries"),
    (lambda: moex(x[:, 0], perm, norm_type="in"), "moments of single entries"),
    (lambda: moex(x, jnp.array([0])), "perm must be integers"),
    (lambda: moex(x, jnp.array([1.0, 0.0])), "perm must be integers"),
    (lambda: moex(x[0, 0], perm), "x must have shape"),
    (lambda: moex(x, perm, epsilon=-1.0), "epsilon must be"),
    (lambda: norms.moment_exchange_draw(key, 2, probability=1.5), "probability must be"),
    (lambda: norms.moment_exchange_draw(key, 2, lam=-0.1), "lam must be"),
    (lambda: mix(perm, perm, 1.1, num_classes=2), "lam must be"),
    (lambda: mix(perm, perm), "num_classes must be given"),
    (lambda: mix(draw(2, 3), perm, num_classes=4), "labels must be"),
    (lambda: mix(perm, jnp.array([0]), num_classes=2), "perm must be integers"),
    (lambda: norms.moment_exchange_loss(draw(2), perm, perm), "logits must have shape"),
  ):
    with pytest.raises(ValueError, match=message):
      call()
