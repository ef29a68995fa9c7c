"""What every bijector promises, one row per public class of `normjax.flows`."""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import flows
from tests.contracts.bijectors import BATCH, ROWS, real
from tests.contracts.variants import variants_slow

# A primitive of a program's text that factorizes a matrix.
DECOMPOSITION = re.compile(r" = (lu|qr|geqrf|svd|eigh?|cholesky|schur)\b")

# Rotations that are made by solving, and a determinant that is no linear layer's.
FACTORIZED = ("ResidualFlow", "RotationLinear")

# Bases to derive from: they can't be constructed.
ABSTRACT = {"Bijector", "Coupling"}
METHODS = ("forward", "inverse")

# Two digits of float32 are left above the largest: a sum of terms may not overflow.
EXTREMES = (1e-30, 1e4, 1e15, 1e30)


def _public_bijectors():
  members = {name: getattr(flows, name) for name in flows.__all__}
  return {
    name: member
    for name, member in members.items()
    if inspect.isclass(member) and issubclass(member, flows.Bijector)
  }


def _as(value, dtype):
  """Return an array in another floating dtype; integers and None as they are."""
  floating = value is not None and jnp.issubdtype(value.dtype, jnp.floating)
  return value.astype(dtype) if floating else value


def _make(name):
  """Return the row's bijector with every Param moved away from special initial values."""
  bijector = ROWS[name].make(nnx.Rngs(0))
  rng = np.random.default_rng(1)
  move = lambda p: jnp.asarray(p + 0.2 * rng.standard_normal(p.shape), p.dtype)
  nnx.update(bijector, jax.tree.map(move, nnx.state(bijector, nnx.Param)))
  return bijector


@functools.cache
def _made(name, dtype_name="float32"):
  if dtype_name == "float32":
    # Also where the first to ask is a float64 test: indices of 64 bits would stay in the cache.
    with jax.enable_x64(False):
      return _make(name)
  graphdef, state = nnx.split(_made(name))
  with jax.enable_x64(True):
    return nnx.merge(graphdef, jax.tree.map(lambda v: _as(v, jnp.float64), state))


def _inputs(row, dtype=jnp.float32):
  """Return data, latents and cond."""
  x = jnp.asarray(row.data(2, (BATCH, *row.shape)), dtype)
  latent_shape = row.shape if row.latent_shape is None else row.latent_shape
  z = jnp.asarray(row.latents(3, (BATCH, *latent_shape)), dtype)
  return x, z, None if row.cond is None else _as(row.cond(1), dtype)


def _with_gradients(graphdef):
  """Return a function of method and state, with gradients of a loss that feels every output.

  Compiled once per method, it serves both ends of a round trip. The loss and its slope are finite
  whatever the outputs are, so NaN in a gradient are of the bijector.
  """

  def loss(params, value, rest, cond, method):
    output, log_det = getattr(nnx.merge(graphdef, params, rest), method)(value, cond)
    return jnp.sum(jnp.arctan(output)) + jnp.sum(jnp.arctan(log_det)), (output, log_det)

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), static_argnums=4)


def _narrow(name):
  """Return the row's inputs and what all its tests in float32 share.

  `gradients` are those of x and z, {method: (loss, params_bar, value_bar)}; `other` is what another
  condition gives, {method: (output, log_det)}; `nan` lists what made NaN, (method, size).
  """
  row, (x, z, cond) = ROWS[name], _inputs(ROWS[name])
  graphdef, params, rest = nnx.split(_made(name), nnx.Param, ...)
  run, gradients = _with_gradients(graphdef), {}

  def call(method, value):
    (loss, result), (params_bar, value_bar) = run(params, value, rest, cond, method)
    gradients.setdefault(method, (loss, params_bar, value_bar))
    return result

  there, there_log_det = call("forward", x)
  back, down_log_det = call("inverse", z)
  x_again, back_log_det = call("inverse", there)
  z_again, up_log_det = call("forward", back)
  results = {
    "forward": (there, there_log_det),
    "inverse": (back, down_log_det),
    "again": (x_again, z_again),
    "log_dets": ((there_log_det, back_log_det), (up_log_det, down_log_det)),
    "gradients": gradients,
  }
  results["nan"] = [
    (method, size)
    for method, value, draw in zip(METHODS, (x, z), (row.data, row.latents), strict=True)
    for size in EXTREMES
    if draw is real and _any_nan(run(params, _with_extremes(value, size), rest, cond, method))
  ]
  if row.cond is not None:
    results["other"] = {
      method: run(params, value, rest, row.cond(2), method)[0][1]
      for method, value in zip(METHODS, (x, z), strict=True)
    }
  return (x, z, cond), results


def _with_extremes(value, size):
  """Return a batch with entries +-size: every one of an example, or one of each other example."""
  rows = np.array(value).reshape(BATCH, -1)
  rows[0] = size * (-1.0) ** np.arange(rows.shape[1])
  rows[1, 0], rows[2, rows.shape[1] // 2] = size, -size
  return jnp.asarray(rows.reshape(value.shape))


def _any_nan(tree):
  return any(np.isnan(leaf).any() for leaf in jax.tree.leaves(tree))


@functools.lru_cache(maxsize=2)
def _wide_program(name):
  """Return a function of method, input and condition in float64, compiled once per method."""
  graphdef, state = nnx.split(_made(name, "float64"))

  def call(state, value, cond, method):
    return getattr(nnx.merge(graphdef, state), method)(value, cond)

  run = jax.jit(call, static_argnums=3)
  return lambda method, value, cond: run(state, value, cond, method)


def _wide(name):
  """Return the row's inputs and results in float64."""
  (x, z, cond), run = _inputs(ROWS[name], jnp.float64), _wide_program(name)
  there, there_log_det = run("forward", x, cond)
  back, down_log_det = run("inverse", z, cond)
  x_again, back_log_det = run("inverse", there, cond)
  z_again, up_log_det = run("forward", back, cond)
  results = {
    "forward": (there, there_log_det),
    "again": (x_again, z_again),
    "log_dets": ((there_log_det, back_log_det), (up_log_det, down_log_det)),
  }
  return (x, z, cond), results


def _varying(name):
  """Return {method: (its result, that of what varies)} in float64, under one condition for all.

  Most layers inherit what they do there, and are compiled for it only if it takes a condition.
  """
  bijector, (x, z, cond) = _made(name, "float64"), _inputs(ROWS[name], jnp.float64)
  inherits = type(bijector).forward_varying is flows.Bijector.forward_varying
  if inherits and (cond is None or not bijector.constant_logdet):
    return {}
  if cond is not None:
    cond = jnp.broadcast_to(cond[:1], cond.shape)
  run = _wide_program(name)
  return {
    method: (run(method, value, cond), run(f"{method}_varying", value, cond))
    for method, value in zip(METHODS, (x, z), strict=True)
  }


# The tests of a row run one after the other (see conftest.py): few results need to be kept.
@functools.lru_cache(maxsize=8)
def _results(name, dtype_name):
  with jax.enable_x64(dtype_name == "float64"):
    return jax.block_until_ready({"float32": _narrow, "float64": _wide}[dtype_name](name))


def test_table_has_a_row_per_public_class():
  public = _public_bijectors()
  assert {name for name, member in public.items() if inspect.isabstract(member)} == ABSTRACT
  rows = {name.split("/")[0] for name in ROWS}
  assert public.keys() - ABSTRACT - rows == set(), "public bijectors without a row"
  assert rows - (public.keys() - ABSTRACT) == set(), "rows without a public bijector"


@pytest.mark.parametrize("name", sorted(ABSTRACT))
def test_abstract_classes_cannot_be_made(name):
  with pytest.raises(TypeError, match="abstract"):
    getattr(flows, name)()


@pytest.mark.parametrize("name", ROWS)
def test_row_makes_its_class(name):
  assert type(_made(name)) is getattr(flows, name.split("/")[0])


@pytest.mark.parametrize(("dtype", "atol"), [("float64", 1e-9), ("float32", 1e-4)])
@pytest.mark.parametrize("name", ROWS)
def test_round_trips_both_ways(name, dtype, atol):
  (x, z, _), results = _results(name, dtype)
  x_again, z_again = results["again"]
  assert x_again.dtype == z_again.dtype == jnp.dtype(dtype)
  np.testing.assert_allclose(x_again, x, rtol=0, atol=atol)
  np.testing.assert_allclose(z_again, z, rtol=0, atol=atol)


@pytest.mark.parametrize(("dtype", "atol"), [("float64", 1e-9), ("float32", 1e-4)])
@pytest.mark.parametrize("name", ROWS)
def test_inverse_log_det_is_minus_forwards(name, dtype, atol):
  _, results = _results(name, dtype)
  for forward, inverse in results["log_dets"]:
    assert forward.shape == inverse.shape == (BATCH,)
    assert forward.dtype == inverse.dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(inverse, -forward, rtol=0, atol=atol)


@pytest.mark.parametrize("name", ROWS)
def test_log_det_is_that_of_the_jacobian(name):
  row = ROWS[name]
  (x, _, cond), results = _results(name, "float64")
  z, log_det = results["forward"]
  with jax.enable_x64(True):
    graphdef, state = nnx.split(_made(name, "float64"))
    size = int(np.prod(row.shape))

    def flat(v, state, cond):
      z, _ = nnx.merge(graphdef, state).forward(v.reshape(1, *row.shape), cond)
      return z.reshape(size), z

    jacobian = jax.jit(row.jacobian(flat, has_aux=True))
    for i in range(BATCH):
      matrix, alone = jacobian(x[i].reshape(-1), state, None if cond is None else cond[i : i + 1])
      np.testing.assert_allclose(alone[0], z[i], rtol=0, atol=1e-9)  # examples do not mix
      np.testing.assert_allclose(np.linalg.slogdet(matrix)[1], log_det[i], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ROWS)
def test_what_varies_is_all_but_a_constant_of_the_log_det(name):
  constant = _made(name).constant_logdet
  if ROWS[name].cond is None:
    _, results = _results(name, "float64")
    # Neither says less than it could, nor more.
    for log_det, _ in results["log_dets"]:
      assert constant == (np.ptp(log_det) < 1e-12)
  with jax.enable_x64(True):
    found = jax.tree.map(np.asarray, _varying(name))
  for (output, log_det), (again, varying) in found.values():
    np.testing.assert_array_equal(again, output)
    assert varying.shape == (BATCH,)
    assert varying.dtype == log_det.dtype
    np.testing.assert_allclose(np.ptp(log_det - varying), 0, atol=1e-12)
    assert constant == (np.ptp(log_det) < 1e-12)
    assert not constant or not np.any(varying)


@pytest.mark.parametrize("name", [name for name in ROWS if not name.startswith(FACTORIZED)])
def test_what_varies_takes_no_determinant_of_a_linear_layer(name):
  bijector, (x, _, cond) = _made(name), _inputs(ROWS[name])
  assert not DECOMPOSITION.search(str(jax.make_jaxpr(bijector.forward_varying)(x, cond)))


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.cond is not None])
def test_cond_matters_in_both_directions(name):
  _, results = _results(name, "float32")
  for method in METHODS:
    (output, log_det), (other, other_log_det) = results[method], results["other"][method]
    # Every example feels its own condition.
    event = tuple(range(1, output.ndim))
    assert np.all(np.max(np.abs(output - other), axis=event) > 1e-3)
    assert np.all(np.abs(log_det - other_log_det) > 1e-5) != _made(name).constant_logdet


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.cond is not None])
def test_bad_cond_is_refused(name):
  row = ROWS[name]
  assert row.bad_conds, "a conditional row lists what it refuses"
  bijector, (x, z, _) = _made(name), _inputs(row)
  for cond in row.bad_conds:
    with pytest.raises(ValueError, match="cond must"):
      bijector.forward(x, cond)
    with pytest.raises(ValueError, match="cond must"):
      bijector.inverse(z, cond)


@pytest.mark.parametrize("name", ROWS)
def test_bad_shapes_are_refused(name):
  row = ROWS[name]
  bijector, (_, _, cond) = _made(name), _inputs(row)
  for shape in row.bad_shapes:
    with pytest.raises(ValueError, match="must have shape"):
      bijector.forward(jnp.full(shape, 0.5), cond)
  for shape in row.bad_shapes if row.bad_latents is None else row.bad_latents:
    with pytest.raises(ValueError, match="must have shape"):
      bijector.inverse(jnp.full(shape, 0.5), cond)


@pytest.mark.parametrize("name", variants_slow(ROWS))
def test_other_nnx_mode_gives_the_same_without_jit(name):
  (x, z, cond), results = _results(name, "float32")
  # What the tests of a row share is made and compiled in flax's own mode.
  graph = not nnx.set_graph_mode.current_value()
  with nnx.set_graph_mode(graph), nnx.set_graph_updates(graph):
    graphdef, state = nnx.split(_make(name))
    bijector = nnx.merge(graphdef, state)
    for method, inputs in zip(METHODS, (x, z), strict=True):
      for eager, jitted in zip(
        getattr(bijector, method)(inputs, cond), results[method], strict=True
      ):
        np.testing.assert_allclose(eager, jitted, rtol=1e-5, atol=1e-5)
  is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  plain = lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf
  made = jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(_made(name))))
  again = jax.tree.leaves_with_path(nnx.to_pure_dict(state))
  for (path, leaf), (path_again, leaf_again) in zip(made, again, strict=True):
    assert path_again == path
    np.testing.assert_array_equal(plain(leaf_again), plain(leaf))


@pytest.mark.parametrize("name", variants_slow(ROWS))
def test_log_det_is_wide_under_bfloat16(name):
  (x, z, cond), results = _results(name, "float32")
  graphdef, state = nnx.split(_made(name))

  @jax.jit
  def run(state, x, z, cond):
    bijector = nnx.merge(graphdef, state)
    return bijector.forward(x, cond), bijector.inverse(z, cond)

  narrow = run(state, *(_as(v, jnp.bfloat16) for v in (x, z, cond)))
  for (output, log_det), method in zip(narrow, METHODS, strict=True):
    assert log_det.dtype == jnp.float32
    wide, wide_log_det = results[method]
    np.testing.assert_allclose(output.astype(jnp.float32), wide, rtol=0.1, atol=0.1)
    np.testing.assert_allclose(log_det, wide_log_det, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", ROWS)
def test_gradients_are_finite(name):
  _, results = _results(name, "float32")
  gradients = [results["gradients"][method] for method in METHODS]
  for loss, params_bar, value_bar in gradients:
    assert all(np.all(np.isfinite(v)) for v in [loss, value_bar, *jax.tree.leaves(params_bar)])
    assert np.all(value_bar != 0)
  params_bar = jax.tree.leaves([params_bar for _, params_bar, _ in gradients])
  assert not params_bar or any(np.any(leaf != 0) for leaf in params_bar)


@pytest.mark.parametrize("name", ROWS)
def test_no_finite_number_makes_nan(name):
  _, results = _results(name, "float32")
  assert {m for m, _ in results["nan"]} == ({"inverse"} if ROWS[name].overflows else set())
