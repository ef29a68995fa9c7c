"""PCNorm, CCNorm and SCNorm: spectra, closed forms, limits, and the error of every bad argument."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from normjax import norms

EPSILON = 1e-5
SHAPES = [(3, 4, 6, 2), (2, 5, 7, 2)]


@functools.cache
def jitted(name, **options):
  static = ["method"] if name == "sc_norm" else ["method", "use_running_average"]
  return jax.jit(functools.partial(getattr(norms, name), **options), static_argnames=static)


def images(shape, seed=0):
  """Return images whose means have both signs and are not near 0."""
  rng = np.random.default_rng(seed)
  size = (shape[0], 1, 1, shape[3])
  means = rng.choice([-1, 1], size=size) * rng.uniform(0.2, 1, size)
  x = rng.normal(size=shape)
  return jnp.asarray(x - x.mean((1, 2), keepdims=True) + means, jnp.float32)


def spatial_mean(x):
  return np.mean(np.asarray(x, np.float64), (1, 2), keepdims=True)


def fourier(x):
  return np.fft.fft2(np.asarray(x, np.float64), axes=(1, 2))


# -- One spectrum, two methods ---------------------------------------------------------------------


def authors_form(content, *weighted):
  """Return the image of the full spectrum with the guard of the authors' code, in float64."""
  guarded = lambda t: np.where((t > -1e-5) & (t < 1e-5), 1e-5, t)
  size = sum(w * np.sqrt(guarded(np.abs(fourier(style)) ** 2)) for w, style in weighted)
  f = fourier(content)
  phase = np.arctan2(f.imag, guarded(f.real))
  return np.fft.ifft2(size * np.exp(1j * phase), axes=(1, 2)).real


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_half_of_the_spectrum_is_the_full_spectrum(shape):
  x = images(shape)
  wide = np.asarray(x, np.float64)
  m, v = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
  xn = (wide - m) / np.sqrt(v + EPSILON)
  xi = (wide - spatial_mean(x)) / np.sqrt(wide.var((1, 2), keepdims=True) + EPSILON)
  h = jnp.array([0.03, -0.02])
  w = 1 / (1 + np.exp(-0.5))
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5)
  close(jitted("pc_norm")(x)[0], authors_form(wide, (1, xn)))
  got, _ = jitted("cc_norm", temperature=0.1)(x, h)
  close(got, authors_form(wide - w * m, (1, xn)))
  close(jitted("sc_norm")(x, h), authors_form(wide, (w, xi), (1 - w, wide)))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from(SHAPES), h=st.floats(-2, 2))
def test_closed_form_is_the_transform(seed, shape, h):
  x, logits = images(shape, seed), jnp.array([h, 0.0])
  m = np.mean(np.asarray(x), (0, 1, 2))
  w = 1 / (1 + np.exp(-h / 0.5))
  clear = np.abs(spatial_mean(x) - w * m) > 1e-3  # next to the jump the two may differ in sign
  for name, arguments, where in (
    ("pc_norm", (), True),
    ("cc_norm", (logits,), clear),
    ("sc_norm", (logits,), True),
  ):
    norm = jitted(name) if name != "cc_norm" else jitted(name, temperature=0.5)
    fft, closed = (norm(x, *arguments, method=method) for method in ("fft", "closed_form"))
    fft, closed = (out if name == "sc_norm" else out[0] for out in (fft, closed))
    # No mean becomes smaller than the floor under amplitudes.
    atol = 1e-4 + np.sqrt(1e-5) / (shape[1] * shape[2])
    assert np.max(np.abs(fft - closed), initial=0, where=where) <= atol, name


# -- What the norms keep and what they change ------------------------------------------------------


def test_pc_norm_has_the_phases_of_its_input_and_the_amplitudes_of_batch_norm():
  x = images((4, 4, 6, 2), seed=1) + 0.5
  y, xn = jitted("pc_norm")(x)[0], norms.batch_norm(x)[0]
  before, after = fourier(x), fourier(y)
  np.testing.assert_allclose(np.abs(after), np.abs(fourier(xn)), rtol=0, atol=1e-4)
  strong = (np.abs(before) > 1e-2) & (np.abs(after) > 1e-2)
  assert strong.mean() > 0.9
  turn = np.angle(after[strong] / before[strong])
  np.testing.assert_allclose(turn, 0, atol=2e-3)
  # BatchNorm turns nothing but the constant bin, and that one here.
  turned = np.abs(np.angle(fourier(xn) / before)) > 1
  assert turned[:, 0, 0].any()
  turned[:, 0, 0] = False
  assert not turned.any()


def test_pc_norm_is_batch_norm_but_for_means_that_change_sign():
  x = images((4, 4, 6, 2), seed=1) + 0.5
  for method in ("fft", "closed_form"):
    y, xn = jitted("pc_norm")(x, method=method)[0], norms.batch_norm(x)[0]
    m_i, shifted = spatial_mean(x), spatial_mean(xn)
    changes = np.broadcast_to(np.sign(m_i) != np.sign(shifted), x.shape)
    assert changes.any()
    assert not changes.all()
    np.testing.assert_allclose(y[~changes], xn[~changes], atol=1e-5)
    apart = np.broadcast_to(2 * np.abs(shifted), x.shape)
    np.testing.assert_allclose(np.abs(y - xn)[changes], apart[changes], rtol=1e-4)


def test_cc_norm_lies_between_pc_norm_and_batch_norm():
  x = images((4, 4, 6, 2), seed=1) + 0.5
  for method in ("fft", "closed_form"):
    cc = lambda *logits, method=method: jitted("cc_norm")(x, jnp.array(logits), method=method)[0]
    pc = jitted("pc_norm")(x, method=method)[0]
    np.testing.assert_allclose(cc(-1.0, 1.0), pc, atol=1e-5)
    np.testing.assert_allclose(cc(1.0, -1.0), norms.batch_norm(x)[0], atol=1e-5)
    assert not np.allclose(cc(0.0, 0.0), pc)


def test_sc_norm_lies_between_instance_norm_and_identity():
  x = images((2, 5, 7, 2), seed=2)
  instance = norms.layer_norm(x, axis=(1, 2), epsilon=EPSILON)
  for method in ("fft", "closed_form"):
    sc = lambda *logits, method=method: jitted("sc_norm")(x, jnp.array(logits), method=method)
    np.testing.assert_allclose(sc(10.0, -10.0), instance, atol=1.2e-4)
    np.testing.assert_allclose(sc(-10.0, 10.0), x, atol=1e-5)


def test_logits_of_cc_norm_get_exactly_no_gradient_and_those_of_sc_norm_one():
  x = images((3, 4, 6, 2))
  weight = images((3, 4, 6, 2), seed=5)
  grad = lambda name, **options: jax.grad(
    lambda h: jnp.sum(weight * jax.tree.leaves(jitted(name, **options)(x, h))[0])
  )(jnp.zeros(2))
  for method in ("fft", "closed_form"):
    np.testing.assert_array_equal(grad("cc_norm", method=method), 0)
    assert np.all(np.abs(grad("sc_norm", method=method)) > 1)


# -- Statistics ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pc_norm", "cc_norm"])
def test_evaluation_uses_running_statistics_also_for_the_phases(name):
  x = images((4, 4, 6, 2), seed=1) + 0.5
  logits = () if name == "pc_norm" else (jnp.zeros(2),)
  mean, var = jnp.array([0.3, -0.2]), jnp.array([2.0, 0.5])
  y, state = jitted(name)(x, *logits, state=(mean, var), use_running_average=True)
  for new, old in zip(state, (mean, var), strict=True):
    np.testing.assert_array_equal(new, old)
  s = np.sqrt(np.asarray(var) + EPSILON)
  m_i = spatial_mean(x)
  sign = np.sign(m_i - (0.5 * np.asarray(mean) if logits else 0))
  wanted = (np.asarray(x) - m_i) / s + sign * np.abs(m_i - np.asarray(mean)) / s
  np.testing.assert_allclose(y, wanted, rtol=0, atol=2e-5)
  _, moved = jitted(name)(x, *logits, state=(mean, var))
  _, wanted = norms.batch_norm(x, state=(mean, var))
  np.testing.assert_allclose(moved, wanted, rtol=1e-6)


# -- Edges -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fft", "closed_form"])
def test_images_of_one_pixel_and_of_one_column(method):
  x = jnp.array([3.0, -1.0, 0.9, -0.5]).reshape(4, 1, 1, 1)
  xn = norms.batch_norm(x)[0]
  y = jitted("pc_norm")(x, method=method)[0]
  np.testing.assert_allclose(y, np.sign(x) * np.abs(xn), rtol=1e-5)
  column = images((3, 5, 1, 2), seed=3)
  fft, closed = (jitted("pc_norm")(column, method=m)[0] for m in ("fft", "closed_form"))
  np.testing.assert_allclose(fft, closed, atol=1e-5)


def test_channels_without_variance_become_noise_of_the_floor_or_nothing():
  x = images((2, 4, 6, 2)).at[..., 1].set(3.0)
  fft, closed = (jitted("pc_norm")(x, method=m)[0][..., 1] for m in ("fft", "closed_form"))
  np.testing.assert_array_equal(closed, 0)
  assert 1e-5 < np.max(np.abs(fft)) < 5e-3


def test_large_numbers_cost_no_closed_form_its_digits():
  x = images((3, 4, 6, 2)).astype(jnp.float32)
  far = x + 1e4
  exact = norms.batch_norm(far)[0] + 0.0
  y = jitted("pc_norm")(far, method="closed_form")[0]
  shifted = spatial_mean(exact)
  wanted = exact - shifted + np.abs(shifted)  # all means are positive
  np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5)


X = jnp.ones((2, 3, 4, 2))
BAD = [
  ("x must be floating, got int32", {"x": X.astype(jnp.int32)}),
  (r"x must be images \(batch, height, width, channels\)", {"x": X[0]}),
  (r"x must be images \(batch, height, width, channels\)", {"x": X[:, :0]}),
  ("mask must be None", {"mask": jnp.ones(X.shape[:3], bool)}),
  ("method must be 'fft' or 'closed_form', got 'dct'", {"method": "dct"}),
  ("epsilon must be >= 0", {"epsilon": -1.0}),
  (r"scale must have shape \(2,\)", {"scale": jnp.ones(3)}),
  (r"bias must have shape \(2,\)", {"bias": jnp.ones(3)}),
  ("dtype must be a floating dtype", {"dtype": jnp.int32}),
]
BAD_BATCH = [
  (r"decay must be in \[0, 1\)", {"decay": 1.0}),
  ("state must be", {"state": (jnp.ones(3), jnp.ones(2))}),
  ("more than one position", {"x": X[:1, :1, :1]}),
]
BAD_MIXTURE = [
  (r"logits must have shape \(2,\), got \(3,\)", {"logits": jnp.ones(3)}),
  ("temperature must be > 0, got 0", {"temperature": 0.0}),
  ("temperature must be > 0, got nan", {"temperature": float("nan")}),
]


@pytest.mark.parametrize(
  ("name", "error", "change"),
  [("pc_norm", *bad) for bad in BAD + BAD_BATCH]
  + [("cc_norm", *bad) for bad in BAD + BAD_BATCH + BAD_MIXTURE]
  + [("sc_norm", *bad) for bad in BAD + BAD_MIXTURE],
)
def test_bad_arguments(name, error, change):
  arguments = {"x": X} | ({} if name == "pc_norm" else {"logits": jnp.zeros(2)}) | change
  with pytest.raises(ValueError, match=error):
    jax.eval_shape(lambda: getattr(norms, name)(**arguments))


@pytest.mark.parametrize("cls", [norms.PCNorm, norms.CCNorm, norms.SCNorm])
def test_bad_constructor_arguments(cls):
  build = lambda **options: cls(2, rngs=nnx.Rngs(0), **options)
  with pytest.raises(ValueError, match="method must be"):
    build(method="dct")
  with pytest.raises(ValueError, match="mask must be None"):
    build()(X, mask=jnp.ones(X.shape[:3], bool))
  if cls is not norms.PCNorm:
    with pytest.raises(ValueError, match="temperature must be > 0"):
      build(temperature=-1.0)
  if cls is not norms.SCNorm:
    with pytest.raises(ValueError, match="decay must be"):
      build(decay=1.0)
