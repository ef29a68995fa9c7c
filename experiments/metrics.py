"""The curve of a run: JSON lines in the workdir (the truth), and progress for whoever watches."""

import json
import os
import time
from pathlib import Path

import jax
from absl import logging
from rich import progress as rich_progress

try:
  from tensorboardX import SummaryWriter
except ImportError:  # Optional: the mirror is for convenience.
  SummaryWriter = None

_FILE = "metrics.jsonl"


class MetricWriter:
  """Appends numbers to `metrics.jsonl`, one line {"step": s, name: value, ...} for each call.

  Lines beyond the step that a run resumes from belong to steps that will be taken again; they are
  moved to `metrics.superseded.jsonl`, so that the curve has one value for each step and nothing is
  lost. Only process 0 writes.

  Args:
    workdir: the run's folder.
    start: the step that the run starts or resumes from.
  """

  def __init__(self, workdir: str, start: int = 0):
    self._file = self._mirror = None
    if jax.process_index():
      return
    path = Path(workdir) / _FILE
    _supersede(path, start)
    self._file = path.open("a")
    if SummaryWriter is not None:
      self._mirror = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=start + 1)

  def write(self, step: int, values: dict[str, float]) -> None:
    """Write a line; it outlives the process when this returns."""
    if self._file is None:
      return
    values = {name: float(value) for name, value in values.items()}
    self._file.write(json.dumps({"step": int(step), **values}) + "\n")
    self._file.flush()
    if self._mirror is not None:
      for name, value in values.items():
        self._mirror.add_scalar(name, value, step)

  def close(self) -> None:
    """Close the files."""
    for file in (self._file, self._mirror):
      if file is not None:
        file.close()


def read(workdir: str) -> list[dict[str, float]]:
  """Return the lines of a run's curve; a last line cut off by a kill is left out.

  Raises:
    ValueError: if the workdir has no curve, or a line in its middle is no JSON.
  """
  path = Path(workdir) / _FILE
  if not path.is_file():
    raise ValueError(f"{workdir} has no {_FILE}: nothing was trained there")
  return [json.loads(line) for line in _whole_lines(path)]


def _whole_lines(path: Path) -> list[str]:
  lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
  for number, line in enumerate(lines, 1):
    try:
      json.loads(line)
    except json.JSONDecodeError as error:
      raise ValueError(f"{path} line {number} is no JSON: {error}") from error
  return lines


def _supersede(path: Path, start: int) -> None:
  """Move lines beyond `start`, and one that a kill cut off, to `metrics.superseded.jsonl`."""
  if not path.is_file():
    return
  lines = _whole_lines(path)
  kept = [line for line in lines if json.loads(line)["step"] <= start]
  beyond = [line for line in lines if json.loads(line)["step"] > start]
  if cut := path.read_text()[sum(map(len, lines)) :]:
    beyond.append(f"{cut}\n")
  if not beyond:
    return
  with path.with_name("metrics.superseded.jsonl").open("a") as file:
    file.writelines(beyond)
  scratch = path.with_name(f".{_FILE}.{os.getpid()}")
  scratch.write_text("".join(kept))
  scratch.replace(path)


class Progress:
  """Shows step, rate, time to go and the newest numbers: a bar on a terminal, else log lines.

  Args:
    total: steps of the whole run.
    start: steps already done.
    every: seconds between log lines where there is no terminal.
  """

  def __init__(self, total: int, start: int = 0, every: float = 10.0):
    self._total, self._start, self._every = total, start, every
    self._begin = self._logged = time.monotonic()
    self._values = {}
    self._bar = rich_progress.Progress(
      rich_progress.TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
      rich_progress.BarColumn(),
      rich_progress.TextColumn("{task.fields[rate]}"),
      rich_progress.TimeRemainingColumn(),
      rich_progress.TextColumn("{task.fields[numbers]}"),
    )
    self._visible = self._bar.console.is_terminal and not jax.process_index()
    if self._visible:
      self._task = self._bar.add_task("", total=total, completed=start, rate="", numbers="")
      self._bar.start()

  def update(self, step: int, values: dict[str, float]) -> None:
    """Show that `step` is done, with its numbers."""
    now = time.monotonic()
    self._values |= values
    rate = (step - self._start) / max(now - self._begin, 1e-9)
    names = [n for n in self._values if n == "loss" or n.startswith("test_")]
    numbers = "  ".join(f"{name} {self._values[name]:.4f}" for name in names)
    if self._visible:
      self._bar.update(self._task, completed=step, rate=f"{rate:.1f} steps/s", numbers=numbers)
    elif not jax.process_index() and (now - self._logged >= self._every or step == self._total):
      self._logged = now
      left = (self._total - step) / max(rate, 1e-9)
      logging.info(
        "step %d/%d  %.1f steps/s  %.0f s to go  %s", step, self._total, rate, left, numbers
      )

  def close(self) -> None:
    """End the bar."""
    if self._visible:
      self._bar.stop()
