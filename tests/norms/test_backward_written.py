"""Layers whose backward pass writes state, trained across their warm-up in every way there is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from normjax import carried, norms
from normjax.linen import to_linen

C = 4
LAYERS = {
  "power": (norms.PowerNorm, {"num_groups": 2, "warmup_iters": 2, "backward_decay": 0.8}),
  "power, exact": (
    norms.PowerNorm,
    {"num_groups": None, "warmup_iters": 3, "warmup_backward": "exact", "mask_backward": True},
  ),
  "unified": (
    norms.UnifiedNorm,
    {"window": (2, 3), "warmup_iters": 2, "ratio_warmup": 3, "outlier_filtration": True},
  ),
}
STEPS, NOTHING = 7, 4  # at step NOTHING every position is masked

_RNG = np.random.default_rng(0)
XS = jnp.asarray(_RNG.normal(size=(STEPS, 8, 3, C)) + np.arange(C), jnp.float32)
XS = XS.at[5].multiply(6)  # an outlier
TARGETS = jnp.asarray(_RNG.normal(size=XS.shape), jnp.float32)
# The first example, a device of its own where the batch is sharded, never has a valid position.
MASKS = jnp.asarray(_RNG.random(XS.shape[:3]) < 0.6).at[:, 0].set(False).at[NOTHING].set(False)
PARAMS = {"scale": jnp.linspace(0.5, 2, C), "bias": jnp.linspace(-1, 1, C)}


@functools.cache
def built(name, axis_name=None):
  """Return a loss for `carried.value_and_grad`, and the initial state of both passes."""
  cls, options = LAYERS[name]
  layer = cls(C, axis_name=axis_name, rngs=nnx.Rngs(0), **options)
  graphdef, _, written, rest = carried.split(layer)

  def loss_fn(params, written, rest, x, target, mask):
    layer = nnx.merge(graphdef, params, written, rest, copy=True)
    y = layer(x, mask=mask)
    loss = jnp.mean((y - target) ** 2)
    loss = loss if axis_name is None else jax.lax.pmean(loss, axis_name)
    return loss, (carried.split(layer)[3], y)

  return loss_fn, (written, rest)


def stepper(loss_fn):
  """Return a step for `jax.lax.scan` that gives the gradients out, and the state after it."""

  def step(state, batch):
    written, rest = state
    (loss, (rest, y)), gradients, increments = carried.value_and_grad(loss_fn)(
      PARAMS, written, rest, *batch
    )
    state = carried.apply(written, increments), rest
    return state, (state, loss, gradients, y)

  return step


def scanned(loss_fn):
  return lambda state, *batches: jax.lax.scan(stepper(loss_fn), state, batches)[1]


@functools.cache
def trained(name):
  """Return what every step of a scan over the batches gives."""
  loss_fn, state = built(name)
  return jax.jit(scanned(loss_fn))(state, XS, TARGETS, MASKS)


@functools.cache
def jitted(name):
  """Return a jitted step, and the list that it leaves a mark in when it is traced."""
  traces, step = [], stepper(built(name)[0])

  def marked(state, batch):
    traces.append(None)
    return step(state, batch)

  return jax.jit(marked), traces


def at(i, tree):
  return jax.tree.map(lambda v: v[i], tree)


def assert_close(a, b, rtol=1e-5):
  for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    u, v = np.asarray(u, np.float64), np.asarray(v, np.float64)
    np.testing.assert_allclose(u, v, rtol=0, atol=rtol * np.max(np.abs(v), initial=1e-30))


@pytest.mark.parametrize("name", LAYERS)
def test_one_compiled_step_crosses_the_warmup_and_equals_the_scan(name):
  step, traces = jitted(name)
  state = built(name)[1]
  for i in range(STEPS):
    state, out = step(state, (XS[i], TARGETS[i], MASKS[i]))
    assert_close(out, at(i, trained(name)))
  assert len(traces) == 1
  steps = np.asarray(trained(name)[0][1]["iters"])
  assert steps.dtype == np.int32
  np.testing.assert_array_equal(steps, [1, 2, 3, 4, 4, 5, 6])
  if name == "unified":
    np.testing.assert_array_equal(trained(name)[0][1]["skips"], [0, 0, 0, 0, 0, 1, 1])


@pytest.mark.parametrize("name", LAYERS)
def test_a_batch_without_valid_positions_is_evaluated_and_changes_no_state(name):
  states, _, gradients, y = trained(name)
  for leaf in jax.tree.leaves(states):
    np.testing.assert_array_equal(leaf[NOTHING], leaf[NOTHING - 1])
  layer = LAYERS[name][0](C, use_running_average=True, rngs=nnx.Rngs(0), **LAYERS[name][1])
  nnx.update(layer, PARAMS, at(NOTHING, states)[1])
  np.testing.assert_allclose(y[NOTHING], layer(XS[NOTHING]), rtol=1e-5, atol=1e-6)
  assert all(np.all(np.isfinite(v)) for v in jax.tree.leaves((states, gradients)))
  for leaf in jax.tree.leaves(states[0]):
    assert np.any(leaf[-1] != 0)


@pytest.mark.parametrize("name", LAYERS)
def test_remat_advances_all_state_once(name):
  run = jax.jit(scanned(jax.checkpoint(built(name)[0])))
  assert_close(run(built(name)[1], XS, TARGETS, MASKS), trained(name))


@pytest.mark.parametrize("name", LAYERS)
def test_sharded_batches_equal_one_device(name):
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  batches = jax.device_put((XS, TARGETS, MASKS), NamedSharding(mesh, PartitionSpec(None, "data")))
  assert_close(jax.jit(scanned(built(name)[0]))(built(name)[1], *batches), trained(name))


@pytest.mark.parametrize("name", LAYERS)
def test_shard_map_with_uneven_masks_equals_one_device(name):
  loss_fn, state = built(name, "data")
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  whole, split = PartitionSpec(), PartitionSpec(None, "data")
  run = jax.jit(
    jax.shard_map(
      scanned(loss_fn),
      mesh=mesh,
      in_specs=(whole, split, split, split),
      out_specs=(whole, whole, whole, split),
    )
  )
  assert_close(run(state, XS, TARGETS, MASKS), trained(name))


@pytest.mark.parametrize("name", LAYERS)
def test_training_goes_on_bit_for_bit_from_a_checkpoint(name, tmp_path):
  step, _ = jitted(name)
  state, middle = built(name)[1], None
  for i in range(STEPS):
    state, _ = step(state, (XS[i], TARGETS[i], MASKS[i]))
    middle = state if i == 2 else middle
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "state", middle)
    checkpointer.wait_until_finished()
    again = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: built(name)[1]))
  for i in range(3, STEPS):
    again, _ = step(again, (XS[i], TARGETS[i], MASKS[i]))
  for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", LAYERS)
def test_flax_train_state_moves_the_state_of_a_linen_layer(name):
  """Clipped gradients and the optimizer's rate do not touch what the backward pass writes."""
  cls, options = LAYERS[name]
  layer = to_linen(cls, C, **options)
  variables = layer.init(jax.random.key(0), XS[0])
  learned = {"params": PARAMS, OVERWRITE_WITH_GRADIENT: variables[OVERWRITE_WITH_GRADIENT]}
  tx = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(0.0))
  train = TrainState.create(apply_fn=layer.apply, params=learned, tx=tx)

  @jax.jit
  def step(train, statistics, x, target, mask):
    def loss(learned):
      variables = {**learned, "batch_stats": statistics}
      y, new = train.apply_fn(variables, x, mask=mask, mutable=["batch_stats"])
      return jnp.mean((y - target) ** 2), new["batch_stats"]

    gradients, statistics = jax.grad(loss, has_aux=True)(train.params)
    return train.apply_gradients(grads=gradients), statistics

  statistics = built(name)[1][1]
  for i in range(STEPS):
    train, statistics = step(train, statistics, XS[i], TARGETS[i], MASKS[i])
  written, rest = at(-1, trained(name)[0])
  assert_close(train.params[OVERWRITE_WITH_GRADIENT], written)
  assert_close(statistics, rest)


@pytest.mark.parametrize("name", LAYERS)
def test_restarting_the_warmup_resets_the_counter_only(name):
  cls, options = LAYERS[name]
  layer = cls(C, rngs=nnx.Rngs(0), **options)
  written, rest = at(-1, trained(name)[0])
  nnx.update(layer, PARAMS, written, rest)
  layer.restart_warmup()
  _, _, kept, after = carried.split(layer)
  assert (after["iters"], after["iters"].dtype) == (0, jnp.int32)
  for one, other in zip(
    jax.tree.leaves((kept, after)), jax.tree.leaves((written, {**rest, "iters": 0})), strict=True
  ):
    np.testing.assert_array_equal(one, other)
