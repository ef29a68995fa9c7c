import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from normjax import checkpoint
from tests.checkpoint.states import (
  ABSTRACT,
  RECORD,
  STATES,
  Net,
  Position,
  assert_same,
  init_state,
  mesh,
  numbers,
  raw,
  restore,
  snapshot,
)


def test_restore_is_bit_identical_and_the_data_goes_on(saved):
  data, reference = numbers(), numbers()
  state, step = restore(saved, data=data)
  assert step == 15
  assert_same(state, STATES[15])
  assert [next(reference) for _ in range(5)][3:] == [next(data) for _ in range(2)]
  state, step = restore(saved, 5)
  assert step == 5
  assert_same(state, STATES[5])


def test_every_variable_type_survives_and_the_model_runs_on(saved):
  state, _ = restore(saved)
  graphdef = checkpoint.to_state(Net(nnx.Rngs(0)))[0]
  x = jax.random.normal(jax.random.key(3), (6, 4))

  @jax.jit
  def run(state):
    model = checkpoint.from_state(graphdef, state["params"], state["rest"])
    return model(x), checkpoint.to_state(model)[1:]

  y, (params, rest) = run(state)
  expected_y, (_, expected_rest) = run(STATES[15])
  np.testing.assert_array_equal(y, expected_y)
  assert_same(rest, expected_rest)
  assert_same(params, STATES[15]["params"])
  before, after = raw(state["rest"]), raw(rest)
  assert after["carried"][0] == before["carried"][0] + 1
  assert after["dropout"]["rngs"]["count"] == before["dropout"]["rngs"]["count"] + 1
  assert not np.array_equal(after["norm"]["mean"], before["norm"]["mean"])


def test_restore_onto_another_mesh(tmp_path):
  wide, square = mesh((8,), "data"), mesh((2, 4), "data", "fsdp")
  state = {"a": jnp.arange(64.0).reshape(8, 8), "b": jnp.arange(16, dtype=jnp.bfloat16)}
  placed = {
    "a": jax.device_put(state["a"], NamedSharding(wide, PartitionSpec("data"))),
    "b": jax.device_put(state["b"], NamedSharding(wide, PartitionSpec())),
  }
  wanted = {
    "a": NamedSharding(square, PartitionSpec(None, "fsdp")),
    "b": NamedSharding(square, PartitionSpec(("data", "fsdp"))),
  }
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, wanted
  )
  with checkpoint.Checkpointer(tmp_path, RECORD) as checkpointer:
    checkpointer.save(1, placed, force=True)
    restored, _ = checkpointer.restore(abstract)
  assert_same(restored, state)
  assert jax.tree.map(lambda x: x.sharding, restored) == wanted


def test_buffers_may_be_donated_while_a_save_is_running(tmp_path):
  advance = jax.jit(lambda x: jax.tree.map(lambda v: v + 1, x), donate_argnums=0)
  state = {"x": jnp.zeros((256, 256)), "y": jnp.zeros((1000,), jnp.int32)}
  abstract = jax.eval_shape(lambda: state)
  with checkpoint.Checkpointer(tmp_path, RECORD, save_every=1, max_to_keep=None) as checkpointer:
    for step in range(1, 7):
      state = advance(state)
      assert checkpointer.save(step, state)
    for step in range(1, 7):
      restored, _ = checkpointer.restore(abstract, step=step)
      assert {float(v.min()) for v in restored.values()} == {step}
      assert {float(v.max()) for v in restored.values()} == {step}


def test_save_keeps_its_schedule_and_the_newest(tmp_path):
  state = {"x": jnp.ones(3)}
  with checkpoint.Checkpointer(tmp_path, RECORD, save_every=2, max_to_keep=2) as checkpointer:
    assert checkpointer.latest_step is None
    assert [step for step in range(8) if checkpointer.save(step, state)] == [2, 4, 6]
    assert [step for step in range(5) if checkpointer.should_save(step)] == [2, 4]
    assert not checkpointer.reached_preemption(7)
    assert checkpointer.save(7, state, force=True)
    assert checkpointer.latest_step == 7
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["6", "7"]


def test_an_existing_step_is_never_overwritten(copy):
  before = snapshot(copy)
  with checkpoint.Checkpointer(copy, RECORD, save_every=5) as checkpointer:
    data = numbers()
    state, step = checkpointer.restore(ABSTRACT, data)
    assert not checkpointer.save(step, state, data)
    assert not checkpointer.save(step, state, data, force=True)
    with pytest.raises(ValueError, match="step 15 .* already holds another state"):
      checkpointer.save(15, STATES[10], data)
    next(data)
    with pytest.raises(ValueError, match="step 15 .* already holds another state"):
      checkpointer.save(15, state, data)
    with pytest.raises(ValueError, match="step 12 is older than step 15"):
      checkpointer.save(12, state, data, force=True)
  assert snapshot(copy) == before


def test_another_tree_is_named_leaf_by_leaf(saved):
  before = snapshot(saved)
  other = init_state()
  other["params"]["extra"] = jnp.zeros(2)
  other["params"]["linear"]["kernel"] = jnp.zeros((4, 9))
  other["params"]["half"] = other["params"]["half"].astype(jnp.float32)
  del other["rest"]["carried"]
  with pytest.raises(ValueError, match="step 15 .* is of another model or optimizer") as error:
    restore(saved, abstract=jax.eval_shape(lambda: other))
  message = str(error.value)
  assert "params/extra: (absent) in the checkpoint, float32[2] in the program" in message
  assert "params/linear/kernel: float32[4, 8] in the checkpoint, float32[4, 9]" in message
  assert "params/half: bfloat16[5] in the checkpoint, float32[5] in the program" in message
  assert "rest/carried: float32[8] in the checkpoint, (absent) in the program" in message
  assert "linear/bias" not in message
  assert snapshot(saved) == before


def test_what_is_not_damage_is_not_called_so(saved):
  # 5 entries can't be split over 8 devices.
  split = NamedSharding(mesh((8,), "data"), PartitionSpec("data"))
  abstract = {**ABSTRACT, "params": {**ABSTRACT["params"]}}
  half = abstract["params"]["half"]
  abstract["params"]["half"] = jax.ShapeDtypeStruct(half.shape, half.dtype, sharding=split)
  with pytest.raises(ValueError, match=r"step 15 in .* can't be read \(.*divisible") as error:
    restore(saved, abstract=abstract)
  assert "damaged" not in str(error.value)


def test_missing_steps_and_data(saved, tmp_path):
  with checkpoint.Checkpointer(tmp_path, RECORD) as checkpointer:
    with pytest.raises(ValueError, match="no checkpoint in .* yet"):
      checkpointer.restore(ABSTRACT)
    checkpointer.save(1, STATES[5], force=True)
    with pytest.raises(ValueError, match="data positions of 0 processes, this run has 1"):
      checkpointer.restore(ABSTRACT, numbers())
  with pytest.raises(ValueError, match=r"no checkpoint of step 7 in .*; there are steps \[5, 10"):
    restore(saved, 7)


def test_data_states_must_be_json(tmp_path):
  with checkpoint.Checkpointer(tmp_path, RECORD) as checkpointer:
    with pytest.raises(ValueError, match="data_iterator must have a JSON state"):
      checkpointer.save(2, STATES[5], Position(object()), force=True)
    assert checkpointer.latest_step is None
