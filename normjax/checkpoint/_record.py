"""`record.json`: which model, config and versions a workdir belongs to."""

import difflib
import importlib.metadata
import json
import os
import platform
from typing import Any

import jax
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

import normjax

_NAME = "record.json"
_FORMAT = "normjax.checkpoint"
_PACKAGES = ("jax", "flax", "orbax-checkpoint", "optax", "numpy")
_KEYS = ("model", "config")


def versions() -> dict[str, str]:
  """Return the versions of everything that decides whether a run can be repeated.

  Returns:
    A version for normjax, Python and each package underneath.

  Example:
    >>> from normjax import checkpoint
    >>> {"normjax", "python", "jax", "flax"} <= set(checkpoint.versions())
    True
  """
  found = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {"normjax": normjax.__version__, "python": platform.python_version(), **found}


def _flat(tree: Any, prefix: str = "") -> dict[str, str]:
  """Flatten nested dicts to {"a.b": JSON text}: text, so that NaN equals itself."""
  if not isinstance(tree, dict) or not tree:
    return {prefix: json.dumps(tree, sort_keys=True)}
  flat = {}
  for key, value in tree.items():
    flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
  return flat


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
  flat_old, flat_new = _flat(old), _flat(new)
  return [
    f"{key}: {flat_old.get(key, '(absent)')} in the directory, {flat_new.get(key, '(absent)')} now"
    for key in sorted(flat_old.keys() | flat_new.keys())
    if flat_old.get(key) != flat_new.get(key)
  ]


def read_record(directory: epath.Path) -> dict[str, Any]:
  """Return the record of a workdir.

  Raises:
    ValueError: if there is none, or if it is not one of ours.
  """
  if not directory.is_dir():
    raise ValueError(f"no such directory: {directory}")
  path = directory / _NAME
  if not path.exists():
    near = difflib.get_close_matches(_NAME, [p.name for p in directory.iterdir()], n=1)
    raise ValueError(
      f"{directory} is not a workdir of normjax: it has no {_NAME}"
      + (f" (but {near[0]})" if near else "")
    )
  try:
    record = json.loads(path.read_text())
  except (ValueError, OSError) as error:
    raise ValueError(f"{path} is unreadable ({error}); nothing was changed") from error
  if (
    not isinstance(record, dict) or record.get("format") != _FORMAT or not set(_KEYS) <= set(record)
  ):
    raise ValueError(f"{path} was not written by normjax.checkpoint; nothing was changed")
  return record


def open_record(directory: epath.Path, record: dict[str, Any]) -> None:
  """Claim a workdir for a record, or check that it already belongs to it.

  Raises:
    ValueError: if the record is not JSON, or the directory belongs to something else.
  """
  if not isinstance(record, dict) or set(record) != set(_KEYS):
    raise ValueError(f"record must be a dict with the keys {_KEYS}, got {record!r}")
  full = {"format": _FORMAT, "versions": versions(), **record}
  try:
    text = json.dumps(full, indent=2, sort_keys=True)
  except (TypeError, ValueError) as error:
    raise ValueError(f"record must be JSON: {error}") from error
  # Every process looks for itself before process 0 writes, so that all of them raise alike.
  names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
  if directory.exists() and not directory.is_dir():
    raise ValueError(f"directory must be a directory, {directory} is a file")
  if _NAME in names:
    _check(directory, json.loads(text))
  elif foreign := sorted(n for n in names if not n.startswith(".") and not n.endswith(".log")):
    kept = "checkpoints but" if "checkpoints" in names else "other files and"
    raise ValueError(
      f"{directory} holds {kept} no {_NAME} ({', '.join(foreign[:5])}): it is not a workdir of "
      "this experiment; use an empty directory. Nothing was changed"
    )
  elif jax.process_index() == 0:
    directory.mkdir(parents=True, exist_ok=True)
    # Written aside and renamed: a process killed here leaves no half record.
    scratch = directory / f".{_NAME}.{os.getpid()}"
    scratch.write_text(text)
    scratch.replace(directory / _NAME)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"normjax.checkpoint record {directory}")


def _check(directory: epath.Path, new: dict[str, Any]) -> None:
  old = read_record(directory)
  different = [line for key in _KEYS for line in _differences({key: old[key]}, {key: new[key]})]
  if different:
    raise ValueError(
      f"{directory} holds another experiment; use another directory or its settings:\n  "
      + "\n  ".join(different)
      + "\nNothing was changed"
    )
  for line in _differences(old.get("versions", {}), new["versions"]):
    logging.warning("%s was written by other versions: %s", directory, line)
