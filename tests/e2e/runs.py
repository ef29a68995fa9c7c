"""What the end-to-end tests share: the tiny config, processes, curves, the bytes of a folder."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from experiments import metrics
from experiments.configs import jet_digits

ROOT = Path(__file__).resolve().parents[2]
TINY = "--config=experiments/configs/jet_digits.py:tiny"


def tiny(**changes):
  """Return the tiny digits config; `changes` are its keys with __ for dots."""
  config = jet_digits.get_config("tiny")
  config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
  return config


def start(*arguments, **variables):
  """Start `python ARGUMENTS` in the checkout with as many devices as the tests have themselves.

  Equal numbers of devices let the processes share compilations.
  """
  keep = {k: v for k, v in os.environ.items() if not k.startswith("NORMJAX_")}
  return subprocess.Popen(
    [sys.executable, *arguments],
    cwd=ROOT,
    env={
      **keep,
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": "8",
      "NORMJAX_ALLOCATOR": "default",
      **variables,
    },  # fmt: skip
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process, timeout=500):
  """Wait for a process and return its exit code, output and errors."""
  try:
    out, errors = process.communicate(timeout=timeout)
  except subprocess.TimeoutExpired:
    process.kill()
    process.communicate()
    raise
  return process.returncode, out, errors


def curve(workdir):
  """Return the lines of a run's curve without the clock."""
  return [{k: v for k, v in line.items() if k != "seconds"} for line in metrics.read(str(workdir))]


def losses(workdir):
  """Return the training losses (steps,) of a run."""
  return np.array([line["loss"] for line in curve(workdir) if "loss" in line])


def contents(directory):
  """Return the bytes of every file under a folder, by path."""
  return {p: p.read_bytes() for p in sorted(Path(directory).rglob("*")) if p.is_file()}


def assert_same_bits(a, b):
  """Assert that two trees of arrays agree in structure, dtypes and every bit."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    assert x.dtype == y.dtype
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
