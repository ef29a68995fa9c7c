"""Invertible convolution layers: what enters, what is kept out, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from normjax import flows

CONSTANT = nnx.initializers.constant


def moved(layer, seed=0):
  """Move all parameters of a layer away from their first values."""
  rng = np.random.default_rng(seed)
  move = lambda p: jnp.asarray(p + 0.3 * rng.standard_normal(p.shape), p.dtype)
  nnx.update(layer, jax.tree.map(move, nnx.state(layer, nnx.Param)))
  return layer


def images(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def run(layer, method, x):
  """Call a method in one compiled program."""
  graphdef, state = nnx.split(layer)
  return jax.jit(lambda state, x: getattr(nnx.merge(graphdef, state), method)(x))(state, x)


def jacobian(layer, h, w, c):
  """Return the matrix (in, out) of a layer on images of this size, pixels in raster order."""
  basis = np.concatenate([np.zeros((1, h * w * c)), np.eye(h * w * c)])
  z = np.asarray(run(layer, "forward", jnp.asarray(basis.reshape(-1, h, w, c), jnp.float32))[0])
  return (z[1:] - z[:1]).reshape(h * w * c, -1)


# Entries of each kernel that a layer does not use, as (name, entries (..., in, out)).
UNUSED = {
  "triangular": (lambda: flows.CInCConv(3, rngs=nnx.Rngs(0)), {
    "kernel": lambda k: k[-1, -1][np.triu_indices(3, 1)]}),
  "unit": (lambda: flows.CInCConv(3, tap="unit", rngs=nnx.Rngs(0)), {
    "kernel": lambda k: k[-1, -1][np.triu_indices(3)]}),
  "exp": (lambda: flows.CInCConv(3, tap="exp", rngs=nnx.Rngs(0)), {
    "kernel": lambda k: k[-1, -1][np.triu_indices(3)]}),
  "quadrant": (lambda: flows.EmergingConv(3, rngs=nnx.Rngs(0)), {
    "kernel1": lambda k: k[-1, -1][np.tril_indices(3, -1)],
    "kernel2": lambda k: k[-1, -1][np.triu_indices(3, 1)]}),
  "raster": (lambda: flows.EmergingConv(3, mask="raster", rngs=nnx.Rngs(0)), {
    "kernel1": lambda k: np.append(k[-1, 1][np.tril_indices(3, -1)], k[-1, 2]),
    "kernel2": lambda k: np.append(k[-1, 1][np.triu_indices(3, 1)], k[-1, 2])}),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNUSED)
def test_entries_that_do_not_enter_stay_zeros_under_weight_decay(kind):
  make, unused = UNUSED[kind]
  graphdef, params, rest = nnx.split(make(), nnx.Param, ...)
  params = nnx.to_pure_dict(params)
  optimizer, x = optax.adamw(0.1, weight_decay=0.1), images(2, 3, 4, 3)

  @jax.jit
  def step(params, state):
    def loss(params):
      z, log_det = nnx.merge(graphdef, params, rest).forward(x)
      return jnp.sum(jnp.sin(z)) + jnp.sum(log_det)

    grads = jax.grad(loss)(params)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, grads

  new, state, grads = step(params, optimizer.init(params))
  new, _, _ = step(new, state)
  for name, entries in unused.items():
    for tree in (params, new, grads):
      np.testing.assert_array_equal(entries(np.asarray(tree[name])), 0)
    others = np.sum(np.asarray(new[name]) != 0)
    assert others == new[name].size - entries(np.asarray(new[name])).size


@pytest.mark.parametrize("tap", ["triangular", "full"])
def test_a_kernel_of_one_tap_is_a_product_with_a_matrix(tap):
  conv, x = moved(flows.CInCConv(3, kernel_size=1, tap=tap, rngs=nnx.Rngs(0))), images(2, 2, 3, 3)
  matrix = np.asarray(conv.kernel[0, 0])
  matrix = np.tril(matrix) if tap == "triangular" else matrix
  z, log_det = run(conv, "forward", x)
  expected = np.asarray(x) @ matrix + np.asarray(conv.bias[...])
  np.testing.assert_allclose(z, expected, atol=1e-5)
  np.testing.assert_allclose(log_det, 6 * np.linalg.slogdet(matrix)[1], rtol=1e-5)


def test_first_values():
  make = lambda tap: flows.CInCConv(4, tap=tap, rngs=nnx.Rngs(0))
  own = np.asarray(make("full").effective_kernel()[-1, -1])
  np.testing.assert_allclose(own @ own.T, np.eye(4), atol=1e-6)
  for tap in ("triangular", "unit", "exp"):
    kernel = np.array(make(tap).effective_kernel())
    kernel[-1, -1] -= np.eye(4)
    np.testing.assert_array_equal(np.triu(kernel[-1, -1], 1), 0)
    entries = kernel[kernel != 0]
    assert 0.01 < np.std(entries) < 0.03
    assert np.max(np.abs(entries)) < 0.1
    assert (np.diag(kernel[-1, -1]) == 0).all() == (tap != "triangular")
  centre = np.asarray(flows.PeriodicConv(4, rngs=nnx.Rngs(0)).kernel[1, 1])
  np.testing.assert_allclose(centre @ centre.T, np.eye(4), atol=0.3)
  emerging = flows.EmergingConv(2, kernel_size=5, rngs=nnx.Rngs(0))
  for kernel in emerging.effective_kernels():
    np.testing.assert_allclose(kernel[-1, -1], np.eye(2), atol=0.1)
  np.testing.assert_array_equal(emerging.bias[...], 0)


def test_the_sign_of_an_exponential_tap_stays():
  conv = flows.CInCConv(2, tap="exp", rngs=nnx.Rngs(0))
  conv.sign[...] = jnp.array([1.0, -1.0])
  conv.log_scale[...] = jnp.array([0.5, 0.25])
  own = np.asarray(conv.effective_kernel()[-1, -1])
  np.testing.assert_allclose(np.diag(own), [np.exp(0.5), -np.exp(0.25)], rtol=1e-6)
  assert run(conv, "forward", jnp.ones((1, 2, 2, 2)))[1] == 4 * 0.75


def test_reconstruction_error_grows_with_large_taps():
  conv, x = flows.CInCConv(1, use_bias=False, rngs=nnx.Rngs(0)), images(2, 16, 16, 1)
  error = run(conv, "reconstruction_error", x)
  assert error.shape == (2,)
  assert np.max(error) < 1e-5
  conv.kernel[...] = jnp.full((3, 3, 1, 1), 2.0).at[-1, -1].set(1.0)
  assert np.min(run(conv, "reconstruction_error", x)) > 1.0
  assert np.all(run(conv, "forward", x)[1] == 0)  # log_det has nothing to say about it


def test_the_first_emerging_kernel_looks_ahead_and_both_see_a_whole_neighbourhood():
  layer = moved(flows.EmergingConv(2, rngs=nnx.Rngs(0)))
  h, w, c = 5, 5, 2
  whole = np.abs(jacobian(layer, h, w, c)).reshape(h, w, c, h, w, c).sum((2, 5))
  inside = np.zeros((h, w), bool)
  inside[1:4, 1:4] = True
  np.testing.assert_array_equal(whole[:, :, 2, 2] > 1e-6, inside)
  layer.kernel2[...] = jnp.zeros((2, 2, 2, 2)).at[-1, -1].set(jnp.eye(2))
  # z = x @ matrix, and a pixel of z depends on later pixels of x.
  blocks = np.abs(jacobian(layer, h, w, c)).reshape(h * w, c, h * w, c).max((1, 3))
  np.testing.assert_allclose(np.triu(blocks, 1), 0, atol=1e-6)
  assert np.tril(blocks, -1).max() > 0.1


def test_a_raster_mask_sees_all_earlier_neighbours():
  layer = moved(flows.EmergingConv(1, mask="raster", rngs=nnx.Rngs(0)))
  layer.kernel1[...] = jnp.zeros((2, 3, 1, 1)).at[-1, 1].set(1.0)
  seen = np.abs(jacobian(layer, 4, 4, 1)).reshape(4, 4, 4, 4)[:, :, 2, 1] > 1e-6
  expected = np.zeros((4, 4), bool)
  expected[1, :3] = expected[2, :2] = True
  np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("width", [5, 6])
def test_periodic_spectrum_over_all_frequencies(width):
  conv, h, m = moved(flows.PeriodicConv(2, kernel_size=5, rngs=nnx.Rngs(0))), 6, 2
  a = np.arange(5) - m
  phase = lambda n: np.exp(2j * np.pi * np.outer(np.arange(n), a) / n)
  spectrum = np.einsum("ua,vb,abco->uvco", phase(h), phase(width), np.asarray(conv.kernel[...]))
  dets = np.abs(np.linalg.det(spectrum))
  _, log_det = run(conv, "forward", images(1, h, width, 2))
  np.testing.assert_allclose(log_det, np.sum(np.log(dets)), rtol=1e-4)
  np.testing.assert_allclose(conv.min_abs_det(h, width), np.min(dets), rtol=1e-3)


def test_periodic_convolution_commutes_with_shifts():
  conv, x = moved(flows.PeriodicConv(2, rngs=nnx.Rngs(0))), images(1, 4, 5, 2)
  shift = lambda v: jnp.roll(v, (1, -2), axis=(1, 2))
  both = jnp.concatenate([x, shift(x)])
  for direction in ("forward", "inverse"):
    plain, shifted = run(conv, direction, both)[0]
    np.testing.assert_allclose(shifted, shift(plain[None])[0], atol=1e-4)


def test_a_periodic_kernel_of_its_centre_is_a_product_with_a_matrix():
  conv, x = flows.PeriodicConv(2, kernel_init=CONSTANT(0.0), rngs=nnx.Rngs(0)), images(1, 3, 4, 2)
  matrix = jnp.array([[2.0, 1.0], [0.0, 3.0]])
  conv.kernel[...] = conv.kernel[...].at[1, 1].set(matrix)
  z, log_det = run(conv, "forward", x)
  np.testing.assert_allclose(z, np.asarray(x) @ np.asarray(matrix), atol=1e-5)
  np.testing.assert_allclose(log_det, 12 * np.log(6), rtol=1e-5)
  np.testing.assert_allclose(conv.min_abs_det(3, 4), 6, rtol=1e-5)


def test_quarters_depend_on_those_before_them():
  coupling, x = flows.QuadCoupling(8, nnx.Linear, rngs=nnx.Rngs(0)), images(1, 8)
  matrix = jax.jit(jax.jacfwd(lambda x: coupling.forward(x)[0][0]))(x)
  matrix = np.asarray(matrix).reshape(8, 8)
  blocks = np.abs(matrix).reshape(4, 2, 4, 2).max((1, 3))
  assert np.all(blocks[np.tril_indices(4)] > 0)
  np.testing.assert_array_equal(blocks[np.triu_indices(4, 1)], 0)
  np.testing.assert_array_equal(blocks[0, 0], 1)
  inside = matrix.reshape(4, 2, 4, 2)[np.arange(4), :, np.arange(4)]
  np.testing.assert_array_equal(inside[:, ~np.eye(2, dtype=bool)], 0)


def test_networks_of_zeros_scale_by_a_sigmoid():
  zeros = lambda *sizes, rngs: nnx.Linear(*sizes, kernel_init=CONSTANT(0.0), rngs=rngs)
  y, _ = flows.QuadCoupling(4, zeros, rngs=nnx.Rngs(0)).forward(jnp.ones((1, 4)))
  np.testing.assert_allclose(y[0], [1, *[1 / (1 + np.exp(-2))] * 3], rtol=1e-6)


RNGS = nnx.Rngs(0)
WRONG = {
  "features": (lambda: flows.CInCConv(0, rngs=RNGS), "features must be an int of at least 1"),
  "k": (lambda: flows.CInCConv(2, kernel_size=0, rngs=RNGS), "kernel_size must be an int of at"),
  "tap": (lambda: flows.CInCConv(2, tap="lower", rngs=RNGS), "tap must be one of .*'lower'"),
  "corner": (lambda: flows.CInCConv(2, corner="SAME", rngs=RNGS), "corner must be one of"),
  "dilation": (lambda: flows.CInCConv(2, dilation=0, rngs=RNGS), "dilation must be an int"),
  "singular": (
    lambda: flows.CInCConv(2, kernel_init=CONSTANT(-1.0), rngs=RNGS),
    r"kernel\[-1, -1\] must be invertible",
  ),
  "even": (lambda: flows.EmergingConv(2, kernel_size=4, rngs=RNGS), "kernel_size must be an odd"),
  "mask": (lambda: flows.EmergingConv(2, mask="half", rngs=RNGS), "mask must be one of"),
  "singular emerging": (
    lambda: flows.EmergingConv(2, kernel_init=CONSTANT(-1.0), rngs=RNGS), "kernel1 .* invertible"
  ),
  "even periodic": (lambda: flows.PeriodicConv(2, kernel_size=2, rngs=RNGS), "must be an odd int"),
  "small periodic": (lambda: flows.PeriodicConv(2, rngs=RNGS).min_abs_det(2, 5), "at least 3"),
  "integers": (
    lambda: flows.CInCConv(2, rngs=RNGS).forward(jnp.ones((1, 2, 2, 2), int)), "must be floating"
  ),
  "quarters": (lambda: flows.QuadCoupling(6, nnx.Linear, rngs=RNGS), "positive multiple of 4"),
  "network": (
    lambda: flows.QuadCoupling(4, lambda i, o, *, rngs: nnx.Linear(i, 1, rngs=rngs), rngs=RNGS)
    .forward(jnp.ones((1, 4))), r"make_net must build networks that return \(1, 2\)",
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused(name):
  make, message = WRONG[name]
  with pytest.raises(ValueError, match=message):
    make()


def test_check_finds_a_tap_that_became_singular():
  conv = flows.CInCConv(2, tap="full", rngs=nnx.Rngs(0))
  conv.check()
  conv.kernel[...] = conv.kernel[...].at[-1, -1].set(jnp.ones((2, 2)))
  with pytest.raises(ValueError, match="must be invertible"):
    conv.check()
