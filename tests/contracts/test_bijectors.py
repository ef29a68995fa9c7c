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
from tests.contracts.bijectors import BATCH, ROWS
from tests.contracts.variants import variants_slow

# Bases to derive from: they can't be constructed.
ABSTRACT = {"Bijector", "Coupling"}


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


def _round_trips(bijector, x, z, cond):
  there, there_log_det = bijector.forward(x, cond)
  x_again, back_log_det = bijector.inverse(there, cond)
  back, down_log_det = bijector.inverse(z, cond)
  z_again, up_log_det = bijector.forward(back, cond)
  return {
    "forward": (there, there_log_det),
    "inverse": (back, down_log_det),
    "again": (x_again, z_again),
    "log_dets": ((there_log_det, back_log_det), (up_log_det, down_log_det)),
  }


@functools.cache
def _results(name, dtype_name):
  """Return the row's inputs and `_round_trips`, jitted once for all tests of the row."""
  row, dtype = ROWS[name], jnp.dtype(dtype_name)
  with jax.enable_x64(dtype == jnp.float64):
    bijector = _made(name, dtype_name)
    x, z, cond = _inputs(row, dtype)
    graphdef, state = nnx.split(bijector)
    run = jax.jit(lambda state, *inputs: _round_trips(nnx.merge(graphdef, state), *inputs))
    return (x, z, cond), jax.block_until_ready(run(state, x, z, cond))


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


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.cond is not None])
def test_cond_matters_in_both_directions(name):
  row = ROWS[name]
  (x, z, _), results = _results(name, "float32")
  bijector, other = _made(name), row.cond(2)
  for method, inputs in (("forward", x), ("inverse", z)):
    output, log_det = getattr(bijector, method)(inputs, other)
    # Every example feels its own condition.
    event = tuple(range(1, output.ndim))
    assert np.all(np.max(np.abs(output - results[method][0]), axis=event) > 1e-3)
    assert np.all(np.abs(log_det - results[method][1]) > 1e-5)


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
def test_jit_equals_eager(name):
  (x, z, cond), results = _results(name, "float32")
  bijector = _made(name)
  for method, inputs in (("forward", x), ("inverse", z)):
    for eager, jitted in zip(getattr(bijector, method)(inputs, cond), results[method], strict=True):
      np.testing.assert_allclose(eager, jitted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", variants_slow(ROWS))
def test_log_det_is_wide_under_bfloat16(name):
  row = ROWS[name]
  (x, z, cond), graphdef_state = _inputs(row), nnx.split(_made(name))

  @jax.jit
  def run(state, x, z, cond):
    bijector = nnx.merge(graphdef_state[0], state)
    return bijector.forward(x, cond), bijector.inverse(z, cond)

  narrow = run(graphdef_state[1], *(_as(v, jnp.bfloat16) for v in (x, z, cond)))
  results = _results(name, "float32")[1]
  for (output, log_det), method in zip(narrow, ("forward", "inverse"), strict=True):
    assert log_det.dtype == jnp.float32
    wide, wide_log_det = results[method]
    np.testing.assert_allclose(output.astype(jnp.float32), wide, rtol=0.1, atol=0.1)
    np.testing.assert_allclose(log_det, wide_log_det, rtol=0.1, atol=0.1)


def _gradients(name):
  """Return `loss_and_gradients` of a fresh bijector, and its arguments."""
  graphdef, params, rest = nnx.split(_make(name), nnx.Param, ...)
  x, z, cond = _inputs(ROWS[name])

  def loss(params, x, z):
    bijector = nnx.merge(graphdef, params, rest)
    latent, up = bijector.forward(x, cond)
    data, down = bijector.inverse(z, cond)
    return jnp.sum(jnp.sin(latent)) + jnp.sum(jnp.cos(data)) + jnp.sum(up**2) + jnp.sum(down**2)

  return jax.value_and_grad(loss, argnums=(0, 1, 2)), (params, x, z)


@pytest.mark.parametrize("name", ROWS)
def test_gradients_are_finite(name):
  gradients, arguments = _gradients(name)
  loss, (params_bar, x_bar, z_bar) = jax.jit(gradients)(*arguments)
  params_bar = jax.tree.leaves(params_bar)
  assert all(np.all(np.isfinite(leaf)) for leaf in [loss, x_bar, z_bar, *params_bar])
  assert np.all(x_bar != 0)
  assert np.all(z_bar != 0)
  assert not params_bar or any(np.any(leaf != 0) for leaf in params_bar)


@pytest.mark.parametrize("name", variants_slow(ROWS))
def test_nnx_modes_give_the_same_program(name):
  def program():
    gradients, arguments = _gradients(name)
    # Addresses of functions are all that may differ between two traces.
    text = re.sub(r"0x[0-9a-f]+", "", str(jax.make_jaxpr(gradients)(*arguments)))
    return text, jax.tree.leaves(arguments)

  with nnx.set_graph_mode(True), nnx.set_graph_updates(True):
    graph_text, graph_leaves = program()
  with nnx.set_graph_mode(False), nnx.set_graph_updates(False):
    tree_text, tree_leaves = program()
  assert graph_text == tree_text
  for graph, tree in zip(graph_leaves, tree_leaves, strict=True):
    np.testing.assert_array_equal(graph, tree)
