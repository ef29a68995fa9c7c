"""The memory benchmark runs as a command and prints what it writes."""

import json
import subprocess
import sys

import pytest

TINY = ("--depths=6", "--width=4", "--batch=8", "--rounds=1")


def _run(*arguments):
  command = [sys.executable, "-m", "experiments.bench_memory", *arguments]
  return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_prints_the_table_it_writes(tmp_path):
  out = tmp_path / "memory.json"
  done = _run(*TINY, f"--out={out}")
  assert done.returncode == 0, done.stderr
  rows = json.loads(out.read_text())
  assert [(row["depth"], row["memory"]) for row in rows] == [
    (6, memory) for memory in ("store", "remat", "reversible")
  ]
  assert all(row["milliseconds"] > 0 for row in rows)
  sizes = [row["temporaries_mb"] for row in rows]
  assert sizes[0] > sizes[1] > sizes[2] > 0
  header, rule, *lines = done.stdout.strip().splitlines()
  assert header == "| depth | memory | temporaries (MB) | ms per step |"
  assert set(rule) == set("|-:")
  printed = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
  assert printed == [
    [
      str(row["depth"]),
      row["memory"],
      f"{row['temporaries_mb']:.1f}",
      f"{row['milliseconds']:.1f}",
    ]
    for row in rows
  ]


def test_wrong_flags_are_refused():
  for flag, message in (("--depths=4,x", "--depths must be"), ("--width=6", "--width must be")):
    done = _run(*TINY, flag)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
