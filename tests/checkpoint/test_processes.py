import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import checkpoint
from tests.checkpoint.states import (
  ABSTRACT,
  RECORD,
  STATES,
  assert_same,
  environment,
  numbers,
)

SAVER = """
import sys, jax, jax.numpy as jnp
from normjax import checkpoint
record = {"model": {"class": "x"}, "config": {}}
advance = jax.jit(lambda s: jax.tree.map(lambda v: v + 1, s))
state = {"x": jnp.zeros((400, 500)), "y": jnp.zeros(3, jnp.int32)}
with checkpoint.Checkpointer(sys.argv[1], record, save_every=1, max_to_keep=2) as checkpointer:
  first = 0
  if checkpointer.latest_step is not None:
    state, first = checkpointer.restore(jax.eval_shape(lambda: state))
  for step in range(first + 1, 10**6):
    state = advance(state)
    print(step, flush=True)
    checkpointer.save(step, state)
"""


def test_sigkill_during_a_save_loses_only_that_save(tmp_path):
  workdir = tmp_path / "run"
  record = {"model": {"class": "x"}, "config": {}}
  abstract = {
    "x": jax.ShapeDtypeStruct((400, 500), jnp.float32),
    "y": jax.ShapeDtypeStruct((3,), jnp.int32),
  }
  leftovers, last = 0, 0
  for delay in (0.0, 0.013, 0.037):
    process = subprocess.Popen(
      [sys.executable, "-W", "error", "-c", SAVER, str(workdir)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      env=environment(),
      text=True,
    )
    lines = [process.stdout.readline() for _ in range(5)]
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    rest, errors = process.communicate(timeout=60)
    assert all(lines), errors
    printed = [int(line) for line in [*lines, *rest.split()]]
    # The killed process had resumed from the last complete step, whatever had been cut off.
    assert printed[0] == last + 1
    names = sorted(p.name for p in (workdir / "checkpoints").iterdir())
    leftovers += any(not name.isdigit() for name in names)
    with checkpoint.Checkpointer(workdir, record, max_to_keep=2) as checkpointer:
      last = checkpointer.latest_step
      # At most the save that was running and the one being started are lost.
      assert printed[-1] - 2 <= last <= printed[-1]
      state, _ = checkpointer.restore(abstract)
      assert (np.asarray(state["x"]) == last).all()
      assert (np.asarray(state["y"]) == last).all()
      last += checkpointer.save(last + 1, jax.tree.map(lambda v: v + 1, state), force=True)
    assert all(p.name.isdigit() for p in (workdir / "checkpoints").iterdir())
  assert leftovers, "no kill hit a save: the test has shown nothing"


def test_an_unfinished_step_is_never_the_latest(copy):
  steps = copy / "checkpoints"
  for unfinished in ("17.orbax-checkpoint-tmp", "20.orbax-checkpoint-tmp"):
    shutil.copytree(steps / "15", steps / unfinished)
    (steps / unfinished / "commit_success.txt").unlink()
  with checkpoint.Checkpointer(copy, RECORD) as checkpointer:
    assert checkpointer.latest_step == 15
    assert_same(checkpointer.restore(ABSTRACT)[0], STATES[15])
    assert checkpointer.save(20, STATES[10], force=True)
    assert_same(checkpointer.restore(ABSTRACT)[0], STATES[10])
  assert sorted(p.name for p in steps.iterdir()) == ["10", "15", "20"]


WORKER = """
import sys, jax, jax.numpy as jnp, grain, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
workdir, port, me = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=me)
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from normjax import checkpoint
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
x = np.arange(64.0, dtype=np.float32).reshape(16, 4)
state = {"x": jax.make_array_from_process_local_data(split, x[8 * me : 8 * me + 8]),
         "key": jax.jit(lambda: jax.random.key(3), out_shardings=whole)()}
data = lambda: iter(grain.MapDataset.range(1000)[me::2].to_iter_dataset())
record = {"model": {"class": "x"}, "config": {"lr": 0.1}}
position = data()
for _ in range(3 + 10 * me): next(position)
with checkpoint.Checkpointer(workdir, record, save_every=2) as checkpointer:
  assert not checkpointer.save(1, state, position)
  assert checkpointer.save(2, state, position)
  assert not checkpointer.save(2, state, position)
  assert checkpointer.save(4, jax.jit(lambda s: {**s, "x": s["x"] + 1})(state), position)
abstract = {"x": jax.ShapeDtypeStruct((16, 4), np.float32, sharding=split),
            "key": jax.ShapeDtypeStruct((), state["key"].dtype, sharding=whole)}
with checkpoint.Checkpointer(workdir, record) as checkpointer:
  again = data()
  restored, step = checkpointer.restore(abstract, again)
  assert step == 4 and next(again) == next(position), step
  for shard in restored["x"].addressable_shards:
    np.testing.assert_array_equal(shard.data, x[shard.index] + 1)
try:
  checkpoint.Checkpointer(workdir, {**record, "config": {"lr": 0.2}})
except ValueError as error:
  assert "config.lr" in str(error)
else:
  raise SystemExit("another experiment was let in")
print("done", me, flush=True)
jax.distributed.shutdown()
"""


def test_two_processes_save_and_restore_together(tmp_path):
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    port = listener.getsockname()[1]
  workdir = tmp_path / "run"
  workers = [
    subprocess.Popen(
      [sys.executable, "-W", "error", "-c", WORKER, str(workdir), str(port), str(i)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      env=environment(),
      text=True,
    )
    for i in range(2)
  ]
  try:
    outputs = [worker.communicate(timeout=100) for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
  for i, (out, errors) in enumerate(outputs):
    assert f"done {i}" in out, errors
  # One process may look at what two have saved, but not go on with their data.
  record = {"model": {"class": "x"}, "config": {"lr": 0.1}}
  abstract = jax.eval_shape(lambda: {"x": jnp.zeros((16, 4)), "key": jax.random.key(0)})
  with checkpoint.Checkpointer(workdir, record) as checkpointer:
    state, _ = checkpointer.restore(abstract, step=2)
    np.testing.assert_array_equal(state["x"], np.arange(64.0).reshape(16, 4))
    assert_same(state["key"], jax.random.key(3))
    with pytest.raises(ValueError, match="data positions of 2 processes, this run has 1"):
      checkpointer.restore(abstract, numbers())
    (workdir / "checkpoints/4/state/ocdbt.process_1/manifest.ocdbt").unlink()
    with pytest.raises(
      ValueError, match=r"step 4 .* is damaged.*process_1/manifest.ocdbt is missing"
    ):
      checkpointer.restore(abstract)
