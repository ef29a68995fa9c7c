"""Online Normalization: the parallel form is the loop over examples, and its state survives all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import normjax.linen
from normjax import carried, norms

T, C = 8, 4
OPTIONS = {"decay": 0.9, "backward_decay": 0.8, "epsilon": 1e-2}


def draw(*shape, seed=0, dtype=np.float32):
  return np.random.default_rng(seed).normal(size=shape).astype(dtype)


X, G = 1 + 2 * draw(T, 3, C), draw(T, 3, C, seed=1)
STATE = (draw(C, seed=2), 1 + draw(C, seed=3) ** 2)
CONTROL = (draw(C, seed=4), draw(C, seed=5))
SCALE, BIAS = draw(C, seed=6), draw(C, seed=7)


@functools.cache
def jitted(**options):
  """Return a jitted `run(x, g, scale, bias, state, control, mask)`, see `loop`."""

  def run(x, g, scale, bias, state, control, mask=None):
    f = lambda *inputs: norms.online_norm(*inputs[:3], state, inputs[3], mask=mask, **options)
    y, vjp, new = jax.vjp(f, x, scale, bias, control, has_aux=True)
    dx, dscale, dbias, increments = vjp(g)
    return y, dx, dscale, dbias, new, jax.tree.map(jnp.add, control, increments)

  return jax.jit(run)


def loop(
  x, g, scale, bias, state, control, mask=None, *,
  decay, backward_decay, epsilon, ecm="ac", clamp_value=5.0, ls_epsilon=1e-5, ls_group_size=C,
  ecm_first=False,
):  # fmt: skip
  """Return y, dx, dscale, dbias and the new states, one example after the other in float64."""
  f64 = lambda tree: jax.tree.map(lambda v: np.asarray(v, np.float64), tree)
  x, g, scale, bias, (mean, var), (u, v) = f64((x, g, scale, bias, state, control))
  mask = np.ones(x.shape[:-1], bool) if mask is None else np.broadcast_to(mask, x.shape[:-1])
  n, sigma, y, dz = (np.zeros_like(x) for _ in range(4))
  for t in range(len(x)):
    sigma[t] = np.sqrt(var + epsilon)
    n[t] = (x[t] - mean) / sigma[t]
    if mask[t].any():
      seen = x[t][mask[t]]
      delta = seen.mean(0) - mean
      var = decay * var + (1 - decay) * (seen.var(0) + decay * delta**2)
      mean = mean + (1 - decay) * delta

  def bounded(z, g):
    """Return the compensated z and the cotangent of z, for one example."""
    if ecm == "ac":
      return np.clip(z, -clamp_value, clamp_value), np.where(np.abs(z) < clamp_value, g, 0)
    if ecm is None:
      return z, g
    y, dz, valid = np.empty_like(z), np.empty_like(z), mask[t] if mask[t].any() else ~mask[t]
    for i in range(0, C, ls_group_size):
      group = slice(i, i + ls_group_size)
      q = np.sqrt(np.mean(z[valid][:, group] ** 2) + ls_epsilon)
      y[:, group] = z[:, group] / q
      pull = np.sum(g[:, group] * y[:, group]) / z[valid][:, group].size
      dz[:, group] = (g[:, group] - valid[:, None] * y[:, group] * pull) / q
    return y, dz

  dscale, dbias, dn = np.zeros(C), np.zeros(C), np.empty_like(x)
  for t in range(len(x)):
    if ecm_first:
      z, _ = bounded(n[t], g[t])
      y[t], scaled = z * scale + bias, g[t]
      dn[t] = bounded(n[t], g[t] * scale)[1]
    else:
      z = n[t]
      y[t], scaled = bounded(z * scale + bias, g[t])
      dn[t] = scaled * scale
    dscale, dbias = dscale + np.sum(scaled * z, 0), dbias + np.sum(scaled, 0)

  dx, k = np.zeros_like(x), 1 - backward_decay
  for t in range(len(x)):
    if mask[t].any():
      a = dn[t] - k * v * n[t]
      v = v + (a * n[t])[mask[t]].mean(0)
      dx[t][mask[t]] = (a / sigma[t] - k * u)[mask[t]]
      u = u + dx[t][mask[t]].mean(0)
  return y, dx, dscale, dbias, (mean, var), (u, v)


def assert_close(a, b, rtol=1e-5):
  """Compare trees of arrays, each relative to its largest entry."""
  for u, v in zip(*map(jax.tree.leaves, (a, b)), strict=True):
    u, v = np.asarray(u, np.float64), np.asarray(v, np.float64)
    np.testing.assert_allclose(u, v, rtol=0, atol=rtol * np.max(np.abs(v), initial=1e-30))


@pytest.mark.parametrize(
  "options",
  [
    {"method": "scan", "clamp_value": 0.7},
    {"method": "associative", "clamp_value": 0.7, "ecm_first": True},
    {"method": "associative", "ecm": "ls", "ls_epsilon": 0.1},
    {"method": "scan", "ecm": "ls", "ls_group_size": 2, "ecm_first": True},
    {"method": "associative", "ecm": None},
  ],
  ids=str,
)
def test_parallel_form_is_the_loop_over_examples(options):
  mask = draw(T, 3, seed=8) > -0.3
  mask[2] = mask[5] = False
  inputs = (X, G, SCALE, BIAS, STATE, CONTROL, mask)
  got = jitted(**OPTIONS, **options)(*inputs)
  options = {k: v for k, v in options.items() if k != "method"}
  assert_close(got, loop(*inputs, **OPTIONS, **options))
  assert np.all(np.asarray(got[1])[~mask] == 0)


def test_a_batch_is_its_examples_one_after_the_other():
  run = jitted(**OPTIONS)

  def step(states, pair):
    y, dx, dscale, dbias, *states = run(*(v[None] for v in pair), SCALE, BIAS, *states)
    return states, (y[0], dx[0], dscale, dbias)

  one_by_one = jax.jit(functools.partial(jax.lax.scan, step))
  states, (y, dx, dscale, dbias) = one_by_one([STATE, CONTROL], (X, G))
  whole = run(X, G, SCALE, BIAS, STATE, CONTROL)
  assert_close((y, dx, dscale.sum(0), dbias.sum(0), *states), whole, rtol=1e-6)


@pytest.mark.parametrize("shape", [(T,), (T, 1, 1)])
def test_masked_examples_might_as_well_not_be_there(shape):
  valid = np.arange(T) % 3 != 1
  rest = (SCALE, BIAS, STATE, CONTROL)
  alone = loop(X[valid], G[valid], *rest, **OPTIONS)
  g = np.where(valid[:, None, None], G, 0)  # scale and bias are those of every output
  run = functools.partial(jitted(**OPTIONS), mask=valid.reshape(shape))
  got = run(X, g, *rest)
  assert_close((got[0][valid], got[1][valid], *got[2:]), alone)
  assert np.all(got[1][~valid] == 0)
  # The first masked example is normalized with the state after the one before it.
  mean, var = loop(X[:1], G[:1], *rest, **OPTIONS)[4]
  shown = (X[1] - mean) / np.sqrt(var + OPTIONS["epsilon"]) * SCALE + BIAS
  assert_close(got[0][1], np.clip(shown, -5, 5))
  # What is not there may be anything.
  for junk in (np.inf, np.nan):
    y, dx, _, _, *states = run(np.where(valid[:, None, None], X, np.float32(junk)), G, *rest)
    assert_close((y[valid], dx[valid], states), (alone[0], alone[1], list(alone[4:])))
    assert np.all(dx[~valid] == 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_gradients_have_the_dtype_of_the_input_and_states_their_own(dtype):
  with jax.enable_x64(dtype == jnp.float64):
    x = jax.ShapeDtypeStruct(X.shape, dtype)
    y, dx, *rest = jax.eval_shape(jitted(**OPTIONS), x, x, SCALE, BIAS, STATE, CONTROL)
  assert y.dtype == dx.dtype == dtype
  assert {v.dtype for v in jax.tree.leaves(rest)} == {np.dtype(np.float32)}


def test_accumulators_bound_the_average_of_gradients_exactly():
  """Sums of dx and of a * n are the increments: without control they grow with the noise's bias."""
  steps = 400
  with jax.enable_x64(True):
    x = 1 + 2 * draw(steps, 3, C, dtype=np.float64)
    g = 0.5 + x + draw(steps, 3, C, seed=1, dtype=np.float64)
    wide = lambda *pair: tuple(np.asarray(v, np.float64) for v in pair)
    zeros, start = wide(np.zeros(C), np.zeros(C)), wide(np.ones(C), np.full(C, 4.0))
    options = {**OPTIONS, "ecm": None}
    run = jitted(**options)

    def step(states, pair):
      _, dx, _, _, *new = run(*(v[None] for v in pair), *wide(np.ones(C), np.zeros(C)), *states)
      n = norms.online_norm(pair[0][None], None, None, states[0], **options)[0]
      a = pair[1] - (1 - OPTIONS["backward_decay"]) * states[1][1][None] * n[0]
      return new, (dx[0], (a * n[0]))

    (_, (u, v)), (dx, overlap) = jax.jit(functools.partial(jax.lax.scan, step))(
      [start, zeros], (x, g)
    )
    np.testing.assert_allclose(dx.mean(1).sum(0), u, rtol=1e-10)
    np.testing.assert_allclose(overlap.mean(1).sum(0), v, rtol=1e-10)
    # They stay of the size of single terms divided by 1 - backward_decay, whatever the time.
    terms = g.mean(1), (g * (x - 1) / 2).mean(1)
    for average, term in zip((dx, overlap), terms, strict=True):
      assert np.all(np.abs(average.mean((0, 1))) < 10 * np.abs(term).mean() / 0.2 / steps)
      assert np.all(np.abs(term.mean(0)) > 0.3)


def test_statistics_approach_those_of_a_stationary_stream():
  mean, std = np.array([3.0, -2.0, 5.0], np.float32), np.array([1.0, 2.0, 0.5], np.float32)
  x = mean[None] + std[None] * draw(20_000, 3)
  state = jax.jit(norms.online_norm)(x)[1]
  np.testing.assert_allclose(state[0], mean, rtol=0.05)
  np.testing.assert_allclose(state[1], std**2, rtol=0.05)


def test_without_memory_the_state_is_that_of_the_last_example():
  mean, var = jitted(**{**OPTIONS, "decay": 1e-12})(X, G, SCALE, BIAS, STATE, CONTROL)[4]
  np.testing.assert_allclose(mean, X[-1].mean(0), rtol=1e-5)
  np.testing.assert_allclose(var, X[-1].var(0), rtol=1e-5)


def test_large_means_cost_no_digits():
  x, state = X + np.float32(1e4), (STATE[0] + np.float32(1e4), STATE[1])
  got = jitted(**OPTIONS, ecm=None)(x, G, SCALE, BIAS, state, CONTROL)
  exact = loop(x, G, SCALE, BIAS, state, CONTROL, **OPTIONS, ecm=None)
  assert_close(got, exact, rtol=2e-6)


def test_half_precision_input_moves_the_state_in_full_precision():
  x, g = (jnp.asarray(v, jnp.bfloat16) for v in (X, G))
  run = jitted(**OPTIONS)
  y, dx, *narrow = run(x, g, SCALE, BIAS, STATE, CONTROL)
  wide_y, wide_dx, *wide = run(
    *(v.astype(jnp.float32) for v in (x, g)), SCALE, BIAS, STATE, CONTROL
  )
  assert y.dtype == dx.dtype == jnp.bfloat16
  assert_close(narrow, wide, rtol=1e-6)
  assert_close((y, dx), (wide_y, wide_dx), rtol=float(jnp.finfo(jnp.bfloat16).eps))


def test_no_gradient_passes_at_the_bound():
  x = np.array([[-2, -1, 0.5, 2]], np.float32)
  zeros, ones = np.zeros(4, np.float32), np.ones(4, np.float32)
  run = jitted(clamp_value=2.0, epsilon=0.0)
  y, _, _, dbias, *_ = run(x, np.ones_like(x), ones, zeros, (zeros, ones), (zeros, zeros))
  np.testing.assert_allclose(y, x)
  np.testing.assert_array_equal(dbias, [0, 1, 1, 0])


def test_evaluation_is_that_of_batch_norm_and_leaves_the_control_alone():
  options = {"use_running_average": True, "epsilon": 1e-2}
  y, dx, _, _, state, control = jitted(**options, ecm=None)(X, G, SCALE, BIAS, STATE, CONTROL)
  f = lambda x: norms.batch_norm(x, SCALE, BIAS, STATE, **options)[0]
  expected, vjp = jax.vjp(f, X)
  assert_close((y, dx), (expected, vjp(G)[0]))
  assert_close((state, control), (STATE, CONTROL), rtol=0)


def test_lanes_of_vmap_and_remat_are_single_runs():
  run = jitted(**OPTIONS)
  inputs = (X, G, SCALE, BIAS, STATE, CONTROL)
  other = jax.tree.map(lambda v: v[::-1] * 0.5, inputs)
  lanes = jax.jit(jax.vmap(run))(*jax.tree.map(lambda *v: np.stack(v), inputs, other))
  single = [run(*inputs), run(*other)]
  for i in range(2):
    assert_close(jax.tree.map(lambda v, i=i: v[i], lanes), single[i], rtol=2e-6)

  @jax.jit
  def rematerialized(x, g, scale, bias, state, control):
    f = lambda *v: norms.online_norm(*v[:3], state, v[3], **OPTIONS)
    y, vjp, new = jax.vjp(jax.checkpoint(f), x, scale, bias, control, has_aux=True)
    dx, dscale, dbias, increments = vjp(g)
    return y, dx, dscale, dbias, new, carried.apply(control, increments)

  assert_close(rematerialized(*inputs), single[0], rtol=1e-6)


def test_the_platform_that_is_lowered_for_chooses_the_method():
  traced = jax.jit(lambda x: norms.online_norm(x)).trace(X)
  text = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda", "tpu")}
  assert {p: "stablehlo.while" in t for p, t in text.items()} == {
    "cpu": True, "cuda": False, "tpu": False,
  }  # fmt: skip


# -- Devices ---------------------------------------------------------------------------------------


def test_mesh_with_explicit_axes_equals_one_device():
  run = jitted(**OPTIONS)  # traces both methods
  inputs = (X, G, SCALE, BIAS, STATE, CONTROL)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
  with jax.set_mesh(mesh):
    sharded = [jax.device_put(v, NamedSharding(mesh, P("data"))) for v in inputs[:2]]
    got = run(*sharded, *map(functools.partial(jax.tree.map, jnp.asarray), inputs[2:]))
  assert got[0].sharding.spec[0] == got[1].sharding.spec[0] == "data"
  assert_close(got, run(*inputs), rtol=2e-6)


def test_devices_of_a_shard_map_have_streams_of_their_own():
  mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
  alone = jitted(**OPTIONS)
  inputs = (X, G, SCALE, BIAS, STATE, CONTROL)
  streams = [alone(X[i : i + 2], G[i : i + 2], *inputs[2:]) for i in range(0, T, 2)]

  # With `axis_name` one state is kept, the mean of what its devices make of it.
  in_specs = (P("data"), P("data"), P(), P(), P(), P())
  shared = jax.shard_map(
    jitted(**OPTIONS, axis_name="data"),
    mesh=mesh, in_specs=in_specs, out_specs=(P("data"), P("data"), P(), P(), P(), P()),
  )  # fmt: skip
  got = jax.jit(shared)(*inputs)
  assert_close(got[0], np.concatenate([s[0] for s in streams]))
  assert_close(got[1], np.concatenate([s[1] for s in streams]))
  assert_close(got[2:4], [sum(s[i] for s in streams) for i in (2, 3)])
  mean_of = lambda i: jax.tree.map(lambda *v: sum(v) / 4, *(s[i] for s in streams))
  assert_close(got[4:], (mean_of(4), mean_of(5)))

  # Without it a state that all devices share cannot take their increments, and one each can.
  refused = jax.shard_map(alone, mesh=mesh, in_specs=in_specs, out_specs=P("data"))
  with pytest.raises(ValueError, match="manual axis types do not match"):
    jax.jit(refused)(*inputs)
  own = lambda x, g, scale, bias, *states: jax.tree.map(
    lambda v: v[None], alone(x, g, scale, bias, *jax.tree.map(lambda v: v[0], states))[4:]
  )
  stacked = jax.tree.map(lambda v: np.stack([v] * 4), (STATE, CONTROL))
  specs = (P("data"), P("data"), P(), P(), P("data"), P("data"))
  independent = jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=P("data"))
  got = jax.jit(independent)(*inputs[:4], *stacked)
  assert_close(got, jax.tree.map(lambda *v: np.stack(v), *(s[4:] for s in streams)))


# -- Training --------------------------------------------------------------------------------------

NORM = {**OPTIONS, "clamp_value": 1.5}
GRAPHDEF, PARAMS, SLOTS, REST = carried.split(norms.OnlineNorm(C, **NORM, rngs=nnx.Rngs(0)))
TX = optax.chain(optax.clip_by_global_norm(1e-2), optax.sgd(0.1))


def loss_fn(params, control, rest, x, g):
  model = nnx.merge(GRAPHDEF, params, control, rest, copy=True)
  return jnp.sum(model(x) * g), carried.split(model)[3]


@jax.jit
def train_step(state, x, g):
  params, control, rest, opt = state
  (_, rest), gradients, increments = carried.value_and_grad(loss_fn)(params, control, rest, x, g)
  updates, opt = TX.update(gradients, opt, params)
  return optax.apply_updates(params, updates), carried.apply(control, increments), rest, opt


def trained(state, steps):
  for i in steps:
    state = train_step(state, X + i, G)
  return state


FRESH = (PARAMS, SLOTS, REST, TX.init(PARAMS))


def test_module_keeps_its_state_by_type_and_trains():
  assert set(PARAMS) == {"scale", "bias"}
  assert set(SLOTS) == {"u", "v"}
  assert set(REST) == {"mean", "var"}
  _, control, rest, _ = train_step(FRESH, X, G)
  inputs = (PARAMS["scale"], PARAMS["bias"], (REST["mean"], REST["var"]), (SLOTS["u"], SLOTS["v"]))
  *_, (mean, var), (u, v) = loop(X, G, *inputs, **NORM)
  assert_close((rest["mean"], rest["var"], control["u"], control["v"]), (mean, var, u, v))


def test_accumulation_over_micro_batches_is_one_batch():
  def micro(states, pair):
    (_, rest), gradients, increments = carried.value_and_grad(loss_fn)(PARAMS, *states, *pair)
    return (carried.apply(states[0], increments), rest), gradients

  split = [v.reshape(-1, 2, 3, C) for v in (X, G)]
  states, gradients = jax.jit(functools.partial(jax.lax.scan, micro))((SLOTS, REST), split)
  (_, rest), whole, increments = jax.jit(carried.value_and_grad(loss_fn))(PARAMS, SLOTS, REST, X, G)
  total = jax.tree.map(lambda g: g.sum(0), gradients)
  assert_close((states, total), ((carried.apply(SLOTS, increments), rest), whole), rtol=1e-6)


def test_training_resumes_bit_for_bit(tmp_path):
  halfway = trained(FRESH, range(2))
  saved = dict(enumerate(halfway[:3]))
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "state", saved)
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: saved))
  resumed = trained((*restored.values(), halfway[3]), range(2, 4))
  straight = trained(FRESH, range(4))
  for a, b, old in zip(*map(jax.tree.leaves, (resumed, straight, halfway)), strict=True):
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, old), "everything moves"


def test_flax_train_state_trains_the_linen_layer_alike():
  class Model(linen.Module):
    @linen.compact
    def __call__(self, x):
      return normjax.linen.OnlineNorm(C, **NORM, name="norm")(x)

  model = Model()
  variables = jax.jit(model.init)(jax.random.key(0), X)
  statistics = variables.pop("batch_stats")
  state = TrainState.create(apply_fn=model.apply, params=variables, tx=TX)

  @jax.jit
  def step(state, statistics, x):
    def loss(params):
      y, new = state.apply_fn({**params, "batch_stats": statistics}, x, mutable=["batch_stats"])
      return jnp.sum(y * G), new["batch_stats"]

    gradients, statistics = jax.grad(loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=gradients), statistics

  # The first call of `init` has already seen the data once; flax keeps what it gave.
  ours = (PARAMS, SLOTS, statistics["norm"], TX.init(PARAMS))
  for i in range(3):
    state, statistics = step(state, statistics, X + i)
  params, control, rest, _ = trained(ours, range(3))
  got = state.params["params"], state.params[OVERWRITE_WITH_GRADIENT], statistics
  assert_close([v["norm"] for v in got], [params, control, rest])


# -- Arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"decay": 1.0}, r"decay must be inside \(0, 1\), got 1.0"),
    ({"decay": 0.0}, r"decay must be inside \(0, 1\), got 0.0"),
    ({"backward_decay": 1.0}, r"backward_decay must be inside \(0, 1\), got 1.0"),
    ({"epsilon": -1.0}, "epsilon must be >= 0, got -1.0"),
    ({"ls_epsilon": -1.0}, "ls_epsilon must be >= 0, got -1.0"),
    ({"clamp_value": 0.0}, "clamp_value must be > 0, got 0.0"),
    ({"ecm": "clamp"}, "ecm must be 'ac', 'ls' or None, got 'clamp'"),
    ({"ls_group_size": 3}, "ls_group_size must divide the 4 channels of x, got 3"),
    ({"method": "loop"}, "method must be 'scan', 'associative' or None, got 'loop'"),
  ],
  ids=str,
)
def test_options_are_checked_by_function_and_module(options, message):
  with pytest.raises(ValueError, match=message):
    norms.online_norm(X, **options)
  with pytest.raises(ValueError, match=message):
    norms.OnlineNorm(C, **options, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"x": np.zeros(C, np.float32)}, r"x must have shape \(t, ..., c\)"),
    ({"x": np.zeros((0, C), np.float32)}, "at least one entry"),
    ({"x": np.zeros((2, C), np.int32)}, "x must be floating"),
    ({"state": (np.zeros(3, np.float32), STATE[1])}, r"state must be \(mean, var\)"),
    ({"control": (CONTROL[0], np.zeros(C, np.float16))}, r"state must be \(u, v\)"),
    ({"mask": np.ones((T, C), bool)}, "mask must have the shape"),
    ({"mask": np.ones(T)}, "mask must be boolean"),
    ({"dtype": np.int32}, "dtype must be a floating dtype"),
  ],
)
def test_arrays_are_checked(arguments, message):
  with pytest.raises(ValueError, match=message):
    norms.online_norm(**{"x": X, **arguments})
