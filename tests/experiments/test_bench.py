"""The benchmark: a wrong answer is called wrong, a missing peer is skipped, ratios are ratios."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from experiments import bench, benchmarks
from experiments.benchmarks import _convolutions, _flows, _image_flows
from experiments.benchmarks._flow_jobs import jax_peer
from experiments.benchmarks._work import affine_inputs
from normjax import flows

SMALL = {
  "layer_norm": (6, 64),
  "rms_norm": (2, 3, 64),
  "online_norm": (3, 2, 4, 8),
  "power_norm": (4, 3, 16),
  "image": (2, 4, 4, 64),
}


# Other shapes, jobs and depths of works that are here; flows of images have a test below.
SLOW = "65536|8x512|inverse (1|64)x|x48|compile|rqs_coupling sample|maf train|jet|glow"


def shrunk(name):
  """Return a work on a small input."""
  work = benchmarks.WORKS[name]
  layer = name.split()[0]
  if layer in ("online_norm", "power_norm"):
    return dataclasses.replace(work, inputs=lambda: affine_inputs(SMALL[layer]))
  if layer == "causal_conv_inverse":
    return dataclasses.replace(work, inputs=lambda: _convolutions._inputs((2, 4, 5, 3)))
  if layer in ("rqs_coupling", "maf"):
    return dataclasses.replace(work, inputs=lambda: _flows.inputs(4, 3))
  if layer == "injective":
    return dataclasses.replace(work, inputs=lambda: _flows.inputs(4, 17))
  mean = 3000.0 if "mean" in name else 0.0
  shape = SMALL.get(layer, SMALL["image"])
  return dataclasses.replace(work, inputs=lambda: affine_inputs(shape, mean))


@pytest.mark.parametrize("name", [n for n in benchmarks.WORKS if not re.search(SLOW, n)])
def test_every_answer_of_ours_is_right(name):
  lines = {line["peer"]: line for line in bench.measure(name, shrunk(name), rounds=1)}
  assert lines["normjax"]["right"], lines["normjax"]
  assert 0 < lines["normjax"]["min_ms"] <= lines["normjax"]["median_ms"]
  assert benchmarks.WORKS[name].base != "flax" or lines["flax"]["right"] or "mean 3000" in name


@pytest.mark.parametrize("name", ["jet sample 8 couplings", "glow sample"])
def test_answers_of_image_flows_are_right(name, monkeypatch):
  for sizes in (_image_flows._JET, _image_flows._GLOW):
    monkeypatch.setitem(sizes, "width", 8)
  monkeypatch.setitem(_image_flows._GLOW, "steps", 1)
  work = benchmarks.WORKS[name]
  work = dataclasses.replace(work, inputs=lambda: _flows.inputs(2, 8, 8, 1))
  lines = {line["peer"]: line for line in bench.measure(name, work, rounds=1)}
  assert lines["normjax"]["right"], lines["normjax"]
  if name.startswith("jet sample"):
    assert "names no checkout" in lines["big_vision"]["skipped"] or lines["big_vision"]["right"]


def test_flows_are_timed_at_their_likelihood_its_update_and_their_samples(monkeypatch):
  flow = flows.Flow(flows.ActNorm(2), flows.StandardNormal((2,)))
  inputs = _flows.inputs(5, 2)
  x = inputs["x"].astype(float)
  build = lambda shape: _flows.nnx_flow(flow)
  params = build((2,)).params["bijector"]
  log_scale, shift = (params[name].astype(float) for name in ("log_scale", "shift"))
  assert 0.01 < np.abs([log_scale, shift]).mean() < 0.2  # a new one is the identity
  z = np.exp(log_scale) * x + shift
  loss = np.mean(np.sum(z**2, axis=1)) / 2 + np.log(2 * np.pi) - np.sum(log_scale)
  grads = np.array([np.mean(z * np.exp(log_scale) * x, axis=0) - 1, np.mean(z, axis=0)])
  train = jax_peer(build, "train")
  out = train.make(inputs)()
  for found in (train.read(out), train.exact(inputs)):
    np.testing.assert_allclose(found, [loss, np.linalg.norm(grads)], rtol=1e-5)
  # The first step of Adam has the length of its rate in every entry.
  moved = [out[2]["bijector"][name] - params[name] for name in ("log_scale", "shift")]
  np.testing.assert_allclose(moved, -1e-3 * np.sign(grads), rtol=1e-3)
  sample = jax_peer(build, "sample")
  expected = (x - shift) * np.exp(-log_scale)
  np.testing.assert_allclose(sample.read(sample.make(inputs)())[0], expected, rtol=1e-5)
  compiled = jax_peer(build, "compile").make(inputs)
  calls, jit = [], jax.jit
  monkeypatch.setattr(jax, "jit", lambda *args, **kwargs: calls.append(1) or jit(*args, **kwargs))
  for _ in range(2):
    np.testing.assert_allclose(compiled()[0], loss, rtol=1e-5)
  assert len(calls) >= 2


def test_further_targets_stand_beside_the_peer(monkeypatch):
  name = "jet train 4 couplings"
  line = {"work": name, "allocator": "default", "load": 0.0, "error": 0.0, "right": True}
  times = (("normjax", 3.0), ("big_vision", 4.0), ("jet-pytorch", 5.0))
  lines = [line | {"peer": peer, "min_ms": ms, "temporaries": 0} for peer, ms in times]
  text = bench.table(lines, 1)
  assert "| 0.75 big_vision | 1 met |" in text
  assert "big_vision 4.00 ms (0e+00); jet-pytorch 5.00 ms (0e+00), 0.60 of it for 0.75 met" in text
  monkeypatch.setitem(benchmarks.WORKS[name].others, "jet-pytorch", 0.5)
  assert "0.60 of it for 0.5 missed" in bench.table(lines, 1)


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


def test_an_answer_that_is_no_number_is_wrong_wherever_it_stands():
  x = np.ones(3, np.float32)
  read = lambda out: [x, np.full(3, np.nan)]
  work = benchmarks.Work(
    lambda: {"x": x}, {"normjax": benchmarks.Peer(lambda _: lambda: x, lambda out: out, read)},
    lambda _: [x, x], None,
  )  # fmt: skip
  (line,) = bench.measure("fake", work, 1)
  assert np.isnan(line["error"])
  assert line["right"] is False


def test_an_error_is_relative_to_the_largest_entry():
  assert bench._error(np.array([1.0, 100.5]), np.array([1.0, 100.0])) == pytest.approx(5e-3)


def test_no_work_of_that_name():
  with pytest.raises(ValueError, match="only must be parts of layer_norm 4096x1024, "):
    bench.bench(["softmax"], "nowhere", 1)
