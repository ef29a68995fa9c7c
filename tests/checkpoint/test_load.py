import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from normjax import checkpoint
from normjax.checkpoint import _manifest
from tests.checkpoint.states import JET, assert_same, environment, flip_one_bit, jet_parts, mesh


def trained_jet(seed):
  _, params, rest = jet_parts(seed)
  params = jax.tree.map(lambda x: x + 0.01 * seed, params)
  return {"params": params, "rest": rest, "opt": optax.adam(1e-3).init(params)}


@pytest.fixture(scope="module")
def jet_run(tmp_path_factory):
  """A workdir with a Jet: step 1 without, step 2 with a running mean; saved on eight devices."""
  workdir = tmp_path_factory.mktemp("jet") / "run"
  replicated = NamedSharding(mesh((8,), "data"), PartitionSpec())
  first, second = trained_jet(1), {**trained_jet(2), "ema": trained_jet(3)["params"]}
  with checkpoint.Checkpointer(workdir, {"model": JET, "config": {}}) as checkpointer:
    checkpointer.save(1, jax.device_put(first, replicated), force=True)
    checkpointer.save(2, jax.device_put(second, replicated), force=True)
  return workdir, first, second


@pytest.mark.parametrize("graph", [True, False])
def test_load_gives_the_model_back(jet_run, graph):
  workdir, first, second = jet_run
  with nnx.set_graph_mode(graph):
    for arguments, params, others in (
      ({}, second["ema"], second["rest"]),
      ({"weights": "ema"}, second["ema"], second["rest"]),
      ({"weights": "params"}, second["params"], second["rest"]),
      ({"step": 1}, first["params"], first["rest"]),
    ):
      model = checkpoint.load(workdir, **arguments)
      _, found, rest = checkpoint.to_state(model)
      assert_same(found, params)
      assert_same(rest, others)
      assert all(x.devices() == {jax.devices()[0]} for x in jax.tree.leaves((found, rest)))
    x = jnp.ones((2, 4, 4, 1))
    graphdef = checkpoint.to_state(model)[0]

    @jax.jit
    def log_prob(params, rest):
      return checkpoint.from_state(graphdef, params, rest).log_prob(x)

    expected = log_prob(first["params"], first["rest"])
    np.testing.assert_array_equal(log_prob(found, rest), expected)
    assert np.isfinite(expected).all()


def test_load_onto_a_sharding(jet_run):
  sharding = NamedSharding(mesh((4,), "data"), PartitionSpec())
  model = checkpoint.load(jet_run[0], sharding=sharding)
  assert all(x.sharding == sharding for x in jax.tree.leaves(checkpoint.to_state(model)[1]))


def test_load_reads_no_optimizer_and_verifies_the_rest(jet_run, tmp_path, monkeypatch):
  described = []
  true = _manifest.fingerprinted
  monkeypatch.setattr(_manifest, "fingerprinted", lambda tree: described.append(tree) or true(tree))
  checkpoint.load(jet_run[0])
  assert [set(tree) for tree in described] == [{"ema", "rest"}]
  workdir = Path(shutil.copytree(jet_run[0], tmp_path / "run"))
  largest = max((workdir / "checkpoints/2").rglob("*"), key=lambda p: p.stat().st_size)
  flip_one_bit(largest)
  with pytest.raises(ValueError, match=r"step 2 .* is damaged: .* was changed\nNo other step"):
    checkpoint.load(workdir, weights="ema")
  with pytest.raises(
    ValueError, match=r"step 2 .* is damaged: .* was changed\nIntact steps: \[1\]"
  ):
    checkpoint.load(workdir)


def test_load_in_another_process_needs_no_experiments(jet_run, tmp_path):
  workdir, _, second = jet_run
  program = (
    "import sys, jax, numpy as np, normjax.checkpoint\n"
    "model = normjax.checkpoint.load(sys.argv[1])\n"
    "leaves = jax.tree.leaves(normjax.checkpoint.to_state(model)[1])\n"
    "np.savez(sys.argv[2], *map(np.asarray, leaves))\n"
    "assert 'experiments' not in sys.modules and 'grain' not in sys.modules\n"
    "print(jax.device_count())\n"
  )
  arguments = ["-W", "error", "-c", program, str(workdir), str(tmp_path / "out.npz")]
  out = subprocess.run(
    [sys.executable, *arguments], cwd=tmp_path, env=environment(), capture_output=True, timeout=100
  )
  assert out.returncode == 0, out.stderr.decode()
  assert out.stdout.decode().split() == ["1"]
  assert out.stderr.decode() == ""
  with np.load(tmp_path / "out.npz") as found:
    for name, expected in zip(found, jax.tree.leaves(second["ema"]), strict=True):
      np.testing.assert_array_equal(found[name], expected)


def test_load_says_what_is_missing(jet_run, saved, tmp_path):
  with pytest.raises(ValueError, match="no such directory"):
    checkpoint.load(tmp_path / "nothing")
  with pytest.raises(ValueError, match="is not a workdir of normjax: it has no record.json"):
    checkpoint.load(tmp_path)
  checkpoint.Checkpointer(tmp_path / "fresh", {"model": JET, "config": {}}).close()
  with pytest.raises(ValueError, match="no checkpoint in .* yet"):
    checkpoint.load(tmp_path / "fresh")
  with pytest.raises(ValueError, match=r"no checkpoint of step 3 .*there are steps \[1, 2\]"):
    checkpoint.load(jet_run[0], 3)
  with pytest.raises(ValueError, match="weights must be one of"):
    checkpoint.load(jet_run[0], weights="opt")
  with pytest.raises(ValueError, match=r"ema/.*\(absent\) in the checkpoint"):
    checkpoint.load(jet_run[0], 1, weights="ema")
  with pytest.raises(ValueError, match="class must name a public .* got 'tests.Net'"):
    checkpoint.load(saved)
  wrong = Path(shutil.copytree(jet_run[0], tmp_path / "wrong"))
  record = json.loads((wrong / "record.json").read_text())
  record["model"]["kwargs"]["bijector"]["kwargs"]["emb_dim"] = 16
  (wrong / "record.json").write_text(json.dumps(record))
  with pytest.raises(ValueError, match="is of another model"):
    checkpoint.load(wrong)
