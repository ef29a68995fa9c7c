"""Devices, meshes and where each array lives: everything between `--mesh` and `jax.jit`.

Order in a script: `initialize` (with `--distributed`), `ensure_devices`, `make_mesh`; only then any
other JAX call. A mesh always has both axes, so that one program serves every layout: the batch is
split over `data` and `fsdp`, parameters are replicated over `data` and split over `fsdp`.
"""

import difflib
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

AXES = ("data", "fsdp")
# Below this many entries gathering a parameter costs more than keeping it everywhere.
_SMALL = 4096
_VARIABLES = ("NORMJAX_COORDINATOR", "NORMJAX_NUM_PROCESSES", "NORMJAX_PROCESS_ID")


def initialize() -> None:
  """Join the processes of a run; call it before any other use of JAX.

  On TPU pods and under Slurm or Open MPI the cluster says who is who. Elsewhere (several processes
  on one machine, CPU clusters) set NORMJAX_COORDINATOR=host:port, NORMJAX_NUM_PROCESSES and
  NORMJAX_PROCESS_ID (0 on the coordinator's host) in the environment of each process.

  Raises:
    ValueError: if only some of the variables are set, or they are no numbers.
  """
  # Read only when several CPU processes meet; there it is the one implementation without MPI.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  values = _environment()
  if values is None:
    jax.distributed.initialize()
  else:
    coordinator, num_processes, process_id = values
    jax.distributed.initialize(coordinator, num_processes=num_processes, process_id=process_id)


def _environment() -> tuple[str, int, int] | None:
  found = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
  if not found:
    return None
  if missing := [name for name in _VARIABLES if name not in found]:
    raise ValueError(f"set all of {', '.join(_VARIABLES)} or none: missing {', '.join(missing)}")
  coordinator, *numbers = (found[name] for name in _VARIABLES)
  if not all(number.isdigit() for number in numbers) or int(numbers[1]) >= int(numbers[0]):
    raise ValueError(
      f"{_VARIABLES[1]} and {_VARIABLES[2]} must be ints with 0 <= id < number, got {numbers}"
    )
  return coordinator, int(numbers[0]), int(numbers[1])


def parse_mesh(mesh: str) -> dict[str, int]:
  """Return the axis sizes that a `--mesh` string asks for: "data:2,fsdp:4" -> {"data": 2, ...}.

  Raises:
    ValueError: unless it is a comma-separated list of `axis:size`, each axis at most once.
  """
  sizes = {}
  for part in mesh.split(",") if mesh else ():
    axis, _, size = part.partition(":")
    if axis not in AXES:
      near = difflib.get_close_matches(axis, AXES, n=1)
      hint = f"; did you mean {near[0]}?" if near else ""
      raise ValueError(f"mesh axes are {', '.join(AXES)}, got {axis!r} in {mesh!r}{hint}")
    if not size.isdecimal() or int(size) < 1 or axis in sizes:
      raise ValueError(f'mesh must look like "data:8" or "data:2,fsdp:4", got {mesh!r}')
    sizes[axis] = int(size)
  return sizes


def ensure_devices(mesh: str) -> None:
  """Let the CPU stand for as many devices as a mesh asks for; other platforms are not touched.

  Does nothing where it can't (JAX is already running) or need not (XLA_FLAGS or
  jax_num_cpu_devices already say how many); `make_mesh` then checks what there is.
  """
  here = -(-math.prod(parse_mesh(mesh).values()) // (_environment() or (None, 1, 0))[1])
  if "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
    return
  if here > max(1, jax.config.jax_num_cpu_devices):
    try:
      jax.config.update("jax_num_cpu_devices", here)
    except RuntimeError:  # The backend has started.
      return


def make_mesh(mesh: str = "") -> Mesh:
  """Return the mesh of a `--mesh` string, with axes `data` and `fsdp` that the compiler partitions.

  The empty string means one device, or, in a run of several processes, all devices on `data`.

  Raises:
    ValueError: if the string is wrong, asks for more devices than there are, or, in a run of
      several processes, for fewer.
  """
  sizes, devices = parse_mesh(mesh), jax.devices()
  if not sizes and jax.process_count() > 1:
    sizes = {"data": len(devices)}
  shape = tuple(sizes.get(axis, 1) for axis in AXES)
  count = math.prod(shape)
  if count > len(devices) or (jax.process_count() > 1 and count != len(devices)):
    raise ValueError(
      f"mesh {mesh!r} asks for {count} devices, found {len(devices)} ({devices[0].platform}) in "
      f"{jax.process_count()} process(es)"
    )
  kinds = (AxisType.Auto,) * len(AXES)
  return jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices[:count])


def replicated(mesh: Mesh) -> NamedSharding:
  """Return the sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Return the sharding of a batch: its leading axis over all devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def put_batch(batch: PyTree, sharding: NamedSharding) -> PyTree:
  """Make global arrays of the rows (b / processes, ...) that this process has read.

  Raises:
    ValueError: if the devices can't share the rows evenly.
  """
  devices = sharding.mesh.devices.size
  for path, rows in jax.tree_util.tree_leaves_with_path(batch):
    size = rows.shape[0] * jax.process_count()
    if size % devices:
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      raise ValueError(
        f"batch {name} has {size} rows, which {devices} devices can't share evenly: make the batch "
        f"size a multiple of {devices}"
      )
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def _leaf_spec(leaf: Any, size: int) -> PartitionSpec:
  """Split the longest axis that `size` divides; axis 0 last, where layers are stacked."""
  if not jnp.issubdtype(leaf.dtype, jnp.inexact) or math.prod(leaf.shape) < _SMALL:
    return PartitionSpec()
  axes = [axis for axis, length in enumerate(leaf.shape) if length % size == 0]
  if size == 1 or not axes:
    return PartitionSpec()
  chosen = max(axes, key=lambda axis: (axis > 0, leaf.shape[axis]))
  return PartitionSpec(*(None,) * chosen, "fsdp")


def state_shardings(abstract_state: PyTree, mesh: Mesh) -> PyTree:
  """Return a sharding for every leaf of the training state, by its shape alone.

  Large float arrays are split over `fsdp` along their longest divisible axis, preferring any to
  axis 0 (along which scanned layers are stacked); all else is replicated. A parameter, its moments
  and its running mean have one shape and so one sharding.

  Args:
    abstract_state: pytree of arrays or `jax.ShapeDtypeStruct`.
    mesh: from `make_mesh`.
  """
  size = mesh.shape["fsdp"]
  return jax.tree.map(lambda x: NamedSharding(mesh, _leaf_spec(x, size)), abstract_state)


def with_shardings(abstract_state: PyTree, shardings: PyTree) -> PyTree:
  """Return the abstract state that `Checkpointer.restore` wants: shapes, dtypes and shardings."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract_state, shardings
  )
