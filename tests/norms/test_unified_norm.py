"""Unified normalization: smoothing, outliers, the ratio in the gradient, what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import norms
from normjax.norms._unified_training import geometric_mean

_RNG = np.random.default_rng(0)
X = np.float32(_RNG.normal(size=(4, 3, 5)) * np.linspace(0.9, 1.1, 5))
G = np.float32(_RNG.normal(size=X.shape))
SCALE, BIAS = np.float32(np.linspace([0.5, -1], [2, 1], 5).T)
ERR = np.linspace(-1, 1, 5, dtype=np.float32)
close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)


def mean(v):
  return v.reshape(-1, v.shape[-1]).mean(0)


def wide(v):
  return v.reshape(1, 1, -1)


def put(window, slot, value):
  """Return a copy of the window with another row."""
  return np.concatenate([window[:slot], [value], window[slot + 1 :]])


SQUARE = mean(X**2)
WINDOW = SQUARE * np.float32([[0.9], [1.1], [1.0], [1.05]])
NONE = np.zeros((4, 5), np.float32)


def full(iters=9, phi=SQUARE, recent=WINDOW, skips=0):
  """Return the state of a layer after a while."""
  return phi, recent, jnp.asarray(iters, jnp.int32), jnp.asarray(skips, jnp.int32)


@functools.cache
def compiled(options):
  """Return a jitted training step with all that its backward pass gives."""

  @jax.jit
  def step(state, x, past, mask):
    f = lambda *args: norms.unified_norm(*args[:3], state, args[3], mask=mask, **dict(options))
    y, vjp, state = jax.vjp(f, x, SCALE, BIAS, (ERR, past), has_aux=True)
    return y, state, *vjp(G)

  return step


def run(state, x=X, past=NONE, mask=None, **options):
  """Return y, the new state, dx, dscale, dbias and the increments."""
  options = {"warmup_iters": 8, "ratio_warmup": 8, **options}
  out = compiled(tuple(options.items()))(state, np.float32(x), past, mask)
  return jax.tree.map(np.asarray, out)


def test_warmup_is_normalization_by_the_quadratic_mean_of_the_batch():
  plain = norms.power_norm_v(X, SCALE, BIAS)[0]
  # Up to step warmup_iters, and until the window is full.
  for last, options in ((6, {}), (3, {"warmup_iters": 2})):
    close(run(full(last), **options)[0], plain)
    assert not np.allclose(run(full(last + 1), **options)[0], plain, rtol=1e-3)


def test_smoothed_statistics_are_the_geometric_mean_of_the_last_steps():
  y, (phi, recent, iters, skips), *_ = run(full())
  expected = put(WINDOW, 10 % 4, SQUARE)
  close(recent, expected)
  geometric = np.exp(np.log(expected).mean(0))
  close(y, X / wide(np.sqrt(geometric + 1e-5)) * wide(SCALE) + wide(BIAS))
  close(phi, 0.9 * SQUARE + 0.1 * geometric)
  assert (iters, skips) == (10, 0)
  assert iters.dtype == skips.dtype == jnp.int32


def test_means_of_windows_obey_their_bounds():
  w = 3
  window = np.float32(np.exp(3 * _RNG.normal(size=(w, 1000))))
  window[1, :2] = 0
  arithmetic, geometric = window.mean(0), np.asarray(jax.jit(geometric_mean)(window))
  np.testing.assert_array_equal(geometric[:2], [0, 0])
  close(geometric[2:], np.exp(np.log(window[:, 2:]).mean(0)), rtol=1e-4)
  assert np.all(geometric <= arithmetic * (1 + 1e-5))
  assert np.all(arithmetic - geometric <= w * np.sqrt(window).var(0) + 1e-5 * arithmetic)


@pytest.mark.parametrize("scope", ["layer", "channel"])
def test_identical_batches_are_no_outliers_and_normalize_as_in_the_warmup(scope):
  options = {"outlier_filtration": True, "variance_scope": scope, "warmup_iters": 9}
  step = jax.jit(lambda state: norms.unified_norm(X, SCALE, BIAS, state, **options))
  state = full(0, np.ones(5, np.float32), NONE)
  for _ in range(12):
    y, state = step(state)
    close(y, norms.power_norm_v(X, SCALE, BIAS)[0])
  assert state[3] == 0
  close(state[1], np.broadcast_to(SQUARE, (4, 5)))
  close(state[0], 0.9**12 + SQUARE * (1 - 0.9**12))


def test_filtration_keeps_a_spike_out_of_the_window():
  phi, past = SQUARE * 0.8, np.float32(_RNG.normal(size=(4, 5)))
  spike = run(full(phi=phi), 6 * X, past, outlier_filtration=True)
  y, (_, recent, _, skips), dx, _, _, (increment, past_increment) = spike
  assert skips == 1
  close(recent, put(WINDOW, 2, phi))
  z = X / wide(np.sqrt(SQUARE + 1e-5 / 36))
  close(y, z * wide(SCALE) + wide(BIAS))
  # The gradient leaves smoothing and the ratio out, and its window gets the old running mean.
  product = mean(G * wide(SCALE) * z)
  close(past_increment, put(NONE, 2, ERR - past[2]))
  close(increment, 0.1 * (product - ERR))
  close(dx, (G * wide(SCALE) - wide(product) * z) / wide(np.sqrt(36 * SQUARE + 1e-5)))
  # The step after it sees the running value in the place of the spike.
  after = run(spike[1], outlier_filtration=True)
  assert after[1][3] == 1
  close(geometric_mean(after[1][1]), np.exp(np.log(put(put(WINDOW, 2, phi), 3, SQUARE)).mean(0)))


def test_without_filtration_a_spike_moves_the_geometric_mean_by_a_root_only():
  calm, spike = run(full())[1], run(full(), 6 * X)[1]
  assert spike[3] == 0
  close(geometric_mean(spike[1]) / geometric_mean(calm[1]), np.full(5, 36 ** (1 / 4)))


def test_filtration_waits_for_the_end_of_the_warmup():
  for iters, skips in ((6, 0), (7, 1)):
    assert run(full(iters), 6 * X, outlier_filtration=True)[1][3] == skips


def test_scope_of_the_variance_decides_what_an_outlier_is():
  """Channels of different sizes make the variance of all of them together a loose bound."""
  sizes = np.float32([1, 2, 4, 8, 16])
  state = full(phi=SQUARE * sizes**2, recent=WINDOW * sizes**2)
  for scope, skips in (("layer", 0), ("channel", 1)):
    options = {"outlier_filtration": True, "variance_scope": scope}
    assert run(state, 2 * X * wide(sizes), **options)[1][3] == skips


def test_a_window_that_was_not_written_is_not_used():
  y, state, *rest = run(full(recent=NONE))
  close(y, norms.power_norm_v(X, SCALE, BIAS)[0])
  assert all(np.all(np.isfinite(v)) for v in jax.tree.leaves((state, rest)))


def test_channels_of_zeros_are_finite_and_have_a_geometric_mean_of_zero():
  present = np.float32(np.arange(5) != 2)
  x, state = X * present, full(recent=WINDOW * present)
  y, (phi, *_), *rest = run(state, x, outlier_filtration=True)
  close(y[..., 2], np.full((4, 3), BIAS[2]))
  close(phi[2], 0.9 * SQUARE[2])
  assert all(np.all(np.isfinite(v)) for v in jax.tree.leaves(rest))


@pytest.mark.parametrize("factor", [1.0, 2.0, 100.0, 1e-4])
def test_ratio_of_deviations_enters_the_gradients_of_scale_and_input(factor):
  phi = SQUARE / factor
  y, _, dx, dscale, dbias, (increment, past) = run(full(phi=phi))
  m = np.exp(np.log(put(WINDOW, 2, SQUARE)).mean(0))
  z = X / wide(np.sqrt(m + 1e-5))
  r = np.clip(np.sqrt((m + 1e-5) / (phi + 1e-5)), 0.2, 5)
  close(dscale, (G * z).sum((0, 1)) * r, rtol=1e-4)
  close(dbias, G.sum((0, 1)))
  g = G * wide(SCALE * r)
  product = mean(g * z)
  close(past, put(NONE, 2, product), rtol=1e-4)
  err = 0.9 * ERR + 0.1 * product / 4
  close(increment, err - ERR, rtol=1e-4)
  close(dx, (g - wide(err) * z) / wide(np.sqrt(m + 1e-5)), rtol=1e-4)


def test_ratio_waits_for_the_longer_warmup():
  for last, options in ((8, {}), (10, {"ratio_warmup": 10})):
    for iters, ratio in ((last - 1, 1.0), (last, 5.0)):
      y, _, _, dscale, *_ = run(full(iters, phi=SQUARE / 100), **options)
      z = (y - wide(BIAS)) / wide(SCALE)
      close(dscale, (G * z).sum((0, 1)) * ratio, rtol=1e-4)


def test_gradient_is_not_smoothed_during_the_warmup_of_its_window():
  for iters, options, parts in (
    (6, {}, 1),
    (7, {}, 4),
    (3, {"warmup_iters": 2}, 1),
    (4, {"warmup_iters": 2}, 4),
  ):
    y, *_, (increment, _) = run(full(iters), **options)
    product = mean(G * (y - wide(BIAS)))
    close(increment, 0.1 * (product / parts - ERR), rtol=1e-4)


def test_a_window_of_one_never_smooths_and_never_filters():
  state = full(recent=NONE[:1], phi=SQUARE / 100)
  options = {"window": 1, "outlier_filtration": True, "past": NONE[:1]}
  y, (_, recent, _, skips), dx, _, _, (_, past) = run(state, **options)
  close(y, norms.power_norm_v(X, SCALE, BIAS)[0])
  close(recent, SQUARE[None])
  close(past, ERR[None])
  g, z = G * wide(SCALE), X / wide(np.sqrt(SQUARE + 1e-5))
  close(dx, (g - wide(mean(g * z)) * z) / wide(np.sqrt(SQUARE + 1e-5)))
  assert skips == 0


@pytest.mark.parametrize("mask_backward", [False, True])
def test_masked_positions_enter_the_gradients_statistics_as_asked(mask_backward):
  valid = _RNG.random((4, 3)) < 0.6
  y, (_, recent, *_), *_, (increment, _) = run(full(6), mask=valid, mask_backward=mask_backward)
  close(recent[3], (X**2)[valid].mean(0))
  products = G * (y - wide(BIAS))
  counted = valid if mask_backward else np.ones_like(valid)
  close(increment, 0.1 * (products[counted].mean(0) - ERR))


def test_every_rank_gives_the_same():
  norm = jax.jit(norms.unified_norm)
  flat = norm(X.reshape(12, 5), SCALE, BIAS)
  for shape in ((4, 3, 5), (2, 2, 3, 5)):
    y, state = norm(X.reshape(shape), SCALE, BIAS)
    close(y.reshape(12, 5), flat[0])
    close(state.recent, flat[1].recent)


@pytest.mark.parametrize(
  ("error", "options"),
  [
    ("window must be an integer >= 1", {"window": 0}),
    ("window must be an integer >= 1", {"window": (3, 0)}),
    ("window must be an integer >= 1", {"window": (1, 2, 3)}),
    ("window must be an integer >= 1", {"window": (1.5, 2)}),
    (r"decay must be in \[0, 1\), got 1", {"decay": 1.0}),
    (r"decay must be in \[0, 1\), got -1", {"decay": -1}),
    ("warmup_iters must be an integer >= 0, got -1", {"warmup_iters": -1}),
    ("ratio_warmup must be an integer >= 0, got -1", {"ratio_warmup": -1}),
    ("epsilon must be >= 0, got -1", {"epsilon": -1}),
    ("variance_scope must be 'layer' or 'channel', got 'batch'", {"variance_scope": "batch"}),
  ],
)
def test_bad_options(error, options):
  with pytest.raises(ValueError, match=error):
    norms.unified_norm(X, **options)
  with pytest.raises(ValueError, match=error):
    norms.UnifiedNorm(5, rngs=nnx.Rngs(0), **options)


@pytest.mark.parametrize(
  ("error", "arguments"),
  [
    ("mask must have the shape", {"mask": jnp.ones((4, 2), bool)}),
    (r"bias must have shape \(5,\)", {"bias": jnp.ones(4), "use_running_average": True}),
    (r"phi must have shape \(5,\)", {"state": full(phi=jnp.ones(4))}),
    (r"recent must have shape \(4, 5\)", {"state": full(recent=jnp.zeros((3, 5)))}),
    ("recent must have shape", {"state": full(recent=jnp.zeros((4, 5), jnp.bfloat16))}),
    ("iters as one integer", {"state": (SQUARE, WINDOW, 0.0, 0)}),
    ("skips as one integer", {"state": (SQUARE, WINDOW, 0, jnp.zeros(1, jnp.int32))}),
    (r"e must have shape \(5,\)", {"err": (jnp.ones(4), NONE)}),
    (r"window must have shape \(4, 5\)", {"err": (ERR, jnp.zeros((2, 5)))}),
  ],
)
def test_bad_arrays(error, arguments):
  with pytest.raises(ValueError, match=error):
    norms.unified_norm(X, **arguments)
