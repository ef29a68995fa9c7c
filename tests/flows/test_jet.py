"""Jet: what holds for any parameters, what it starts from, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from normjax import flows
from tests.flows.random_jet import TINY, random_jet

MODES = ("store", "remat", "reversible")
PATTERNS = [name + inv for name in ("checkerboard", "vstripes", "hstripes") for inv in ("", "-inv")]


def _normal(seed, shape, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def _split(jet):
  graphdef, state = nnx.split(jet)
  return state, lambda state: nnx.merge(graphdef, state)


def _run(jet, method, x, cond=None):
  state, merge = _split(jet)
  return jax.jit(lambda state, x, cond: getattr(merge(state), method)(x, cond))(state, x, cond)


def _make(shape=(8, 8, 1), **options):
  """Build a Jet abstractly: enough to see errors."""
  return nnx.eval_shape(lambda: flows.Jet(shape, **TINY | options, rngs=nnx.Rngs(0)))


def test_a_new_jet_is_exactly_the_identity():
  jet = flows.Jet((4, 8, 2), **TINY, rngs=nnx.Rngs(0))
  x = _normal(0, (3, 4, 8, 2))
  for method in ("forward", "inverse"):
    y, log_det = _run(jet, method, x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(log_det, 0)
  params = nnx.to_pure_dict(nnx.state(jet, nnx.Param))["couplings"]["layers"]["network"]
  assert params.pop("final_proj").keys() == {"kernel", "bias"}
  kernels = [params["init_proj"]["kernel"], params["blocks"]["blocks"]["mlp_in"]["kernel"]]
  for stacked in (*kernels, params["posemb"]):
    assert stacked.shape[0] == TINY["depth"]
    assert np.all(np.std(stacked, axis=tuple(range(1, stacked.ndim))) > 0.1)
    assert not np.allclose(stacked[0], stacked[1])  # couplings draw their own
  # std 1/sqrt(8) of 3 * 8 * 8 draws
  np.testing.assert_allclose(np.std(params["posemb"]), 8**-0.5, rtol=0.25)


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-5), ("float64", 1e-10)])
def test_round_trip(dtype, atol):
  with jax.enable_x64(dtype == "float64"):
    jet = random_jet((4, 8, 2), param_dtype=dtype)  # H != W
    state, merge = _split(jet)
    x = _normal(0, (3, 4, 8, 2), dtype)

    @jax.jit
    def run(state, x):
      z, log_det = merge(state).forward(x)
      return z, log_det, *merge(state).inverse(z)

    z, log_det, back, inverse_log_det = run(state, x)
  assert z.dtype == log_det.dtype == jnp.dtype(dtype)
  assert np.all(np.abs(log_det) > 0.01)
  np.testing.assert_allclose(back, x, rtol=0, atol=atol)
  np.testing.assert_allclose(inverse_log_det, -log_det, rtol=0, atol=10 * atol)


@functools.cache
def _jacobian():
  """Return the jitted `(jacobian, z, log_det)` of one coupling, whatever its permutations."""
  _, merge = _split(random_jet((8, 8, 1), depth=1, param_dtype="float64"))

  def flat(v, state):
    z, log_det = merge(state).forward(v.reshape(1, 8, 8, 1))
    return z.reshape(64), (z.reshape(64), log_det[0])

  return jax.jit(jax.jacfwd(flat, has_aux=True))


def _one_coupling(kind, pattern="checkerboard"):
  options = {"kinds": (kind,), "spatial_projections": (pattern,), "param_dtype": "float64"}
  return _split(random_jet((8, 8, 1), depth=1, **options))[0]


def _tokens(image):
  """Return (16, 4): the entries of an 8x8x1 image by token and feature."""
  return np.asarray(image).reshape(4, 2, 4, 2).swapaxes(1, 2).reshape(16, 4)


@pytest.mark.parametrize("pattern", ["channels", *PATTERNS])
def test_one_coupling(pattern):
  """The log-determinant is the Jacobian's, and exactly the right half stays as it was."""
  with jax.enable_x64(True):
    kind = "channels" if pattern == "channels" else "spatial"
    state = _one_coupling(kind, pattern) if kind == "spatial" else _one_coupling(kind)
    x = _normal(1, (64,), "float64")
    matrix, (z, log_det) = _jacobian()(x, state)
  sign, expected = np.linalg.slogdet(matrix)
  assert sign == 1
  np.testing.assert_allclose(log_det, expected, rtol=0, atol=1e-10)
  changed = _tokens(z != x)
  if kind == "channels":
    np.testing.assert_array_equal(changed, np.broadcast_to(changed[:1], (16, 4)))
    assert np.sum(changed[0]) == 2
    return
  row, column = np.divmod(np.arange(16), 4)
  name = pattern.removesuffix("-inv")
  odd = {"checkerboard": row + column, "vstripes": column, "hstripes": row}[name] % 2
  odd = 1 - odd if pattern.endswith("-inv") else odd
  np.testing.assert_array_equal(changed, np.broadcast_to(odd[:, None] == 1, (16, 4)))


def test_checkerboard_and_its_inverse_touch_every_token_once():
  layers = random_jet((8, 8, 1), depth=2, kinds=("spatial",)).couplings.layers
  second = [np.unique(order[16:] // 2) for order in np.asarray(layers.half_order[...])]
  assert [len(tokens) for tokens in second] == [8, 8]
  np.testing.assert_array_equal(np.sort(np.concatenate(second)), np.arange(16))


def test_kinds_and_patterns_are_drawn_cyclically():
  kinds, patterns = ("channels", "spatial", "spatial"), ("vstripes", "hstripes", "hstripes-inv")
  jet = random_jet((8, 8, 1), depth=7, kinds=kinds, spatial_projections=patterns)
  half_order = np.asarray(jet.couplings.layers.half_order[...])
  feature_order = np.asarray(jet.couplings.layers.feature_order[...])
  drawn = ["channels", "vstripes", "hstripes", "channels", "hstripes-inv", "vstripes", "channels"]
  for i, name in enumerate(drawn):
    if name == "channels":
      np.testing.assert_array_equal(half_order[i], np.arange(32).reshape(16, 2).T.ravel())
    else:
      alone = random_jet((8, 8, 1), depth=1, kinds=("spatial",), spatial_projections=(name,))
      np.testing.assert_array_equal(half_order[i], alone.couplings.layers.half_order[0])
      np.testing.assert_array_equal(feature_order[i], np.arange(4))


def test_channel_couplings_draw_their_own_permutations():
  layers = random_jet((4, 4, 4), depth=4, kinds=("channels",)).couplings.layers
  orders = np.asarray(layers.feature_order[...])
  assert len(np.unique(orders, axis=0)) == 4
  np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(16), (4, 1)))


def test_scan_is_a_loop_over_its_layers():
  jet = random_jet((4, 8, 2))
  x = _normal(0, (2, 4, 8, 2))
  graphdef, state = nnx.split(jet.couplings.layers)
  tokens = x.reshape(2, 2, 2, 4, 2, 2).swapaxes(2, 3).reshape(2, 8, 8)
  total = 0
  step = jax.jit(lambda layer, tokens: nnx.merge(graphdef, layer).forward(tokens))
  for i in range(TINY["depth"]):
    tokens, log_det = step(jax.tree.map(lambda v, i=i: v[i], state), tokens)
    total = total + log_det
  expected = tokens.reshape(2, 2, 4, 2, 2, 2).swapaxes(2, 3).reshape(2, 4, 8, 2)
  z, log_det = _run(jet, "forward", x)
  np.testing.assert_allclose(z, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(log_det, total, rtol=1e-5, atol=1e-5)


def _loss_and_gradients(memory, cond_of, **options):
  jet = random_jet((4, 4, 2), memory=memory, **options)
  graphdef, params, rest = nnx.split(jet, nnx.Param, ...)

  def loss(params, x):
    z, log_det = nnx.merge(graphdef, params, rest).forward(x, cond_of)
    return jnp.mean(0.5 * jnp.sum(z**2, axis=(1, 2, 3)) - log_det)

  run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
  loss, (params_bar, x_bar) = run(params, _normal(0, (3, 4, 4, 2)))
  return loss, nnx.to_pure_dict(params_bar), x_bar


def test_gradients_of_the_memory_modes_agree():
  labels = jnp.array([0, 2, 1])
  store, remat, reversible = (_loss_and_gradients(m, labels, num_classes=2) for m in MODES)
  assert np.any(store[1]["class_embedding"]["embedding"] != 0)
  same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  jax.tree.map(same, remat, store)
  jax.tree.map(same, reversible, store)


def test_training_leaves_permutations_alone():
  jet = random_jet((4, 4, 2))
  graphdef, params, rest = nnx.split(jet, nnx.Param, ...)
  before = jax.tree.map(np.array, nnx.to_pure_dict(rest))
  leaves = jax.tree.leaves(before)
  assert len(leaves) == 2
  assert all(np.issubdtype(leaf.dtype, np.integer) for leaf in leaves)
  optimizer = optax.adamw(0.1, weight_decay=0.5)
  x = _normal(0, (3, 4, 4, 2))

  @jax.jit
  def step(params, state):
    def loss(params):
      z, log_det = nnx.merge(graphdef, params, rest).forward(x)
      return jnp.mean(0.5 * jnp.sum(z**2, axis=(1, 2, 3)) - log_det)

    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value

  state, losses = optimizer.init(params), []
  for _ in range(3):
    params, state, value = step(params, state)
    losses.append(float(value))
  assert losses[2] < losses[0]
  nnx.update(jet, params)
  after = nnx.to_pure_dict(nnx.split(jet, nnx.Param, ...)[2])
  jax.tree.map(np.testing.assert_array_equal, after, before)


def test_bits_per_dim_of_the_identity_on_uniform_noise():
  jet = random_jet((8, 8, 1), scale=0.0)
  x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (512, 8, 8, 1)), jnp.float32)
  state, merge = _split(jet)
  base = flows.StandardNormal((8, 8, 1))
  log_prob = jax.jit(lambda state, x: flows.Flow(merge(state), base).log_prob(x))(state, x)
  bits = np.mean(flows.bits_per_dim(log_prob, (8, 8, 1), 127.5))
  expected = (1 / 6 + 0.5 * np.log(2 * np.pi) + np.log(127.5)) / np.log(2)  # E[x^2] = 1/3
  np.testing.assert_allclose(bits, expected, rtol=0, atol=5e-3)  # 4 standard errors


@pytest.mark.parametrize("scale_factor", [2.0, 1.5])
def test_expansion_is_bounded_and_saturation_says_how_near(scale_factor):
  jet = random_jet((8, 8, 1), depth=4, scale_factor=scale_factor)
  bound = 4 * 32 * np.log(scale_factor)
  bias = jet.couplings.layers.network.final_proj.bias
  features = bias.shape[1] // 2
  for raw, low, high in ((0.0, -0.9, 0.9), (8.0, 0.99, 1.0)):
    bias[...] = bias[...].at[:, features:].set(raw)
    _, log_det = _run(jet, "forward", _normal(0, (3, 8, 8, 1)))
    ratio = jet.saturation(log_det)
    np.testing.assert_allclose(ratio, log_det / bound, rtol=1e-5)
    assert np.all(log_det <= bound)
    assert np.all((low < ratio) & (ratio <= high))


def test_bfloat16_blocks_round_trip_in_float32():
  wide, narrow = random_jet((8, 8, 1)), random_jet((8, 8, 1), dtype=jnp.bfloat16)
  x = _normal(0, (3, 8, 8, 1))
  z, log_det = _run(narrow, "forward", x)
  assert z.dtype == log_det.dtype == jnp.float32
  back, inverse_log_det = _run(narrow, "inverse", z)
  np.testing.assert_allclose(back, x, rtol=0, atol=1e-5)
  np.testing.assert_allclose(inverse_log_det, -log_det, rtol=0, atol=1e-4)
  exact, _ = _run(wide, "forward", x)
  assert 1e-5 < np.max(np.abs(z - exact)) < 0.2  # the blocks did run in bfloat16


def test_scales_of_bfloat16_blocks_are_those_of_the_log_det():
  jet = random_jet((8, 8, 1), depth=1, kinds=("spatial",), dtype=jnp.bfloat16)
  state, merge = _split(jet)
  x = _normal(0, (2, 8, 8, 1))
  # One coupling is affine in its second half, with the scales as slopes.
  row, column = np.indices((8, 8)) // 2
  second = jnp.asarray((row + column) % 2, jnp.float32)[None, :, :, None]
  tangent = jnp.broadcast_to(second, x.shape)
  run = jax.jit(lambda state, x: jax.jvp(merge(state).forward, (x,), (tangent,)))
  (_, log_det), (slopes, _) = run(state, x)
  log_slopes = jnp.log(jnp.where(tangent == 1, slopes, 1.0))
  np.testing.assert_allclose(jnp.sum(log_slopes, axis=(1, 2, 3)), log_det, rtol=1e-6, atol=1e-5)


def test_labels():
  jet = random_jet((4, 4, 2), num_classes=3)
  x = jnp.tile(_normal(0, (1, 4, 4, 2)), (4, 1, 1, 1))
  z, log_det = _run(jet, "forward", x, jnp.arange(4))
  for i in range(4):
    for j in range(i):
      assert np.max(np.abs(z[i] - z[j])) > 1e-3
      assert abs(log_det[i] - log_det[j]) > 1e-5
  none, none_log_det = _run(jet, "forward", x)
  np.testing.assert_allclose(none, np.broadcast_to(z[3], z.shape), rtol=0, atol=1e-6)
  np.testing.assert_allclose(none_log_det, np.broadcast_to(log_det[3], (4,)), rtol=0, atol=1e-5)
  back, _ = _run(jet, "inverse", z, jnp.arange(4))
  np.testing.assert_allclose(back, x, rtol=0, atol=1e-5)


def test_context():
  jet = random_jet((4, 4, 2), cond_dim=5)
  x, context = _normal(0, (2, 4, 4, 2)), _normal(1, (2, 3, 5))
  z, _ = _run(jet, "forward", x, context)
  shuffled, _ = _run(jet, "forward", x, context[:, ::-1])
  np.testing.assert_allclose(shuffled, z, rtol=0, atol=1e-5)  # attention sees a set
  changed, _ = _run(jet, "forward", x, context.at[1].add(1.0))
  np.testing.assert_allclose(changed[0], z[0], rtol=0, atol=1e-6)
  assert np.max(np.abs(changed[1] - z[1])) > 1e-3
  back, _ = _run(jet, "inverse", z, context)
  np.testing.assert_allclose(back, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("memory", MODES)
def test_the_program_does_not_grow_with_depth(memory):
  def lines(**depths):
    graphdef, params, rest = nnx.split(_make(memory=memory, **depths), nnx.Param, ...)

    def loss(params, rest, x):
      z, log_det = nnx.merge(graphdef, params, rest).forward(x)
      return jnp.sum(z) + jnp.sum(log_det)

    x = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    return len(jax.jit(jax.grad(loss)).lower(params, rest, x).as_text().splitlines())

  # No depth equals another size here, which would let the compiler share a function.
  assert lines(depth=11, block_depth=5) == lines(depth=23, block_depth=5)
  assert lines(depth=11, block_depth=5) == lines(depth=11, block_depth=7)


WRONG = {
  "patch_size must divide height 8 and width 8, got 3": {"patch_size": 3},
  "patch_size must divide .* got 0": {"patch_size": 0},
  "patch_size must divide height 8 and width 6, got 4": {"shape": (8, 6, 1), "patch_size": 4},
  r"shape must be \(height, width, channels\), got \(8, 8\)": {"shape": (8, 8)},
  "even number of features .* got 1": {"patch_size": 1},
  "even number of features .* got 27": {"shape": (6, 6, 3), "patch_size": 3},
  "kinds must be among .* got 'chanels'; did you mean 'channels'": {"kinds": ("chanels",)},
  "kinds must be a non-empty sequence": {"kinds": ()},
  "kinds must be a non-empty sequence of names, got 'spatial'": {"kinds": "spatial"},
  "spatial_projections must be among .* did you mean 'checkerboard-inv'": {
    "spatial_projections": ("checkerbord-inv",)
  },
  "spatial_projections must be a non-empty": {"spatial_projections": ()},
  "channel_projections must be among .* did you mean 'random'": {"channel_projections": ("randm",)},
  "num_heads must divide emb_dim 8, got 3": {"num_heads": 3},
  "num_heads must divide emb_dim 8, got 0": {"num_heads": 0},
  "depth must be at least 1, got 0": {"depth": 0},
  "block_depth must be at least 1, got 0": {"block_depth": 0},
  "emb_dim must be at least 1, got 0": {"emb_dim": 0},
  "scale_factor must be above 0 and finite, got 0": {"scale_factor": 0.0},
  "scale_factor must be above 0 and finite, got nan": {"scale_factor": float("nan")},
  "memory must be one of .* got 'remats'": {"memory": "remats"},
  "num_classes must be at least 1, got 0": {"num_classes": 0},
  "cond_dim .* or num_classes .* not both": {"cond_dim": 3, "num_classes": 2},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_refused(message):
  with pytest.raises(ValueError, match=message):
    _make(**WRONG[message])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_that_the_grid_cannot_hold_are_refused(pattern):
  options = {"depth": 1, "kinds": ("spatial",), "spatial_projections": (pattern,)}
  odd_rows, odd_columns = (6, 8, 1), (8, 6, 1)
  bad, good, what = (odd_columns, odd_rows, "columns")
  if pattern.startswith("hstripes"):
    bad, good, what = (odd_rows, odd_columns, "rows")
  with pytest.raises(ValueError, match=f"'{pattern}' needs an even number of token {what}"):
    _make(bad, **options)
  _make(good, **options)


def test_wrong_inputs_are_refused():
  images = jnp.zeros((2, 8, 8, 1))
  plain, labelled, context = _make(), _make(num_classes=3), _make(cond_dim=5)
  for bad in (jnp.zeros((2, 8, 8)), jnp.zeros((2, 8, 8, 2)), jnp.zeros((8, 8, 1))):
    for method in (plain.forward, plain.inverse):
      with pytest.raises(ValueError, match="images must have shape"):
        method(bad)
  with pytest.raises(ValueError, match="images must be floating, got uint8: use flows.dequantize"):
    plain.forward(images.astype(jnp.uint8))
  with pytest.raises(ValueError, match="cond was given to a Jet without"):
    plain.forward(images, jnp.zeros((2,), int))
  for bad in (jnp.zeros((3,), int), jnp.zeros((2,)), jnp.zeros((2, 1), int)):
    with pytest.raises(ValueError, match=r"cond must be integer labels of shape \(2,\)"):
      labelled.inverse(images, bad)
  for bad in (None, jnp.zeros((2, 5)), jnp.zeros((2, 3, 4)), jnp.zeros((1, 3, 5))):
    with pytest.raises(ValueError, match=r"cond must have shape \(2, length, 5\)"):
      context.forward(images, bad)
