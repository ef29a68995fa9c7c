import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import logging
from rich.console import Console
from rich.progress import Progress as Bar

from experiments import metrics
from experiments.metrics import MetricWriter, Progress

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch):
  monkeypatch.setattr(metrics, "SummaryWriter", None)


def write(workdir, steps, start=0, scale=1.0):
  writer = MetricWriter(str(workdir), start)
  for step in steps:
    writer.write(step, {"loss": step * scale})
  writer.close()


def points(workdir):
  return [(line["step"], line["loss"]) for line in metrics.read(str(workdir))]


def superseded(workdir):
  return (workdir / "metrics.superseded.jsonl").read_text().splitlines()


def test_lines_are_json_and_come_back(tmp_path):
  writer = MetricWriter(str(tmp_path))
  writer.write(np.int64(1), {"loss": np.float32(0.5), "rate": 2})
  # Readable before it is closed: a curve can be looked at while a run goes on.
  assert metrics.read(str(tmp_path)) == [{"step": 1, "loss": 0.5, "rate": 2.0}]
  writer.write(2, {"loss": 0.25})
  writer.close()
  text = (tmp_path / "metrics.jsonl").read_text()
  assert [json.loads(line) for line in text.splitlines()] == metrics.read(str(tmp_path))
  assert text.endswith("\n")


def test_numbers_that_are_not_finite_come_back(tmp_path):
  writer = MetricWriter(str(tmp_path))
  writer.write(1, {"a": math.inf, "b": math.nan})
  writer.close()
  (line,) = metrics.read(str(tmp_path))
  assert line["a"] == math.inf
  assert math.isnan(line["b"])


def test_a_resumed_curve_has_one_value_for_each_step(tmp_path):
  write(tmp_path, range(1, 8))
  write(tmp_path, range(5, 10), start=4, scale=10.0)
  assert points(tmp_path) == [(s, float(s)) for s in range(1, 5)] + [
    (s, s * 10.0) for s in range(5, 10)
  ]
  # The old values of steps taken again are kept elsewhere.
  old = [json.loads(line) for line in superseded(tmp_path)]
  assert old == [{"step": s, "loss": float(s)} for s in (5, 6, 7)]
  write(tmp_path, [9], start=8, scale=7.0)
  assert points(tmp_path)[-2:] == [(8, 80.0), (9, 63.0)]
  assert json.loads(superseded(tmp_path)[-1]) == {"step": 9, "loss": 90.0}
  assert len(superseded(tmp_path)) == 4


def test_a_resumed_curve_that_lost_nothing(tmp_path):
  write(tmp_path, range(1, 5))
  write(tmp_path, range(5, 7), start=4)
  assert points(tmp_path) == [(s, float(s)) for s in range(1, 7)]
  assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_a_line_cut_off_by_a_kill(tmp_path):
  write(tmp_path, range(1, 4))
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 4, "lo')
  assert points(tmp_path) == [(1, 1.0), (2, 2.0), (3, 3.0)]
  write(tmp_path, [3, 4], start=2, scale=10.0)
  assert points(tmp_path) == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]
  assert superseded(tmp_path) == ['{"step": 3, "loss": 3.0}', '{"step": 4, "lo']


def test_a_killed_process_loses_no_line(tmp_path):
  code = (
    "import os, signal\n"
    "from experiments.metrics import MetricWriter\n"
    f"writer = MetricWriter({str(tmp_path)!r})\n"
    "writer.write(1, {'loss': 0.5})\n"
    "os.kill(os.getpid(), signal.SIGKILL)\n"
  )
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=False)
  assert done.returncode == -9
  assert points(tmp_path) == [(1, 0.5)]


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (None, "has no metrics.jsonl: nothing was trained there"),
    ('{"step": 1}\n{"step"\n{"step": 3}\n', "metrics.jsonl line 2 is no JSON"),
  ],
)
def test_curves_that_can_not_be_read(tmp_path, content, message):
  if content:
    (tmp_path / "metrics.jsonl").write_text(content)
  with pytest.raises(ValueError, match=message):
    metrics.read(str(tmp_path))


def test_resuming_leaves_a_damaged_curve_alone(tmp_path):
  content = '{"step": 1}\n{"step"\n{"step": 3}\n'
  (tmp_path / "metrics.jsonl").write_text(content)
  with pytest.raises(ValueError, match="line 2 is no JSON"):
    MetricWriter(str(tmp_path), 1)
  assert [path.read_text() for path in tmp_path.iterdir()] == [content]


def test_only_the_first_process_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  write(tmp_path, range(1, 4))
  assert not list(tmp_path.iterdir())


def test_the_mirror_gets_every_number(tmp_path, monkeypatch):
  calls = []

  class Mirror:
    def __init__(self, folder, purge_step):
      calls.append((folder, purge_step))

    def add_scalar(self, *arguments):
      calls.append(arguments)

    def close(self):
      calls.append("closed")

  monkeypatch.setattr(metrics, "SummaryWriter", Mirror)
  writer = MetricWriter(str(tmp_path), 4)
  writer.write(5, {"loss": 0.5, "rate": 2.0})
  writer.close()
  assert calls == [(f"{tmp_path}/tensorboard", 5), ("loss", 0.5, 5), ("rate", 2.0, 5), "closed"]


def test_tensorboard_files_appear(tmp_path, monkeypatch):
  tensorboard = pytest.importorskip("tensorboardX")
  monkeypatch.setattr(metrics, "SummaryWriter", tensorboard.SummaryWriter)
  write(tmp_path, [1])
  (events,) = (tmp_path / "tensorboard").iterdir()
  assert events.stat().st_size > 0


class Clock:
  def __init__(self, monkeypatch):
    self.now = 100.0
    monkeypatch.setattr(metrics.time, "monotonic", lambda: self.now)


def test_log_lines_come_at_intervals_and_at_the_end(monkeypatch):
  clock, lines = Clock(monkeypatch), []
  monkeypatch.setattr(logging, "info", lambda text, *values: lines.append(text % values))
  progress = Progress(total=100, start=20, every=10.0)
  for step in range(21, 101):
    clock.now += 0.5
    progress.update(step, {"loss": step / 100, "hidden": 1.0})
  progress.close()
  # 80 steps take 40 s: a line every 20 of them, the last of which is the end.
  assert lines == [
    "step 40/100  2.0 steps/s  30 s to go  loss 0.4000",
    "step 60/100  2.0 steps/s  20 s to go  loss 0.6000",
    "step 80/100  2.0 steps/s  10 s to go  loss 0.8000",
    "step 100/100  2.0 steps/s  0 s to go  loss 1.0000",
  ]


def test_log_lines_keep_held_out_numbers(monkeypatch):
  clock, lines = Clock(monkeypatch), []
  monkeypatch.setattr(logging, "info", lambda text, *values: lines.append(text % values))
  progress = Progress(total=2, every=0.0)
  clock.now += 1
  progress.update(1, {"test_bits_per_dim": 2.5})
  clock.now += 1
  progress.update(2, {"loss": 2.0})
  assert lines[1].endswith("test_bits_per_dim 2.5000  loss 2.0000")


def test_nothing_was_done_yet(monkeypatch):
  lines = []
  monkeypatch.setattr(logging, "info", lambda text, *values: lines.append(text % values))
  Progress(total=10, start=10).update(10, {})
  assert lines == ["step 10/10  0.0 steps/s  0 s to go  "]


def test_a_terminal_gets_a_bar(monkeypatch):
  text = io.StringIO()
  console = Console(file=text, force_terminal=True, width=120)
  make = metrics.rich_progress.Progress
  monkeypatch.setattr(metrics.rich_progress, "Progress", lambda *c: make(*c, console=console))
  monkeypatch.setattr(logging, "info", lambda *_: pytest.fail("a terminal gets no log lines"))
  progress = Progress(total=50, start=10, every=0.0)
  assert isinstance(progress._bar, Bar)
  progress.update(50, {"loss": 0.125})
  progress.close()
  shown = text.getvalue()
  assert "step 50/50" in shown
  assert "steps/s" in shown
  assert "loss 0.1250" in shown


def test_other_processes_are_silent(monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  monkeypatch.setattr(logging, "info", lambda *_: pytest.fail("process 1 logs"))
  progress = Progress(total=2, every=0.0)
  progress.update(2, {"loss": 1.0})
  progress.close()
