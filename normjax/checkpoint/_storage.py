"""Reading steps back, and saying exactly what is wrong when that fails.

Nothing here writes. A step is never replaced by an older one without asking: the error names the
steps that do read back, and the choice is the user's.
"""

import logging
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from normjax.checkpoint import _manifest
from normjax.checkpoint._files import Damaged, check_files, checksum

ROOT, STATE, MANIFEST = "checkpoints", "state", "manifest"
_ORBAX = str(epath.Path(ocp.__file__).parent)


class TreeMismatch(ValueError):
  """The checkpoint is sound but of another tree than the program's."""


def quiet_orbax() -> None:
  """Drop what Orbax logs below WARNING: dozens of lines a save would bury a script's own."""
  logging.getLogger("absl").addFilter(_is_worth_reading)


def _is_worth_reading(entry: logging.LogRecord) -> bool:
  return entry.levelno >= logging.WARNING or not entry.pathname.startswith(_ORBAX)


def steps(root: epath.Path) -> list[int]:
  """Return every committed step in ascending order; leftovers of killed saves are none."""
  return sorted(found.step for found in ocp.path.step.standard_name_format().find_all(root))


def choose_step(root: epath.Path, step: int | None) -> int:
  """Return `step`, or the newest if it is None.

  Raises:
    ValueError: if there is no such checkpoint.
  """
  found = steps(root)
  if not found:
    raise ValueError(f"no checkpoint in {root} yet")
  if step is None:
    return found[-1]
  if step not in found:
    raise ValueError(f"no checkpoint of step {step} in {root}; there are steps {found}")
  return step


def read_manifest(root: epath.Path, step: int) -> dict[str, Any]:
  """Return the manifest of a step.

  Raises:
    Damaged: if it is missing or does not fit its own checksum.
  """
  folder = root / str(step) / MANIFEST
  try:
    manifest = dict(ocp.JsonCheckpointHandler().restore(folder))
    body = {key: value for key, value in manifest.items() if key != "checksum"}
    sound = manifest["checksum"] == checksum(body)
  except FileNotFoundError as error:
    raise Damaged(f"the file in {folder} is missing") from error
  except (ValueError, TypeError, KeyError):
    sound = False
  if not sound:
    raise Damaged(f"the file in {folder} was changed or cut off")
  return manifest


def _placed(abstract: PyTree) -> PyTree:
  """Return the abstract tree with a sharding on every leaf, each of which fits its shape."""
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

  def place(x):
    sharding = getattr(x, "sharding", None) or here
    sharding.shard_shape(x.shape)  # Raises; while reading it would do so in another thread.
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  return jax.tree.map(place, abstract)


def _read(
  root: epath.Path, step: int, choose: Callable[[Any], PyTree], partial: bool
) -> tuple[PyTree, dict[str, Any]]:
  manifest = read_manifest(root, step)
  abstract, saved = choose(manifest["leaves"]), manifest["leaves"]
  if partial:
    saved = {name: leaf for name, leaf in saved.items() if name.split("/")[0] in abstract}
  if different := _manifest.differences(saved, _manifest.describe(abstract)):
    raise TreeMismatch("\n  ".join(different))
  abstract = _placed(abstract)
  check_files(root / str(step) / STATE)
  args = ocp.args.PyTreeRestore(
    item=abstract,
    restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
    partial_restore=True,
  )
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    state = reader.restore(root / str(step) / STATE, args=args)
  read = _manifest.fingerprinted(state)
  if wrong := [name for name in read if read[name] != saved[name]]:
    raise Damaged("these leaves differ from what was saved: " + ", ".join(wrong))
  return state, manifest


def read(
  root: epath.Path, step: int, choose: Callable[[Any], PyTree], *, partial: bool = False
) -> tuple[PyTree, dict[str, Any]]:
  """Return `(state, manifest)` of a step, every leaf verified.

  Args:
    root: the folder of the steps.
    step: one that exists.
    choose: given the manifest's leaves, returns the tree to read: `jax.ShapeDtypeStruct` with
      shardings (one device where they have none).
    partial: whether the tree may lack top-level entries of the checkpoint.

  Raises:
    ValueError: if the tree is another one, or anything is missing, unreadable or changed.
  """
  try:
    return _read(root, step, choose, partial)
  except TreeMismatch as error:
    raise ValueError(
      f"the checkpoint of step {step} in {root} is of another model or optimizer:\n  {error}\n"
      "Nothing was changed or deleted"
    ) from error
  except Exception as error:  # Orbax and tensorstore raise nearly everything.
    what = "is damaged" if isinstance(error, Damaged) else f"can't be read ({type(error).__name__})"
    raise ValueError(
      f"the checkpoint of step {step} in {root} {what}: {' '.join(str(error).split())[:600]}\n"
      f"{_intact(root, step, choose, partial)}. Nothing was changed or deleted"
    ) from error


def _intact(root: epath.Path, bad: int, choose: Callable[[Any], PyTree], partial: bool) -> str:
  """Say which other steps read back; only errors pay for this."""
  others = [step for step in steps(root) if step != bad]
  if jax.process_count() > 1:
    # The processes need not have failed alike, and reading is a collective operation.
    return f"Other steps, not verified: {others}"
  good = []
  for step in others:
    try:
      _read(root, step, choose, partial)
    except Exception:  # It is no better.
      continue
    good.append(step)
  if not good:
    return f"No other step reads back (of {others})"
  return f"Intact steps: {good}; ask for one by its number, or move {root / str(bad)} away"
