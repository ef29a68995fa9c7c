"""Workdirs: open a finished one, hold one while training, and write results into one."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments import tasks
from normjax import checkpoint


def open_workdir(workdir: str, step: int | None = None):
  """Return `(task, model)` of a workdir of `experiments.train` at a step, the newest if None.

  The model is in evaluation mode.

  Raises:
    ValueError: if the workdir or its checkpoint is missing or damaged.
  """
  model = checkpoint.load(workdir, step)
  model.eval()
  return tasks.make(read_config(workdir)), model


def open_density(workdir: str):
  """Return the same of a workdir that holds a density of images.

  Raises:
    ValueError: as `open_workdir`, or if the workdir's task is another one.
  """
  task, model = open_workdir(workdir)
  if task.config.task != "density":
    raise ValueError(f"{workdir} must hold a density, got the task {task.config.task}")
  return task, model


def read_config(workdir: str) -> ConfigDict:
  """Return the config that a workdir was trained with."""
  record = Path(workdir).expanduser() / "record.json"
  return ConfigDict(json.loads(record.read_text())["config"])


@contextlib.contextmanager
def alone(workdir: str) -> Iterator[None]:
  """Hold a workdir, made if there is none, against other processes of this machine.

  The lock is on the folder itself and goes with the process, however that ends.

  Raises:
    ValueError: if another process trains there: it would take this one's checkpoints and curve for
      leftovers.
  """
  Path(workdir).mkdir(parents=True, exist_ok=True)
  folder = os.open(workdir, os.O_RDONLY)
  try:
    try:
      fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ValueError(
        f"another process is training in {workdir}: wait for it, or use another workdir"
      ) from error
    except OSError:
      pass  # A file system without locks, of some networks, is trained on without one.
    yield
  finally:
    os.close(folder)


def write_json(path: Path, value: Any) -> None:
  """Write a file that is there whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  scratch = path.with_name(f".{path.name}.{os.getpid()}")
  scratch.write_text(json.dumps(value, indent=2))
  scratch.replace(path)


def check_free(out: str, file: str = "results.json") -> None:
  """Make a folder for results, before they are computed.

  Raises:
    ValueError: if it holds some already, which would be lost.
  """
  if (Path(out) / file).exists():
    raise ValueError(f"--out={out} holds {file} already: use another folder, or move it away")
  Path(out).mkdir(parents=True, exist_ok=True)


def write_results(out: str, results: Any, table: str) -> None:
  """Write `results.json` and `table.md` into a folder, and print the table."""
  write_json(Path(out) / "results.json", results)
  (Path(out) / "table.md").write_text(table)
  print(table, end="")
