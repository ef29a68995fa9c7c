"""TarFlow: what holds for any parameters, what it starts from, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import flows

SHAPE = (4, 4, 2)
TINY = {"depth": 2, "block_depth": 2, "emb_dim": 8, "head_dim": 4, "patch_size": 2}


def _normal(seed, shape, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def _make(shape=SHAPE, **options):
  return flows.TarFlow(shape, **TINY | options, rngs=nnx.Rngs(0))


def _abstract(*shape, **options):
  """Build abstractly: enough to see errors."""
  return nnx.eval_shape(lambda: _make(*shape, **options))


def _random(scale=0.2, **options):
  """Return a TarFlow with normal Params, split into its state and `merge(state)`."""
  graphdef, params, _ = nnx.split(_abstract(**options), nnx.Param, ...)
  # The orders of the tokens, compiled without the initial values, which nobody asks for.
  rest = jax.jit(lambda: nnx.split(_make(**options), nnx.Param, ...)[2])()
  rng = np.random.default_rng(0)
  draw = lambda v: jnp.asarray(scale * rng.standard_normal(v.shape), v.dtype)
  state = nnx.merge_state(jax.tree.map(draw, params), rest)
  return state, lambda state: nnx.merge(graphdef, state)


def test_a_new_tarflow_is_exactly_the_identity():
  flow = jax.jit(lambda: _make((4, 8, 2)))()
  x = _normal(0, (3, 4, 8, 2))
  for y, log_det in jax.jit(lambda flow, x: (flow.forward(x), flow.inverse(x)))(flow, x):
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(log_det, 0)
  params = nnx.to_pure_dict(nnx.state(flow, nnx.Param))["blocks"]["layers"]
  np.testing.assert_allclose(np.std(params["posemb"]), 0.01, rtol=0.25)  # of 2 * 8 * 8 draws
  layers = params["transformer"]["layers"]["blocks"]
  for values, fan_in in ((layers["mlp_out"]["kernel"], 32), (layers["qkv"]["bias"], 8)):
    assert values.shape[:2] == (2, 2)
    peaks = np.max(np.abs(values), axis=tuple(range(2, values.ndim)))
    assert np.all((0.7 * fan_in**-0.5 < peaks) & (peaks <= fan_in**-0.5))
    assert len(np.unique(peaks)) == 4  # every layer draws its own


@pytest.mark.parametrize("active", [0, 1])
def test_one_block_is_autoregressive_in_its_order(active):
  with jax.enable_x64(True):
    matrix, z, x = _one_block(active)
  # Axes: token and feature of the output, token and feature of the input, in reading order.
  matrix = np.asarray(matrix).reshape(2, 2, 2, 2, 2, 2, 2, 2, 2, 2)
  matrix = matrix.transpose(0, 2, 1, 3, 4, 5, 7, 6, 8, 9).reshape(4, 8, 4, 8)
  order = [0, 1, 2, 3] if active == 0 else [3, 2, 1, 0]
  matrix = matrix[order][:, :, order]
  for i in range(4):
    for j in range(4):
      entries = matrix[i, :, j]
      if i == j:
        np.testing.assert_array_equal(entries, np.diag(np.diag(entries)))
        np.testing.assert_array_less(0, np.diag(entries))
      elif i > j:
        assert np.all(entries != 0)
      else:
        np.testing.assert_array_equal(entries, 0)
  first = np.s_[:2, :2] if active == 0 else np.s_[2:, 2:]
  np.testing.assert_array_equal(z[first], x[first])


@functools.cache
def _jacobian():
  state, merge = _random(block_depth=1, param_dtype=jnp.float64)

  def flat(v, state):
    z, _ = merge(state).forward(v.reshape(1, *SHAPE))
    return z.reshape(32), z[0]

  return state, jax.jit(jax.jacfwd(flat, has_aux=True))


def _one_block(active):
  """Return the Jacobian, z and x where only one of two blocks is not the identity."""
  state, jacobian = _jacobian()
  only = lambda v: v * (jnp.arange(2) == active).reshape(2, *[1] * (v.ndim - 1))
  state = jax.tree.map(lambda v: v, state)
  head = state["blocks"]["layers"]["proj_out"]
  for name in ("kernel", "bias"):
    head[name] = head[name].replace(only(head[name][...]))
  x = _normal(1, SHAPE, "float64")
  matrix, z = jacobian(x.reshape(32), state)
  return matrix, z, x


def test_cached_sampling_is_sampling_without_a_cache():
  with jax.enable_x64(True):
    state, merge = _random(depth=1, param_dtype=jnp.float64)
    forward = jax.jit(lambda x: merge(state).forward(x)[0])
    z = _normal(2, (3, *SHAPE), "float64")
    # z_i is affine in x_i given the tokens before it, so two forward passes tell x_i.
    x = z
    for i in range(4):
      rows, columns = (slice(2 * k, 2 * k + 2) for k in divmod(i, 2))
      token = np.s_[:, rows, columns]
      at_0, at_1 = (forward(x.at[token].set(value))[token] for value in (0.0, 1.0))
      x = x.at[token].set((z[token] - at_0) / (at_1 - at_0))
    cached, _ = jax.jit(lambda z: merge(state).inverse(z))(z)
  np.testing.assert_allclose(cached, x, rtol=0, atol=1e-10)
  assert np.max(np.abs(x - z)) > 0.1


def test_guidance():
  state, merge = _random(num_classes=3)
  z, label = _normal(3, (3, *SHAPE)), jnp.array([0, -1, 2])

  @jax.jit
  def run(state, z, weight):
    flow = merge(state)
    guided = functools.partial(flow.guided_inverse, z, label)
    return {
      "plain": flow.inverse(z, label)[0],
      "zero": guided(guidance=0.0)[0],
      "nothing": guided(guidance=2.0, guide_what="")[0],
      "traced zero": guided(guidance=0 * weight, attention_temperature=2.0)[0],
      "guided": guided(guidance=weight)[0],
      "flatter": guided(guidance=weight, attention_temperature=2.0)[0],
    }, guided(guidance=weight)[1]

  x, finite = run(state, z, 0.5)
  for name in ("zero", "nothing", "traced zero"):
    np.testing.assert_allclose(x[name], x["plain"], rtol=0, atol=1e-6, err_msg=name)
  changes = np.max(np.abs(x["guided"] - x["plain"]), axis=(1, 2, 3))
  assert np.all(changes[[0, 2]] > 1e-3)
  assert changes[1] < 1e-5  # without a label there is nothing to push away from
  assert np.all(np.max(np.abs(x["flatter"] - x["guided"]), axis=(1, 2, 3)) > 1e-4)
  np.testing.assert_array_equal(finite, True)


def test_labels():
  state, merge = _random(num_classes=3)
  x = jnp.tile(_normal(4, (1, *SHAPE)), (6, 1, 1, 1))
  run = jax.jit(lambda state, x, label: merge(state).forward(x, label)[0])
  z = run(state, x, jnp.array([0, 1, 2, -1, 3, -2]))
  np.testing.assert_array_equal(np.all(np.isfinite(z), axis=(1, 2, 3)), [True] * 4 + [False] * 2)
  for i in range(4):
    for j in range(i):
      assert np.max(np.abs(z[i] - z[j])) > 1e-3
  table = state["blocks"]["layers"]["class_embedding"]
  means = jnp.broadcast_to(jnp.mean(table[...], axis=1, keepdims=True), table.shape)
  state["blocks"]["layers"]["class_embedding"] = table.replace(means)
  mean = run(state, x, jnp.array([0, 1, 2, 0, 1, 2]))
  np.testing.assert_allclose(mean, np.broadcast_to(z[3], mean.shape), rtol=0, atol=1e-5)
  none = merge(state).forward(x)[0]
  np.testing.assert_allclose(none, mean, rtol=0, atol=1e-5)


def test_memory_modes_have_one_gradient():
  state, _ = _random()
  x = _normal(5, (3, *SHAPE))

  def loss(state, x, memory):
    graphdef = nnx.graphdef(_abstract(memory=memory))
    z, log_det = nnx.merge(graphdef, state).forward(x)
    return jnp.mean(0.5 * jnp.sum(z**2, axis=(1, 2, 3)) - log_det)

  params, rest = nnx.split_state(state, nnx.Param, ...)
  at = lambda params, x, memory: loss(nnx.merge_state(params, rest), x, memory)
  gradient = jax.value_and_grad(at, argnums=(0, 1))
  store, remat = jax.jit(lambda p, x: [gradient(p, x, m) for m in ("store", "remat")])(params, x)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), store, remat)
  assert np.any(store[1][1] != 0)


def test_bfloat16_transformers_leave_latents_in_float32():
  x = _normal(6, (3, *SHAPE))
  state, narrow = _random(dtype=jnp.bfloat16)
  _, wide = _random()

  @jax.jit
  def run(state, x):
    z, log_det = narrow(state).forward(x)
    return z, log_det, narrow(state).inverse(z)[0], wide(state).forward(x)[0]

  z, log_det, back, exact = run(state, x)
  assert z.dtype == log_det.dtype == back.dtype == jnp.float32
  assert 1e-5 < np.max(np.abs(z - exact)) < 0.2
  np.testing.assert_allclose(back, x, rtol=0, atol=0.2)  # parallel and cached products round alike


def test_overflow_in_sampling_is_flagged():
  state, merge = _random(depth=1)
  head = state["blocks"]["layers"]["proj_out"]
  head["kernel"] = head["kernel"].replace(jnp.zeros_like(head["kernel"][...]))
  head["bias"] = head["bias"].replace(head["bias"][...].at[:, :8].set(80.0))  # log-scales
  # Only the last token of the second example: no later log-scale is computed from it.
  z = jnp.full((2, *SHAPE), 1e-30).at[1, 2:, 2:].set(1e5)

  @jax.jit
  def run(state, z):
    flow = merge(state)
    return flow.inverse(z), flow.guided_inverse(z, guidance=1.0, attention_temperature=2.0)

  (x, log_det), (_, finite) = run(state, z)
  np.testing.assert_array_equal(np.all(np.isfinite(x), axis=(1, 2, 3)), [True, False])
  np.testing.assert_array_equal(finite, [True, False])
  np.testing.assert_allclose(log_det, [3 * 8 * 80.0, np.nan], rtol=1e-6)


def test_the_program_does_not_grow_with_depth():
  def lines(**depths):
    graphdef, state = nnx.split(_abstract((4, 8, 1), **depths))

    def run(state, x):
      flow = nnx.merge(graphdef, state)
      return flow.forward(x), flow.inverse(x)

    x = jax.ShapeDtypeStruct((2, 4, 8, 1), jnp.float32)
    return len(jax.jit(run).lower(state, x).as_text().splitlines())

  # No depth equals another size here, which would let the compiler share a function.
  assert lines(depth=11, block_depth=5) == lines(depth=23, block_depth=5)
  assert lines(depth=11, block_depth=5) == lines(depth=11, block_depth=13)


WRONG = {
  "patch_size must divide height 4 and width 4, got 3": {"patch_size": 3},
  "patch_size must leave at least 2 tokens, got one of 4 x 4": {"patch_size": 4},
  "head_dim must divide emb_dim 8, got 3": {"head_dim": 3},
  "head_dim must divide emb_dim 8, got 0": {"head_dim": 0},
  "depth must be at least 1, got 0": {"depth": 0},
  "block_depth must be at least 1, got 0": {"block_depth": 0},
  "emb_dim must be at least 1, got 0": {"emb_dim": 0},
  "num_classes must be at least 1, got 0": {"num_classes": 0},
  "memory='reversible' rebuilds .* choose 'remat'": {"memory": "reversible"},
  "memory must be one of .* got 'remats'": {"memory": "remats"},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_refused(message):
  with pytest.raises(ValueError, match=message):
    _abstract(**WRONG[message])


WRONG_GUIDANCE = {
  "guidance must be at least 0, got -1": {"guidance": -1.0},
  "guidance must be a scalar": {"guidance": jnp.ones(2)},
  "guide_what must be .* got 'ba'": {"guidance": 1.0, "guide_what": "ba"},
  "attention_temperature must be above 0, got 0": {"attention_temperature": 0.0},
  "guidance needs a contrast": {"guidance": 1.0},
}


@pytest.mark.parametrize("message", WRONG_GUIDANCE)
def test_wrong_guidance_is_refused(message):
  with pytest.raises(ValueError, match=message):
    _abstract().guided_inverse(jnp.zeros((2, *SHAPE)), **WRONG_GUIDANCE[message])


def test_wrong_inputs_are_refused():
  images = jnp.zeros((2, *SHAPE))
  with pytest.raises(ValueError, match="cond must be None for a TarFlow without num_classes"):
    _abstract().forward(images, jnp.zeros((2,), int))
  with pytest.raises(ValueError, match="x must be floating, got uint8"):
    _abstract().forward(images.astype(jnp.uint8))
  labelled = _abstract(num_classes=3)
  with pytest.raises(ValueError, match=r"cond must be labels 0 to 2, or -1 for none, got \[0 3\]"):
    labelled.inverse(images, jnp.array([0, 3]))
  with pytest.raises(ValueError, match="guidance needs a contrast"):
    labelled.guided_inverse(images, guidance=1.0)
