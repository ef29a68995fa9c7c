"""The low-precision pre-normalizer: bounds on every row, accuracy, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from normjax import norms

RNG = np.random.default_rng(0)
N = 512
F16_MAX = 65504.0


FEW = np.eye(N)[:4]  # rows with one entry

ROWS = {
  "normal": 300 * RNG.normal(size=(4, N)),
  "tiny": 1e-6 * RNG.normal(size=(4, N)),
  "heavy tails": np.clip(100 * RNG.standard_cauchy(size=(4, N)), -6e4, 6e4),
  "one spike": 6e4 * FEW,
  "worst for mad": N / 2 * (FEW - np.roll(FEW, 7, axis=1)),
  "worst for max": 6e4 * np.tile([1.0, -1.0], (4, N // 2)),
  "one step off a constant": 1000 + 0.5 * FEW,
  "large mean": 1000 + RNG.normal(size=(4, N)),
}
per_row = pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
both = pytest.mark.parametrize("prenormalizer", ["mad", "max"])


@functools.partial(
  jax.jit, static_argnums=0, static_argnames=("prenormalize", "compute_dtype", "axis", "epsilon")
)
def evaluate(norm, x, g, **options):
  """Return the normalized rows and the gradient of their product with g."""
  y, vjp = jax.vjp(lambda x: norm(x, **options), x)
  return y, vjp(g.astype(y.dtype))[0]


def exact(x, epsilon=0.0, p=2, center=True):
  x = np.asarray(x, np.float64)
  c = x - x.mean(-1, keepdims=True) if center else x
  return c / (np.mean(np.abs(c) ** p, -1, keepdims=True) + epsilon) ** (1 / p)


def test_gain_is_the_known_one_and_cannot_be_larger():
  np.testing.assert_allclose(norms.prenormalizer_gain(512), 0.706934, rtol=1e-5)
  for n in (2, 5, 8):
    for p in (1.0, 2.0, 3.5):
      for center in (True, False):
        corners = {
          ("mad", True): np.r_[n / 2, -n / 2, np.zeros(n - 2)],
          ("mad", False): np.r_[n, np.zeros(n - 1)],
          ("max", True): np.r_[np.ones(n // 2), -np.ones(n // 2), np.zeros(n % 2)],
          ("max", False): np.ones(n),
        }
        for name in ("mad", "max"):
          gain = norms.prenormalizer_gain(n, p=p, prenormalizer=name, center=center)
          worst = np.sum(np.abs(gain * corners[name, center]) ** p)
          np.testing.assert_allclose(worst, F16_MAX, rtol=1e-9)


@settings(max_examples=50, deadline=None)
@given(
  st.lists(st.floats(-6e4, 6e4, width=16), min_size=2, max_size=12),
  st.sampled_from([1.0, 1.5, 2.0, 3.0]),
  st.sampled_from(["mad", "max"]),
  st.booleans(),
)
@example([65504.0, -65504.0, 0.0], 2.0, "mad", True)
@example([6e-8, 0.0, 0.0, 0.0], 3.0, "max", False)
@example([1000.0] * 11 + [1000.5], 1.0, "mad", True)
def test_sums_of_powers_stay_in_range_for_every_row(row, p, prenormalizer, center):
  x = jnp.asarray(row, jnp.float16)
  n = len(row)
  z, factor = norms.mad_prenormalize(x, p=p, prenormalizer=prenormalizer, center=center)
  assert z.dtype == jnp.float16
  assert jnp.all(jnp.isfinite(factor))
  assert jnp.isfinite(jnp.sum(jnp.abs(z) ** p))
  powers = np.sum(np.abs(np.asarray(z, np.float64)) ** p)
  assert powers <= F16_MAX
  c = np.asarray(x, np.float64)
  c = c - c.mean() if center else c
  if np.max(np.abs(c)) > 0 and prenormalizer == "mad":
    gain = norms.prenormalizer_gain(n, p=p, center=center)
    assert powers >= 0.97 * n * gain**p
  np.testing.assert_allclose(z, factor * c, rtol=0.01, atol=0.01 * np.max(np.abs(z), initial=1e-9))


@both
@per_row
def test_float16_is_accurate_on_every_row(rows, prenormalizer):
  x = jnp.asarray(rows, jnp.float16)
  for norm, center in ((norms.layer_norm, True), (norms.rms_norm, False)):
    y, _ = evaluate(norm, x, x, prenormalize=prenormalizer)
    wanted = exact(x, 1e-6, center=center)
    # Entries of a normalized row reach sqrt(n), where float16 steps by 2^-6.
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-2 + 2e-3 * np.max(np.abs(wanted)))


@pytest.mark.parametrize("epsilon", [0.0, 1e-2, 1e3])
def test_epsilon_counts_in_rows_of_every_size(epsilon):
  x = jnp.asarray(np.geomspace(1e-4, 1e4, 4)[:, None] * ROWS["normal"] / 300, jnp.float16)
  y, _ = evaluate(norms.layer_norm, x, x, epsilon=epsilon, prenormalize=True)
  np.testing.assert_allclose(y, exact(x, epsilon), rtol=1e-2, atol=1e-2)


def test_four_rows_within_a_hundredth_where_plain_float16_fails():
  x = jnp.asarray(ROWS["normal"], jnp.float16)
  assert jnp.all(jnp.isinf(jnp.sum(x * x, -1)))
  naive = norms.layer_norm(x, compute_dtype=jnp.float16)
  assert np.max(np.abs(naive)) == 0
  y = norms.layer_norm(x, prenormalize=True)
  np.testing.assert_allclose(y, exact(x), rtol=0, atol=1e-2)


@per_row
def test_gradient_is_that_of_the_plain_norm(rows):
  x = jnp.asarray(np.float16(rows), jnp.float32)
  g = jnp.asarray(RNG.normal(size=x.shape), jnp.float32)

  for norm in (norms.layer_norm, norms.rms_norm):
    _, wanted = evaluate(norm, x, g)
    peak = np.max(np.abs(wanted))
    _, wide = evaluate(norm, x, g, prenormalize=True, compute_dtype=jnp.float32)
    np.testing.assert_allclose(wide, wanted, rtol=0, atol=1e-5 * peak)
    _, narrow = evaluate(norm, x.astype(jnp.float16), g, prenormalize=True)
    assert narrow.dtype == jnp.float16
    np.testing.assert_allclose(narrow, wanted, rtol=0, atol=2e-3 * peak)


@pytest.mark.parametrize(("p", "center"), [(1, True), (1.5, False), (2, True), (3, False)])
def test_gradient_of_every_power(p, center):
  with jax.enable_x64(True):
    x, g = jnp.asarray(RNG.normal(size=(2, 7))), jnp.asarray(RNG.normal(size=(2, 7)))
    norm = functools.partial(norms.lp_normalize, p=p, epsilon=1e-2, center=center)
    plain = evaluate(norm, x, g)
    ours = evaluate(norm, x, g, prenormalize=True, compute_dtype=jnp.float64)
    np.testing.assert_allclose(ours[0], plain[0], rtol=1e-12)
    np.testing.assert_allclose(ours[1], plain[1], rtol=1e-9, atol=1e-12)


def test_gradient_with_epsilon_outside_and_second_derivative():
  with jax.enable_x64(True):
    x = jnp.asarray(RNG.normal(size=(2, 7)))
    options = {"epsilon": 0.1, "epsilon_placement": "outside"}

    @functools.partial(jax.jit, static_argnums=1)
    def derivatives(x, prenormalize):
      norm = lambda x: norms.rms_norm(
        x, **options, prenormalize=prenormalize, compute_dtype=jnp.float64
      )
      first = jax.grad(lambda x: jnp.sum(norm(x) ** 3))
      return first(x), jax.grad(lambda x: jnp.sum(first(x) ** 2))(x)

    for ours, plain in zip(derivatives(x, True), derivatives(x, False), strict=True):
      np.testing.assert_allclose(ours, plain, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_constant_rows_and_rows_of_zeros(dtype):
  for value in (0.0, 3.0, 6e4):
    x = jnp.full((1, 64), value, dtype)
    y, dx = evaluate(norms.layer_norm, x, x / 7, prenormalize=True, compute_dtype=dtype)
    assert np.array_equal(y, np.zeros((1, 64)))
    assert jnp.all(jnp.isfinite(dx))


def test_row_of_zeros_stays_zero_without_epsilon():
  y = norms.rms_norm(jnp.zeros((1, 64)), epsilon=0.0, prenormalize=True)
  assert np.array_equal(y, np.zeros((1, 64)))


def test_float32_rows_beyond_float16_are_normalized_in_float16():
  x = jnp.asarray(1e20 * RNG.normal(size=(4, N)), jnp.float32)
  assert jnp.all(norms.layer_norm(x) == 0)  # the square overflows float32
  y, _ = evaluate(norms.layer_norm, x, x, prenormalize=True)
  assert y.dtype == jnp.float32
  np.testing.assert_allclose(y, exact(x), rtol=0, atol=1e-2)


def test_two_axes_are_one_row():
  x = jnp.asarray(300 * RNG.normal(size=(4, 8, 64)), jnp.float16)
  y, _ = evaluate(norms.layer_norm, x, x, axis=(1, 2), prenormalize=True)
  flat, _ = evaluate(norms.layer_norm, x.reshape(4, N), x.reshape(4, N), prenormalize=True)
  np.testing.assert_allclose(y.reshape(4, N), flat, rtol=0, atol=4e-3)


@pytest.mark.parametrize(
  ("error", "options"),
  [
    ("p must", {"p": 0.5}),
    ("p must", {"p": float("inf")}),
    ("p=20 is too large", {"p": 20}),
    ("'mad' or 'max', got 'median'", {"prenormalizer": "median"}),
    ("limit must", {"limit": 0.0}),
    ("compute_dtype must be a floating dtype", {"compute_dtype": jnp.int32}),
  ],
)
def test_bad_arguments(error, options):
  with pytest.raises(ValueError, match=error):
    norms.mad_prenormalize(jnp.ones((2, 64)), **options)


@pytest.mark.parametrize("norm", [norms.layer_norm, norms.rms_norm, norms.lp_normalize])
def test_bad_rows(norm):
  with pytest.raises(ValueError, match="n must be >= 2"):
    norm(jnp.ones((4, 1)), prenormalize=True)
  with pytest.raises(ValueError, match="more than compute_dtype=float16 can count"):
    norm(jnp.ones(70000), prenormalize=True)
  with pytest.raises(ValueError, match="mask must be None"):
    norm(jnp.ones((4, 2)), prenormalize=True, mask=jnp.ones((4, 2), bool))
  with pytest.raises(ValueError, match="axis_name must be None"):
    norm(jnp.ones((4, 2)), prenormalize=True, axis_name="model")
  with pytest.raises(ValueError, match="'mad' or 'max'"):
    norm(jnp.ones((4, 2)), prenormalize="median")


def test_partial_statistics_do_not_bound_the_row():
  with pytest.raises(ValueError, match="partial must be None"):
    norms.rms_norm(jnp.ones((4, 8)), prenormalize=True, partial=0.5)
