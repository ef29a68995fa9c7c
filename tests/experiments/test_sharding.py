import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from experiments import sharding

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
  ("mesh", "shape"),
  [
    ("", {"data": 1, "fsdp": 1}),
    ("data:8", {"data": 8, "fsdp": 1}),
    ("data:2,fsdp:4", {"data": 2, "fsdp": 4}),
    ("fsdp:4,data:2", {"data": 2, "fsdp": 4}),
    ("fsdp:3", {"data": 1, "fsdp": 3}),
  ],
)
def test_mesh_strings(mesh, shape):
  made = sharding.make_mesh(mesh)
  assert dict(made.shape) == shape
  assert made.axis_types == (AxisType.Auto, AxisType.Auto)


@pytest.mark.parametrize(
  ("mesh", "message"),
  [
    ("data", 'must look like "data:8" or "data:2,fsdp:4", got \'data\''),
    ("data:", "must look like"),
    ("data:0", "must look like"),
    ("data:-2", "must look like"),
    ("data:2.0", "must look like"),
    ("data:2,data:4", "must look like"),
    ("data=8", "mesh axes are data, fsdp, got 'data=8' .*; did you mean data?"),
    ("dat:8", "mesh axes are data, fsdp, got 'dat' in 'dat:8'; did you mean data?"),
    ("model:2", "mesh axes are data, fsdp, got 'model'"),
    ("8", "mesh axes are data, fsdp, got '8'"),
    ("data:2,", "mesh axes are data, fsdp, got ''"),
    ("data:2, fsdp:2", "mesh axes are data, fsdp, got ' fsdp'.*did you mean fsdp?"),
    ("data:9", r"mesh 'data:9' asks for 9 devices, found 8 \(cpu\) in 1 process"),
    ("data:4,fsdp:4", "asks for 16 devices, found 8"),
  ],
)
def test_wrong_mesh_strings(mesh, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(mesh)


def test_batches_are_split_over_all_devices():
  mesh = sharding.make_mesh("data:2,fsdp:4")
  rows = np.arange(32).reshape(16, 2)
  batch = sharding.put_batch({"x": rows, "y": rows[:, 0]}, sharding.batch_sharding(mesh))
  np.testing.assert_array_equal(batch["x"], rows)
  np.testing.assert_array_equal(batch["y"], rows[:, 0])
  shards = batch["x"].addressable_shards
  assert len({shard.device for shard in shards}) == 8
  for shard in shards:
    np.testing.assert_array_equal(shard.data, rows[shard.index])
    assert shard.data.shape == (2, 2)


def test_batches_that_do_not_divide():
  mesh = sharding.make_mesh("data:2,fsdp:4")
  with pytest.raises(ValueError, match="batch a/x has 12 rows, which 8 devices"):
    sharding.put_batch({"a": {"x": np.zeros((12, 2))}}, sharding.batch_sharding(mesh))


def abstract(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(
  ("leaf", "spec"),
  [
    (abstract(64, 128), (None, "fsdp")),
    (abstract(8, 256, 64), (None, "fsdp")),
    (abstract(8, 64, 256), (None, None, "fsdp")),
    (abstract(512, 16), (None, "fsdp")),
    (abstract(8, 513), ("fsdp",)),
    (abstract(8, 126, 64), (None, None, "fsdp")),
    (abstract(8192), ("fsdp",)),
    (abstract(65, 129), ()),
    (abstract(63, 64), ()),
    (abstract(4, 4), ()),
    (abstract(), ()),
    (abstract(64, 128, dtype=jnp.int32), ()),
    (abstract(64, 128, dtype=jnp.bfloat16), (None, "fsdp")),
    (jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 8192)), ()),
  ],
)
def test_which_axis_is_split(leaf, spec):
  mesh = sharding.make_mesh("data:2,fsdp:4")
  found = sharding.state_shardings({"leaf": leaf}, mesh)["leaf"]
  assert found.spec == PartitionSpec(*spec)
  found.shard_shape(leaf.shape)
  assert sharding.state_shardings(leaf, sharding.make_mesh("data:8")).spec == PartitionSpec()


def init_state():
  params = {"w": jax.random.normal(jax.random.key(0), (64, 128)), "b": jnp.zeros(128)}
  return {"params": params, "opt": optax.adam(1e-2).init(params), "key": jax.random.key(1)}


def train_step(state, batch):
  def loss(params):
    return jnp.mean((batch["x"] @ params["w"] + params["b"][None]) ** 2)

  value, grads = jax.value_and_grad(loss)(state["params"])
  updates, opt = optax.adam(1e-2).update(grads, state["opt"], state["params"])
  return {**state, "params": optax.apply_updates(state["params"], updates), "opt": opt}, value


def run(mesh):
  shape = jax.eval_shape(init_state)
  shardings = sharding.state_shardings(shape, mesh)
  state = jax.jit(init_state, out_shardings=shardings)()
  step = jax.jit(train_step, out_shardings=(shardings, sharding.replicated(mesh)))
  batch = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32)
  losses = []
  for _ in range(3):
    state, loss = step(state, sharding.put_batch({"x": batch}, sharding.batch_sharding(mesh)))
    losses.append(float(loss))
  wanted = sharding.with_shardings(shape, shardings)
  assert jax.tree.map(lambda x: x.sharding, wanted) == jax.tree.map(lambda x: x.sharding, state)
  return state, losses


def test_training_is_the_same_on_every_mesh():
  single, losses = run(sharding.make_mesh(""))
  assert losses[2] < losses[0]
  for mesh in ("data:8", "data:2,fsdp:4"):
    state, found = run(sharding.make_mesh(mesh))
    np.testing.assert_allclose(found, losses, rtol=1e-6)
    np.testing.assert_allclose(state["params"]["w"], single["params"]["w"], rtol=1e-4, atol=1e-6)
  # Moments are split like their parameters: each device holds a quarter.
  assert state["opt"][0].mu["w"].addressable_shards[0].data.shape == (64, 32)
  assert state["params"]["w"].addressable_shards[0].data.shape == (64, 32)


def python(program, *arguments, **variables):
  keep = {k: v for k, v in os.environ.items() if not k.startswith(("NORMJAX_", "XLA_FLAGS"))}
  return subprocess.Popen(
    [sys.executable, "-W", "error", "-c", program, *arguments],
    env={**keep, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **variables},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


DEVICES = """
import jax
from experiments import sharding
sharding.ensure_devices("")
sharding.ensure_devices("data:2,fsdp:3")
print(sharding.make_mesh("data:2,fsdp:3").size, jax.device_count())
sharding.ensure_devices("data:2")
sharding.ensure_devices("data:12")
try:
  sharding.make_mesh("data:12")
except ValueError as error:
  print(error)
"""


def test_the_cpu_stands_for_several_devices():
  process = python(DEVICES)
  out, errors = process.communicate(timeout=60)
  assert process.returncode == 0, errors
  assert out.splitlines()[0] == "6 6"
  assert "asks for 12 devices, found 6 (cpu)" in out.splitlines()[1]


WORKER = """
import signal
import jax, jax.numpy as jnp, numpy as np
from experiments import sharding
sharding.initialize()
sharding.ensure_devices("data:2,fsdp:4")
me = jax.process_index()
assert (jax.process_count(), jax.local_device_count(), jax.device_count()) == (2, 4, 8)
assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1}
mesh = sharding.make_mesh("data:2,fsdp:4")
rows = np.arange(16.0, dtype=np.float32).reshape(16, 1)
mine = rows[8 * me : 8 * me + 8]
batch = sharding.put_batch({"x": mine}, sharding.batch_sharding(mesh))
total = jax.jit(lambda x: (x**2).sum(), out_shardings=sharding.replicated(mesh))(batch["x"])
assert batch["x"].shape == (16, 1) and float(total) == (rows**2).sum()
try:
  sharding.make_mesh("data:4")
except ValueError as error:
  print(error)
jax.distributed.shutdown()
print("done", me)
"""


def test_two_processes_share_a_mesh_and_a_batch():
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    port = listener.getsockname()[1]
  variables = {"NORMJAX_COORDINATOR": f"localhost:{port}", "NORMJAX_NUM_PROCESSES": "2"}
  workers = [python(WORKER, **variables, NORMJAX_PROCESS_ID=str(i)) for i in range(2)]
  try:
    outputs = [worker.communicate(timeout=100) for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
  for i, (out, errors) in enumerate(outputs):
    assert f"done {i}" in out, errors
    assert "mesh 'data:4' asks for 4 devices, found 8 (cpu) in 2 process(es)" in out


@pytest.mark.parametrize(
  ("variables", "message"),
  [
    ({"NORMJAX_COORDINATOR": "localhost:1"}, "missing NORMJAX_NUM_PROCESSES, NORMJAX_PROCESS_ID"),
    (("localhost:1", "two", "0"), "must be ints with 0 <= id < number"),
    (("localhost:1", "2", "2"), "must be ints with 0 <= id < number"),
    (("localhost:1", "2", "-1"), "must be ints with 0 <= id < number"),
  ],
)
def test_wrong_environment(monkeypatch, variables, message):
  names = ("NORMJAX_COORDINATOR", "NORMJAX_NUM_PROCESSES", "NORMJAX_PROCESS_ID")
  for name in names:
    monkeypatch.delenv(name, raising=False)
  if isinstance(variables, tuple):
    variables = dict(zip(names, variables, strict=True))
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(ValueError, match=message):
    sharding.initialize()
