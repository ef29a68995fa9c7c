"""A list of files with checksums inside every checkpoint, made before it is committed.

Orbax notices some damage only while it reads asynchronously, in terms of its storage engine and
with pages of stray tracebacks, and some (a changed chunk) not at all. Checking the files first
names the damaged one.
"""

import json
import zlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

_LIST = "files.json"
# Orbax writes this one after the list.
_LATER = "commit_success.txt"
_CHUNK = 1 << 22


class Damaged(ValueError):
  """A checkpoint is not what was saved."""


def checksum(value: Any) -> int:
  """Return the CRC-32 of a JSON value."""
  return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _crc(path: epath.Path) -> int:
  crc = 0
  with path.open("rb") as file:
    while chunk := file.read(_CHUNK):
      crc = zlib.crc32(chunk, crc)
  return crc


def _walk(directory: epath.Path, prefix: str = "") -> dict[str, epath.Path]:
  found = {}
  for path in directory.iterdir():
    name = prefix + path.name
    if path.is_dir():
      found |= _walk(path, name + "/")
    elif name not in (_LIST, _LATER):
      found[name] = path
  return found


class ListedPyTreeHandler(ocp.PyTreeCheckpointHandler):
  """Orbax's handler of pytrees that also lists the files which it wrote."""

  def finalize(self, directory: epath.Path) -> None:
    """Add the list; one process runs this when all have finished writing."""
    super().finalize(directory)
    files = {name: [path.stat().length, _crc(path)] for name, path in _walk(directory).items()}
    (directory / _LIST).write_text(json.dumps({"files": files, "checksum": checksum(files)}))


def _fault(path: epath.Path, size: int, crc: int) -> str:
  if not path.exists():
    return "is missing"
  if path.stat().length != size:
    return f"has {path.stat().length} bytes instead of {size}"
  return "" if _crc(path) == crc else "was changed"


def check_files(directory: epath.Path) -> None:
  """Compare every file with the list; several processes share the reading.

  Raises:
    Damaged: naming each file that is missing, of another size or changed.
  """
  path = directory / _LIST
  if not path.exists():
    raise Damaged(f"{path} is missing")
  try:
    listed = json.loads(path.read_text())
    sound = listed["checksum"] == checksum(listed["files"])
  except (ValueError, TypeError, KeyError):
    sound = False
  if not sound:
    raise Damaged(f"{path} was changed or cut off")
  names, count = sorted(listed["files"]), jax.process_count()
  faults = {
    name: fault
    for name in names[jax.process_index() :: count]
    if (fault := _fault(directory / name, *listed["files"][name]))
  }
  bad = np.array([name in faults for name in names], np.int32)
  if count > 1:  # All of them must raise, or the others would wait for those that did.
    bad = multihost_utils.process_allgather(bad).max(axis=0)
  if bad.any():
    wrong = [name for name, fault in zip(names, bad, strict=True) if fault]
    raise Damaged(
      "; ".join(f"{directory / name} {faults.get(name, 'is damaged')}" for name in wrong[:5])
      + (f"; and {len(wrong) - 5} more files" if len(wrong) > 5 else "")
    )
