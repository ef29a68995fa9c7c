"""BatchNorm and BatchRenorm: masks, devices, ghost batches, limits, and bad arguments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax.sharding import AxisType, PartitionSpec

from normjax import norms

RNG = np.random.default_rng(0)
SHAPE = (4, 3, 2)
X, G = RNG.normal(1.0, 2.0, SHAPE), RNG.normal(size=SHAPE)
SCALE, BIAS = RNG.normal(size=2), RNG.normal(size=2)
# Limits that clip some channels of some batches.
RENORM = functools.partial(norms.batch_renorm, r_max=1.5, d_max=0.4, decay=0.8)
BOTH = {"batch_norm": norms.batch_norm, "batch_renorm": RENORM}
STATE = {
  "batch_norm": (np.array([0.3, -0.2]), np.array([1.5, 3.0])),
  "batch_renorm": (np.array([0.3, -0.2]), np.array([1.5, 3.0]), np.array(7, np.int32)),
}
each = pytest.mark.parametrize("name", BOTH)


@pytest.fixture(autouse=True)
def _x64():
  with jax.enable_x64(True):
    yield


def with_grads(f, x, g, *, jit=True):
  """Return y, the gradients of sum(y * g) for x, scale and bias, and the new state."""

  def run(x, scale, bias, g):
    y, vjp, state = jax.vjp(f, x, scale, bias, has_aux=True)
    return y, vjp(g), state

  return (jax.jit(run) if jit else run)(x, SCALE, BIAS, g)


def assert_close(a, b, atol=1e-11):
  for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(u, v, rtol=0, atol=atol)


@each
def test_masked_batch_equals_its_valid_rows(name):
  norm, state = BOTH[name], STATE[name]
  mask = np.arange(12).reshape(4, 3) % 4 != 1
  mask[2] = False
  g = np.where(mask[..., None], G, 0)
  f = lambda x, *affine: norm(x, *affine, state, mask=jnp.asarray(mask))
  y, (dx, *dparams), new = with_grads(f, np.where(mask[..., None], X, np.nan), g)
  g_rows = lambda x, *affine: norm(x, *affine, state)
  y_rows, (dx_rows, *dparams_rows), new_rows = with_grads(g_rows, X[mask], G[mask])
  assert_close((y[mask], dx[mask], dparams, new), (y_rows, dx_rows, dparams_rows, new_rows))
  assert np.all(dx[~mask] == 0)
  # Masked positions are normalized by the statistics of the valid ones.
  y, _ = jax.jit(f)(X, SCALE, BIAS)
  slope = (y_rows[0] - y_rows[1]) / (X[mask][0] - X[mask][1])
  assert_close(y[2, 0], y_rows[0] + slope * (X[2, 0] - X[mask][0]))


@each
@pytest.mark.parametrize("kept", [[3, 0, 1, 2], [0, 0, 0, 0], [0, 0, 1, 0]])
def test_four_devices_with_unequal_masks_equal_one(name, kept):
  norm, state = BOTH[name], STATE[name]
  mask = np.arange(3)[None] < np.array(kept)[:, None]
  mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
  data, whole = PartitionSpec("data"), PartitionSpec()

  def f(x, scale, bias, axis_name=None, mask=mask):
    return norm(x, scale, bias, state, mask=jnp.asarray(mask), axis_name=axis_name)

  shard = jax.shard_map(
    lambda x, scale, bias, mask: f(x, scale, bias, "data", mask),
    mesh=mesh, in_specs=(data, whole, whole, data), out_specs=(data, whole), check_vma=True,
  )  # fmt: skip
  sharded = with_grads(lambda *args: shard(*args, jnp.asarray(mask)), X, G)
  single = with_grads(f, X, G)
  assert_close(sharded, single)
  assert all(np.all(np.isfinite(v)) for v in jax.tree.leaves(sharded))
  moved = not np.array_equal(sharded[2][0], state[0])
  assert moved == any(kept)


@each
def test_devices_without_a_mask_may_hold_one_position_each(name):
  norm = BOTH[name]
  mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
  data, whole = PartitionSpec("data"), PartitionSpec()
  f = jax.shard_map(
    lambda x: norm(x, axis_name="data"), mesh=mesh, in_specs=data, out_specs=(data, whole)
  )
  assert_close(jax.jit(f)(X[:, 0]), jax.jit(norm)(X[:, 0]))


@each
def test_no_valid_position_leaves_the_state_and_normalizes_with_it(name):
  norm, state = BOTH[name], STATE[name]
  y, new = norm(X, None, None, state, mask=jnp.zeros((1, 1), bool))
  jax.tree.map(np.testing.assert_array_equal, new, state)
  assert_close(y, norm(X, None, None, state, use_running_average=True)[0])


def test_one_valid_position_gives_the_bias_and_a_finite_state():
  mask = jnp.zeros(SHAPE[:2], bool).at[1, 2].set(True)
  y, (mean, var) = norms.batch_norm(X, SCALE, BIAS, mask=mask, decay=0.75)
  assert_close(y[1, 2], BIAS)
  assert_close((mean, var), (0.25 * X[1, 2], np.full(2, 0.75)))
  y, _ = norms.batch_norm(X[:1, 0], SCALE, BIAS, allow_single=True)
  assert_close(y[0], BIAS)


def test_masked_output_can_be_zero():
  mask = jnp.arange(4)[:, None] != 1
  y, _ = norms.batch_norm(X, SCALE, BIAS, mask=mask, masked_output="zero")
  kept, _ = norms.batch_norm(X, SCALE, BIAS, mask=mask)
  assert np.all(y[1] == 0)
  assert np.all(kept[1] != 0)
  assert_close(y[jnp.array([0, 2, 3])], kept[jnp.array([0, 2, 3])])


def test_gradient_is_orthogonal_to_constants_and_to_the_normalized_input():
  f = lambda x, scale, bias: norms.batch_norm(x, epsilon=0.0)
  y, (dx, *_), _ = with_grads(f, X, G)
  assert_close((jnp.sum(dx, (0, 1)), jnp.sum(dx * y, (0, 1))), (np.zeros(2), np.zeros(2)))
  assert np.max(np.abs(dx)) > 0.1
  moved, _ = norms.batch_norm(X * np.array([[[0.1, 7.0]]]) - 3, epsilon=0.0)
  assert_close(moved, y)


def test_running_statistics_converge_to_those_of_a_fixed_stream():
  step = lambda state, _: (norms.batch_norm(X, state=state, decay=0.8)[1], None)
  mean, var = jax.lax.scan(step, STATE["batch_norm"], None, 200)[0]
  rows = X.reshape(-1, 2)
  assert_close((mean, var), (rows.mean(0), rows.var(0, ddof=1)))


def test_biased_running_variance_is_flax_linen():
  ours = norms.BatchNorm(2, var_estimator="biased", decay=0.7, rngs=nnx.Rngs(0))
  theirs = linen.BatchNorm(momentum=0.7, use_fast_variance=False, dtype=jnp.float64)
  state = dict(zip(("mean", "var"), STATE["batch_norm"], strict=True))
  params = {"scale": SCALE, "bias": BIAS}
  nnx.update(ours, jax.tree.map(jnp.asarray, params | state))

  def linen_norm(x, scale, bias, running):
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": state}
    y, new = theirs.apply(variables, x, running, mutable=["batch_stats"])
    return y, (new["batch_stats"]["mean"], new["batch_stats"]["var"])

  def our_norm(x, scale, bias, running):
    graphdef, state = nnx.split(ours)
    norm = nnx.merge(graphdef, state, copy=True)
    y = norm(x, running, scale=scale, bias=bias)
    return y, (norm.mean[...], norm.var[...])

  for running in (False, True):
    wanted, got = (
      with_grads(functools.partial(norm, running=running), X, G) for norm in (linen_norm, our_norm)
    )
    assert_close(got, wanted, 1e-6)


def test_ghost_batches_are_normalized_alone():
  f = functools.partial(norms.batch_norm, decay=0.5)
  g = lambda x, scale, bias: f(x, scale, bias, ghost_batch_size=2)
  y, grads, (mean, var) = with_grads(g, X, G)
  halves = [with_grads(f, X[i : i + 2], G[i : i + 2]) for i in (0, 2)]
  assert_close(y, np.concatenate([half[0] for half in halves]))
  assert_close(grads[0], np.concatenate([half[1][0] for half in halves]))
  assert_close(np.array(grads[1:]), sum(np.array(half[1][1:]) for half in halves))
  states = [half[2] for half in halves]
  assert_close(np.array((mean, var)), np.mean(np.array(states), 0))
  # A ghost batch without a valid position moves nothing, and running values normalize it.
  mask = jnp.arange(4)[:, None] > 1
  y, state = f(X, mask=mask, ghost_batch_size=2)
  assert_close(state, states[1])
  assert_close(y[:2], f(X, use_running_average=True)[0][:2])


def test_renorm_without_room_is_batch_norm_and_with_much_room_evaluation():
  state, wide = STATE["batch_renorm"], {"r_max": 1e6, "d_max": 1e6}
  tight = lambda *args: norms.batch_renorm(*args, state, r_max=1, d_max=0)
  plain = lambda *args: norms.batch_norm(*args, epsilon=1e-3)
  assert_close(with_grads(tight, X, G)[:2], with_grads(plain, X, G)[:2])
  y, _ = norms.batch_renorm(X, SCALE, BIAS, state, **wide)
  shown, _ = norms.batch_renorm(X, SCALE, BIAS, state, use_running_average=True)
  assert_close(y, shown)
  assert_close(shown, (X - state[0]) / state[1] * SCALE + BIAS)


def test_renorm_treats_its_corrections_as_constants():
  state, x = STATE["batch_renorm"], X
  got = with_grads(lambda *args: norms.batch_renorm(*args, state, r_max=9, d_max=9), X, G)[1][0]
  mean, spread = x.mean((0, 1)), np.sqrt(x.var((0, 1)) + 1e-3)
  r, d = spread / state[1], (mean - state[0]) / state[1]
  plain = lambda x, scale, bias: norms.batch_norm(x, r * scale, d * scale + bias, epsilon=1e-3)
  assert_close(got, with_grads(plain, X, G)[1][0])
  evaluated = lambda *args: norms.batch_renorm(*args, state, use_running_average=True)
  assert not np.allclose(got, with_grads(evaluated, X, G)[1][0])


def test_renorm_averages_sigma_or_the_variance():
  rows = X.reshape(-1, 2)
  mean, var = rows.mean(0), rows.var(0)
  _, (m, sigma, _) = norms.batch_renorm(X, decay=0.75)
  assert_close((m, sigma), (0.25 * mean, 0.75 + 0.25 * np.sqrt(var + 1e-3)))
  state = (mean, var, jnp.zeros((), jnp.int32))
  y, (m, v, _) = norms.batch_renorm(X, state=state, average="var", r_max=9, d_max=9)
  assert_close((m, v), (mean, var))
  assert_close(y, norms.batch_norm(X, epsilon=1e-3)[0])  # r = 1 and d = 0
  assert_close(norms.batch_renorm(X, state=state, average="var", use_running_average=True)[0], y)


def corrections(step, **limits):
  """Return r and d of a batch whose sigma is far above, and whose mean is far above, the state."""
  state = (jnp.zeros(1), jnp.ones(1), jnp.asarray(step, jnp.int32))
  x = jnp.array([[100.0], [300.0]])
  y, _ = norms.batch_renorm(x, state=state, **limits)
  return float(y[1, 0] - y[0, 0]) / 2, float(jnp.mean(y))


@pytest.mark.parametrize(
  ("step", "r_max", "d_max"),
  [(0, 1, 0), (5000, 1, 0), (15000, 1 + 2 * 10 / 35, 2.5), (25000, 1 + 2 * 20 / 35, 5),
   (40000, 3, 5), (10**6, 3, 5)],
)  # fmt: skip
def test_paper_schedule_of_the_limits(step, r_max, d_max):
  np.testing.assert_allclose(corrections(step), (r_max, d_max), rtol=1e-6)


def test_limits_are_functions_of_the_traced_step():
  np.testing.assert_allclose(corrections(3, r_max=lambda s: 1 + s, d_max=lambda s: 0.5 * s),
                             (4, 1.5), rtol=1e-6)  # fmt: skip
  module = norms.BatchRenorm(2, r_max=lambda step: 1.0 + step, d_max=0, rngs=nnx.Rngs(0))
  graphdef, state = nnx.split(module)
  traces = []

  @jax.jit
  def train(state, x):
    traces.append(1)
    norm = nnx.merge(graphdef, state, copy=True)
    y = norm(x)
    return y, nnx.state(norm)

  spreads = []
  for _ in range(3):
    y, state = train(state, 1e3 * X)
    spreads.append(float(jnp.std(y[..., 0])))
  np.testing.assert_allclose(spreads, (1, 2, 3), rtol=1e-4)
  assert len(traces) == 1
  assert state["step"][...] == 3


@pytest.mark.parametrize("cls", [norms.BatchNorm, norms.BatchRenorm])
def test_evaluation_affine_is_evaluation(cls):
  norm = cls(2, scale_init=nnx.initializers.normal(), use_bias=False, rngs=nnx.Rngs(0))
  for module in (norm, cls(2, bias_init=nnx.initializers.normal(), rngs=nnx.Rngs(1))):
    module(X)
    scale, shift = module.evaluation_affine()
    by_hand = X * np.asarray(scale) + np.asarray(shift)
    assert_close(by_hand, module(X, use_running_average=True), 1e-6)
    assert scale.dtype == shift.dtype == jnp.float32


@each
@pytest.mark.parametrize(
  ("error", "options"),
  [
    ("epsilon must be >= 0, got -1", {"epsilon": -1}),
    (r"decay must be in \[0, 1\), got 1", {"decay": 1}),
    (r"decay must be in \[0, 1\), got -0.1", {"decay": -0.1}),
    (r"scale must have shape \(2,\)", {"scale": jnp.ones(3)}),
    (r"bias must have shape \(2,\)", {"bias": jnp.ones(3)}),
    ("mask must be boolean", {"mask": jnp.ones((4, 3))}),
    (r"mask must have the shape \(4, 3\)", {"mask": jnp.ones((4, 2), bool)}),
    (r"mask must have the shape \(4, 3\)", {"mask": jnp.ones(SHAPE, bool)}),
    ("dtype must be a floating dtype", {"dtype": jnp.int32}),
    ("more than one position", {"x": jnp.ones((1, 1, 2))}),
    ("more than one position", {"x": jnp.ones((0, 3, 2)), "allow_single": True}),
    ("x must be floating", {"x": jnp.ones(SHAPE, jnp.int32)}),
  ],
)
def test_bad_arguments(name, error, options):
  with pytest.raises(ValueError, match=error):
    BOTH[name](**{"x": jnp.ones(SHAPE)} | options)


@pytest.mark.parametrize(
  ("error", "norm", "options"),
  [
    ("ghost_batch_size must divide", norms.batch_norm, {"ghost_batch_size": 3}),
    ("ghost_batch_size must divide", norms.batch_norm, {"ghost_batch_size": 0}),
    ("ghost_batch_size must be None where", norms.batch_norm,
     {"ghost_batch_size": 2, "axis_name": "data"}),
    ("var_estimator must be", norms.batch_norm, {"var_estimator": "sample"}),
    ("masked_output must be", norms.batch_norm, {"masked_output": "nan"}),
    (r"mean must have shape \(2,\), got float64\[3\]", norms.batch_norm,
     {"state": (np.ones(3), np.ones(2))}),
    (r"var must have shape \(2,\), got bfloat16\[2\]", norms.batch_norm,
     {"state": (np.ones(2), jnp.ones(2, jnp.bfloat16))}),
    (r"sigma must have shape \(2,\)", norms.batch_renorm, {"state": (np.ones(2), np.ones(3), 0)}),
    (r"state must be \(mean, sigma, step\), got 2", norms.batch_renorm,
     {"state": (np.ones(2), np.ones(2))}),
    ("r_max must be >= 1, got 0.9", norms.batch_renorm, {"r_max": 0.9}),
    ("d_max must be >= 0, got -1", norms.batch_renorm, {"d_max": -1}),
    ("average must be 'sigma' or 'var'", norms.batch_renorm, {"average": "std"}),
  ],
)  # fmt: skip
def test_bad_options(error, norm, options):
  with pytest.raises(ValueError, match=error):
    norm(jnp.ones(SHAPE), **options)
  cls = {"batch_norm": norms.BatchNorm, "batch_renorm": norms.BatchRenorm}[norm.__name__]
  if "state" not in options and "divide" not in error and "axis_name" not in options:
    with pytest.raises(ValueError, match=error):
      cls(2, **options, rngs=nnx.Rngs(0))


def test_an_undecided_mode_is_an_error():
  for cls in (norms.BatchNorm, norms.BatchRenorm):
    norm = cls(2, use_running_average=None, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="use_running_average must be given"):
      norm(X)
