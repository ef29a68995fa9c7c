"""The benchmark: a wrong answer is called wrong, a missing peer is skipped, ratios are ratios."""

import dataclasses
import re

import numpy as np
import pytest

from experiments import bench, benchmarks
from experiments.benchmarks import _convolutions
from experiments.benchmarks._work import affine_inputs

SMALL = {
  "layer_norm": (6, 64),
  "rms_norm": (2, 3, 64),
  "online_norm": (3, 2, 4, 8),
  "power_norm": (4, 3, 16),
  "image": (2, 4, 4, 64),
}


def shrunk(name):
  """Return a work on a small input."""
  work = benchmarks.WORKS[name]
  layer = name.split()[0]
  if layer in ("online_norm", "power_norm"):
    return dataclasses.replace(work, inputs=lambda: affine_inputs(SMALL[layer]))
  if layer == "causal_conv_inverse":
    return dataclasses.replace(work, inputs=lambda: _convolutions._inputs((2, 4, 5, 3)))
  mean = 3000.0 if "mean" in name else 0.0
  shape = SMALL.get(layer, SMALL["image"])
  return dataclasses.replace(work, inputs=lambda: affine_inputs(shape, mean))


@pytest.mark.parametrize(
  "name", [n for n in benchmarks.WORKS if not re.search("65536|8x512|inverse (1|64)x|x48", n)]
)
def test_every_answer_of_ours_is_right(name):
  lines = {line["peer"]: line for line in bench.measure(name, shrunk(name), rounds=1)}
  assert lines["normjax"]["right"], lines["normjax"]
  assert 0 < lines["normjax"]["min_ms"] <= lines["normjax"]["median_ms"]
  assert benchmarks.WORKS[name].base != "flax" or lines["flax"]["right"] or "mean 3000" in name


def test_a_wrong_answer_is_called_wrong_and_a_missing_peer_is_skipped():
  work = shrunk("layer_norm 4096x1024 forward")
  right = work.peers["normjax"]
  off = dataclasses.replace(right, read=lambda out: [1.001 * v for v in right.read(out)])

  def missing(inputs):
    raise ImportError("No module named 'other'")

  peers = {"normjax": off, "flax": right, "torch": dataclasses.replace(right, make=missing)}
  lines = bench.measure("layer_norm 4096x1024 forward", dataclasses.replace(work, peers=peers), 2)
  assert [line.get("right") for line in lines] == [False, True, None]
  assert lines[2]["skipped"] == "ImportError: No module named 'other'"
  text = bench.table([{**line, "allocator": "default", "load": 0.5} for line in lines], 2)
  assert "1e-03 WRONG" in text
  assert "Skipped: torch: ImportError: No module named 'other'." in text
  ratio = lines[0]["min_ms"] / lines[1]["min_ms"]
  assert f"| {ratio:.2f} flax | 1.1 {'met' if ratio <= 1.1 else 'missed'} |" in text


def test_an_error_is_relative_to_the_largest_entry():
  assert bench._error(np.array([1.0, 100.5]), np.array([1.0, 100.0])) == pytest.approx(5e-3)


def test_no_work_of_that_name():
  with pytest.raises(ValueError, match="only must be parts of layer_norm 4096x1024, "):
    bench.bench(["softmax"], "nowhere", 1)
