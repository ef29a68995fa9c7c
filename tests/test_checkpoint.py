import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from normjax import checkpoint, flows
from normjax.checkpoint import _manifest

ROOT = Path(__file__).resolve().parents[1]
RECORD = {"model": {"class": "tests.Net"}, "config": {"lr": 0.1, "data": {"name": "digits"}}}


class Carried(nnx.Variable):
  pass


class Net(nnx.Module):
  def __init__(self, rngs):
    self.linear = nnx.Linear(4, 8, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)
    self.carried = Carried(jnp.full((8,), 3.0))
    self.half = nnx.Param(jnp.linspace(0, 1, 5, dtype=jnp.bfloat16))
    self.order = Carried(jnp.array([2, 0, 1], jnp.int8))

  def __call__(self, x):
    self.carried[...] = self.carried[...] + 1
    return self.dropout(self.norm(self.linear(x)))


def init_state(seed=0):
  _, params, rest = checkpoint.to_state(Net(nnx.Rngs(seed)))
  return {
    "params": params,
    "rest": rest,
    "opt": optax.adamw(1e-3, mu_dtype=jnp.bfloat16).init(params),
    "key": jax.random.split(jax.random.key(seed), 3),
    "step": jnp.int32(seed),
  }


ABSTRACT = jax.eval_shape(init_state)
STATES = {step: init_state(step) for step in (5, 10, 15)}


def numbers():
  return iter(grain.MapDataset.range(100).shuffle(seed=1).repeat().to_iter_dataset())


class Position:
  """The protocol of a grain iterator, without its prefetching threads."""

  def __init__(self, state):
    self.state = state

  def get_state(self):
    return self.state

  def set_state(self, state):
    self.state = state


def raw(tree):
  is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree)


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype, path
    assert raw(x).tobytes() == raw(y).tobytes(), path


def mesh(n, *names):
  return jax.make_mesh(n, names, axis_types=(AxisType.Auto,) * len(n))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A workdir with steps 5, 10 and 15; tests that change it take a copy."""
  workdir = tmp_path_factory.mktemp("saved") / "run"
  data = numbers()
  with checkpoint.Checkpointer(workdir, RECORD, save_every=5) as checkpointer:
    for step, state in STATES.items():
      next(data)
      assert checkpointer.save(step, state, data)
  return workdir


@pytest.fixture
def copy(saved, tmp_path):
  return Path(shutil.copytree(saved, tmp_path / "run"))


def snapshot(directory):
  return {p: p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def restore(workdir, step=None, abstract=ABSTRACT, data=None, record=RECORD):
  with checkpoint.Checkpointer(workdir, record) as checkpointer:
    return checkpointer.restore(abstract, data, step)


def test_restore_is_bit_identical_and_the_data_goes_on(saved):
  data, reference = numbers(), numbers()
  state, step = restore(saved, data=data)
  assert step == 15
  assert_same(state, STATES[15])
  assert [next(reference) for _ in range(5)][3:] == [next(data) for _ in range(2)]
  state, step = restore(saved, 5)
  assert step == 5
  assert_same(state, STATES[5])


def test_every_variable_type_survives_and_the_model_runs_on(saved):
  state, _ = restore(saved)
  graphdef = checkpoint.to_state(Net(nnx.Rngs(0)))[0]
  x = jax.random.normal(jax.random.key(3), (6, 4))

  @jax.jit
  def run(state):
    model = checkpoint.from_state(graphdef, state["params"], state["rest"])
    return model(x), checkpoint.to_state(model)[1:]

  y, (params, rest) = run(state)
  expected_y, (_, expected_rest) = run(STATES[15])
  np.testing.assert_array_equal(y, expected_y)
  assert_same(rest, expected_rest)
  assert_same(params, STATES[15]["params"])
  before, after = raw(state["rest"]), raw(rest)
  assert after["carried"][0] == before["carried"][0] + 1
  assert after["dropout"]["rngs"]["count"] == before["dropout"]["rngs"]["count"] + 1
  assert not np.array_equal(after["norm"]["mean"], before["norm"]["mean"])


def test_restore_onto_another_mesh(tmp_path):
  wide, square = mesh((8,), "data"), mesh((2, 4), "data", "fsdp")
  state = {"a": jnp.arange(64.0).reshape(8, 8), "b": jnp.arange(16, dtype=jnp.bfloat16)}
  placed = {
    "a": jax.device_put(state["a"], NamedSharding(wide, PartitionSpec("data"))),
    "b": jax.device_put(state["b"], NamedSharding(wide, PartitionSpec())),
  }
  wanted = {
    "a": NamedSharding(square, PartitionSpec(None, "fsdp")),
    "b": NamedSharding(square, PartitionSpec(("data", "fsdp"))),
  }
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, wanted
  )
  with checkpoint.Checkpointer(tmp_path, RECORD) as checkpointer:
    checkpointer.save(1, placed, force=True)
    restored, _ = checkpointer.restore(abstract)
  assert_same(restored, state)
  assert jax.tree.map(lambda x: x.sharding, restored) == wanted


def test_buffers_may_be_donated_while_a_save_is_running(tmp_path):
  advance = jax.jit(lambda x: jax.tree.map(lambda v: v + 1, x), donate_argnums=0)
  state = {"x": jnp.zeros((256, 256)), "y": jnp.zeros((1000,), jnp.int32)}
  abstract = jax.eval_shape(lambda: state)
  with checkpoint.Checkpointer(tmp_path, RECORD, save_every=1, max_to_keep=None) as checkpointer:
    for step in range(1, 7):
      state = advance(state)
      assert checkpointer.save(step, state)
    for step in range(1, 7):
      restored, _ = checkpointer.restore(abstract, step=step)
      assert {float(v.min()) for v in restored.values()} == {step}
      assert {float(v.max()) for v in restored.values()} == {step}


def test_save_keeps_its_schedule_and_the_newest(tmp_path):
  state = {"x": jnp.ones(3)}
  with checkpoint.Checkpointer(tmp_path, RECORD, save_every=2, max_to_keep=2) as checkpointer:
    assert checkpointer.latest_step is None
    assert [step for step in range(8) if checkpointer.save(step, state)] == [2, 4, 6]
    assert [step for step in range(5) if checkpointer.should_save(step)] == [2, 4]
    assert not checkpointer.reached_preemption(7)
    assert checkpointer.save(7, state, force=True)
    assert checkpointer.latest_step == 7
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["6", "7"]


def test_an_existing_step_is_never_overwritten(copy):
  before = snapshot(copy)
  with checkpoint.Checkpointer(copy, RECORD, save_every=5) as checkpointer:
    data = numbers()
    state, step = checkpointer.restore(ABSTRACT, data)
    assert not checkpointer.save(step, state, data)
    assert not checkpointer.save(step, state, data, force=True)
    with pytest.raises(ValueError, match="step 15 .* already holds another state"):
      checkpointer.save(15, STATES[10], data)
    next(data)
    with pytest.raises(ValueError, match="step 15 .* already holds another state"):
      checkpointer.save(15, state, data)
    with pytest.raises(ValueError, match="step 12 is older than step 15"):
      checkpointer.save(12, state, data, force=True)
  assert snapshot(copy) == before


def damages(step_dir):
  """Every way to damage a step: files cut, emptied, removed or changed, folders removed."""
  for path in sorted(step_dir.rglob("*")):
    if path.is_dir():
      yield path, lambda path: shutil.rmtree(path)
    elif path.parent.name == "d" and path != min(path.parent.iterdir()):
      continue  # One of the many files of an array store stands for all.
    elif path.name not in ("commit_success.txt", "_CHECKPOINT_METADATA"):
      yield path, lambda path: path.unlink()
      yield path, lambda path: os.truncate(path, path.stat().st_size // 2)
      yield path, lambda path: os.truncate(path, 0)
      yield path, flip_one_bit


def flip_one_bit(path):
  content = bytearray(path.read_bytes())
  content[2 * len(content) // 3] ^= 4
  path.write_bytes(bytes(content))


def test_every_damaged_file_is_named_and_left_alone(tmp_path):
  state = {"x": jnp.arange(6.0), "key": jax.random.key(0)}
  abstract = jax.eval_shape(lambda: state)
  workdir, newest, pristine = tmp_path / "run", tmp_path / "run/checkpoints/2", tmp_path / "copy"
  with checkpoint.Checkpointer(workdir, RECORD, save_every=1) as checkpointer:
    checkpointer.save(1, state, Position(1))
    checkpointer.save(2, state, Position(2))
    checkpointer.wait()
    shutil.copytree(newest, pristine)
    tried = 0
    for path, damage in damages(newest):
      damage(path)
      before = snapshot(workdir)
      data = Position(7)
      with pytest.raises(ValueError, match="step 2 .* is damaged") as error:
        checkpointer.restore(abstract, data)
      message = str(error.value)
      # A removed folder is named by a file in it, the manifest's file by its folder.
      assert str(path) in message or str(path.parent) in message
      assert "Intact steps: [1]" in message
      assert "Nothing was changed or deleted" in message
      assert snapshot(workdir) == before
      assert data.state == 7
      assert checkpointer.latest_step == 2
      tried += 1
      shutil.rmtree(newest)
      shutil.copytree(pristine, newest)
    assert tried > 30
    assert_same(checkpointer.restore(abstract)[0], state)


def test_an_emptied_step_is_an_error_not_an_older_step(copy):
  for path in (copy / "checkpoints" / "15").iterdir():
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  with pytest.raises(ValueError, match="step 15 .* is damaged"):
    restore(copy)
  assert restore(copy, 10)[1] == 10


def test_only_verified_steps_are_offered_instead(copy):
  for step in ("10", "15"):
    (copy / "checkpoints" / step / "state" / "_METADATA").unlink()
  with pytest.raises(
    ValueError, match=r"step 15 .* is damaged: .*_METADATA is missing\nIntact steps: \[5\]"
  ):
    restore(copy)
  (copy / "checkpoints" / "5" / "state" / "_METADATA").unlink()
  with pytest.raises(ValueError, match=r"No other step reads back \(of \[5, 10\]\)"):
    restore(copy)


def test_wrong_contents_in_sound_files_are_found_by_fingerprint(copy, monkeypatch):
  # What a bug (ours, Orbax's, a disk's) would do: all checksums of files fit, one array does not.
  wrong = {**STATES[15], "params": jax.tree.map(lambda x: x, STATES[15]["params"])}
  bias = wrong["params"]["linear"]["bias"]
  wrong["params"]["linear"]["bias"] = bias.at[3].set(jnp.float32(-0.0))
  shutil.rmtree(copy / "checkpoints" / "15")
  true_manifest = _manifest.make_manifest(STATES[15], numbers())
  with checkpoint.Checkpointer(copy, RECORD) as checkpointer:
    monkeypatch.setattr(_manifest, "make_manifest", lambda *_: true_manifest)
    checkpointer.save(15, wrong, force=True)
    with pytest.raises(ValueError, match="these leaves differ .*: params/linear/bias\n"):
      checkpointer.restore(ABSTRACT)


def test_another_tree_is_named_leaf_by_leaf(saved):
  before = snapshot(saved)
  other = init_state()
  other["params"]["extra"] = jnp.zeros(2)
  other["params"]["linear"]["kernel"] = jnp.zeros((4, 9))
  other["params"]["half"] = other["params"]["half"].astype(jnp.float32)
  del other["rest"]["carried"]
  with pytest.raises(ValueError, match="step 15 .* is of another model or optimizer") as error:
    restore(saved, abstract=jax.eval_shape(lambda: other))
  message = str(error.value)
  assert "params/extra: (absent) in the checkpoint, float32[2] in the program" in message
  assert "params/linear/kernel: float32[4, 8] in the checkpoint, float32[4, 9]" in message
  assert "params/half: bfloat16[5] in the checkpoint, float32[5] in the program" in message
  assert "rest/carried: float32[8] in the checkpoint, (absent) in the program" in message
  assert "linear/bias" not in message
  assert snapshot(saved) == before


def test_what_is_not_damage_is_not_called_so(saved):
  # 5 entries can't be split over 8 devices.
  split = NamedSharding(mesh((8,), "data"), PartitionSpec("data"))
  abstract = {**ABSTRACT, "params": {**ABSTRACT["params"]}}
  half = abstract["params"]["half"]
  abstract["params"]["half"] = jax.ShapeDtypeStruct(half.shape, half.dtype, sharding=split)
  with pytest.raises(ValueError, match=r"step 15 in .* can't be read \(.*divisible") as error:
    restore(saved, abstract=abstract)
  assert "damaged" not in str(error.value)


def test_missing_steps_and_data(saved, tmp_path):
  with checkpoint.Checkpointer(tmp_path, RECORD) as checkpointer:
    with pytest.raises(ValueError, match="no checkpoint in .* yet"):
      checkpointer.restore(ABSTRACT)
    checkpointer.save(1, STATES[5], force=True)
    with pytest.raises(ValueError, match="data positions of 0 processes, this run has 1"):
      checkpointer.restore(ABSTRACT, numbers())
  with pytest.raises(ValueError, match=r"no checkpoint of step 7 in .*; there are steps \[5, 10"):
    restore(saved, 7)


def test_data_states_must_be_json(tmp_path):
  with checkpoint.Checkpointer(tmp_path, RECORD) as checkpointer:
    with pytest.raises(ValueError, match="data_iterator must have a JSON state"):
      checkpointer.save(2, STATES[5], Position(object()), force=True)
    assert checkpointer.latest_step is None


@pytest.mark.parametrize("sharding", ["one", "split"])
def test_fingerprint_sees_single_bits_swaps_and_signs_on_any_sharding(sharding):
  place = NamedSharding(mesh((4, 2), "a", "b"), PartitionSpec("a", "b"))
  put = (lambda x: x) if sharding == "one" else (lambda x: jax.device_put(x, place))
  x = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
  sums = lambda x: _manifest.fingerprinted({"x": put(jnp.asarray(x))})["x"]["fingerprint"]
  whole = _manifest.fingerprinted({"x": jnp.asarray(x)})["x"]["fingerprint"]
  assert sums(x) == whole
  swapped, negated = x.copy(), x.copy()
  swapped[[0, 1]] = swapped[[1, 0]]
  negated[0, 0], negated[5, 3] = -x[0, 0], -x[5, 3]
  changed = [swapped, negated, x[::-1], x.T.reshape(8, 6)]
  for bit in (0, 7, 31):
    flipped = x.copy().view(np.uint32)
    flipped[7, 5] ^= np.uint32(1 << bit)
    changed.append(flipped.view(np.float32))
  values = [sums(y) for y in changed]
  assert whole not in values
  assert len(set(values)) == len(values)


def test_fingerprint_covers_every_kind_of_array():
  with jax.enable_x64(True):
    kinds = {
      "bool": jnp.array([True, False]),
      "int4": jnp.array([1, -2], jnp.int4),
      "uint8": jnp.array([1, 2], jnp.uint8),
      "int64": jnp.array([1, 2], jnp.int64),
      "float8": jnp.array([1, 2], jnp.float8_e4m3fn),
      "float16": jnp.array([1, 2], jnp.float16),
      "float64": jnp.array([1, 2], jnp.float64),
      "complex": jnp.array([1, 2j]),
      "key": jax.random.split(jax.random.key(0)),
      "empty": jnp.zeros((0, 3)),
    }
    one = _manifest.fingerprinted(kinds)
    other = _manifest.fingerprinted({k: v[::-1] for k, v in kinds.items()})
  same = [name for name in kinds if one[name]["fingerprint"] == other[name]["fingerprint"]]
  assert same == ["empty"]


def test_record_is_written_once_and_checked(tmp_path):
  workdir = tmp_path / "new" / "run"
  checkpoint.Checkpointer(workdir, RECORD).close()
  before = snapshot(workdir)
  record = json.loads((workdir / "record.json").read_text())
  assert record["model"] == RECORD["model"]
  assert record["config"] == RECORD["config"]
  assert record["versions"]["jax"] == jax.__version__
  assert set(record["versions"]) == {
    "normjax", "python", "jax", "flax", "orbax-checkpoint", "optax", "numpy",
  }  # fmt: skip
  checkpoint.Checkpointer(workdir, RECORD).close()
  other = {
    "model": {"class": "tests.Other"},
    "config": {"lr": 0.2, "data": {"name": "digits"}, "seed": 1},
  }
  with pytest.raises(ValueError, match="holds another experiment") as error:
    checkpoint.Checkpointer(workdir, other)
  message = str(error.value)
  assert 'model.class: "tests.Net" in the directory, "tests.Other" now' in message
  assert "config.lr: 0.1 in the directory, 0.2 now" in message
  assert "config.seed: (absent) in the directory, 1 now" in message
  assert "config.data" not in message
  assert snapshot(workdir) == before


def test_other_versions_only_warn(tmp_path, caplog, monkeypatch):
  checkpoint.Checkpointer(tmp_path, RECORD).close()
  path = tmp_path / "record.json"
  record = json.loads(path.read_text())
  record["versions"]["optax"] = "0.0.1"
  path.write_text(json.dumps(record))
  monkeypatch.setattr(logging.get_absl_logger(), "propagate", True)
  checkpoint.Checkpointer(tmp_path, RECORD).close()
  assert [r.getMessage() for r in caplog.records if "other versions" in r.getMessage()] == [
    f'{tmp_path} was written by other versions: optax: "0.0.1" in the directory, '
    f'"{optax.__version__}" now'
  ]


@pytest.mark.parametrize(
  ("files", "message"),
  [
    ({"thesis.tex": "x"}, "holds other files and no record.json .thesis.tex."),
    ({"checkpoints/5/state/x": "x"}, "holds checkpoints but no record.json"),
    ({"record.json": "{half"}, "record.json is unreadable"),
    ({"record.json": '{"artist": "x"}'}, "was not written by normjax.checkpoint"),
    ({"record.json": "[1]"}, "was not written by normjax.checkpoint"),
  ],
)
def test_foreign_directories_are_refused_untouched(tmp_path, files, message):
  for name, text in files.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
  before = snapshot(tmp_path)
  with pytest.raises(ValueError, match=message):
    checkpoint.Checkpointer(tmp_path, RECORD)
  assert snapshot(tmp_path) == before


def test_logs_and_leftovers_of_a_killed_start_are_no_obstacle(tmp_path):
  (tmp_path / "train.log").write_text("started")
  (tmp_path / ".record.json.123").write_text("{ha")
  checkpoint.Checkpointer(tmp_path, RECORD).close()
  assert (tmp_path / "record.json").exists()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"record": {"model": {}}}, "record must be a dict with the keys"),
    ({"record": {"model": {}, "config": {"f": print}}}, "record must be JSON"),
    ({"max_to_keep": 0}, "max_to_keep must be at least 1"),
    ({"save_every": 0}, "save_every must be at least 1"),
  ],
)
def test_bad_arguments_leave_no_directory(tmp_path, arguments, message):
  with pytest.raises(ValueError, match=message):
    checkpoint.Checkpointer(tmp_path / "run", **{"record": RECORD, **arguments})
  assert not (tmp_path / "run").exists()


def test_a_file_is_no_workdir(tmp_path):
  (tmp_path / "run").write_text("x")
  with pytest.raises(ValueError, match="run is a file"):
    checkpoint.Checkpointer(tmp_path / "run", RECORD)


JET = {
  "class": "normjax.flows.Flow",
  "kwargs": {
    "bijector": {
      "class": "normjax.flows.Jet",
      "kwargs": {
        "shape": [4, 4, 1],
        "depth": 2,
        "block_depth": 1,
        "emb_dim": 8,
        "num_heads": 1,
        "patch_size": 2,
        "kinds": ["channels"],
        "dtype": "bfloat16",
      },
    },
    "base": {"class": "normjax.flows.StandardNormal", "kwargs": {"shape": [4, 4, 1]}},
  },
}


_structure = []


@jax.jit
def _jet_state(key):
  graphdef, params, rest = checkpoint.to_state(checkpoint.build(JET, nnx.Rngs(key)))
  _structure.append(graphdef)
  return params, rest


def jet_parts(seed):
  params, rest = _jet_state(jax.random.key(seed))
  return _structure[0], params, rest


def test_build_reads_lists_and_dtypes():
  kwargs = {"num_features": [2, 3], "axis": [1, 2], "param_dtype": "bfloat16", "dtype": "float16"}
  norm = checkpoint.build({"class": "normjax.norms.LayerNorm", "kwargs": kwargs}, nnx.Rngs(0))
  assert norm.scale.shape == (2, 3)
  assert norm.scale.dtype == jnp.bfloat16
  assert norm(jnp.ones((4, 2, 3))).dtype == jnp.float16


@pytest.fixture
def publish(monkeypatch):
  """Add a class to the public names of normjax.flows."""

  def add(cls):
    monkeypatch.setattr(flows, cls.__name__, cls, raising=False)
    monkeypatch.setattr(flows, "__all__", [*flows.__all__, cls.__name__])

  return add


def test_build_makes_arguments_of_json(publish):
  class Probe(nnx.Module):
    def __init__(self, sizes, options, mode, dtype, state_dtype=None):
      self.received = (sizes, options, mode, dtype, state_dtype)

  Probe.__module__ = "normjax.flows._probe"
  publish(Probe)
  kwargs = {
    "sizes": [2, [3, 4]],
    "options": {"class": "a", "other": [1]},
    "mode": "bfloat16",
    "dtype": "bfloat16",
    "state_dtype": "float32",
  }
  built = checkpoint.build({"class": "normjax.flows.Probe", "kwargs": kwargs}, nnx.Rngs(0))
  expected = {"class": "a", "other": (1,)}
  dtypes = (jnp.dtype("bfloat16"), jnp.dtype("float32"))
  assert built.received == ((2, (3, 4)), expected, "bfloat16", *dtypes)
  assert [type(x) for x in built.received[3:]] == [type(x) for x in dtypes]


def test_build_refuses_classes_from_elsewhere(publish):
  publish(nnx.Linear)
  with pytest.raises(ValueError, match="got 'normjax.flows.Linear'"):
    checkpoint.build({"class": "normjax.flows.Linear"}, nnx.Rngs(0))


def test_build_makes_nested_models():
  flow = checkpoint.from_state(jet_parts(3)[0], *jet_parts(3)[1:])
  assert isinstance(flow, flows.Flow)
  assert isinstance(flow.bijector, flows.Jet)
  assert isinstance(flow.base, flows.StandardNormal)
  assert flow.base.shape == (4, 4, 1)
  three, four = (jax.tree.leaves(jet_parts(seed)[1]) for seed in (3, 4))
  assert any(not np.array_equal(a, b) for a, b in zip(three, four, strict=True))


@pytest.mark.parametrize(
  ("name", "hint"),
  [
    ("os.system", ""),
    ("builtins.eval", ""),
    ("normjax.flows.Jett", "normjax.flows.Jet"),
    ("normjax.norms.Jet", "normjax.flows.Jet"),
    ("normjax.flows._jet.Jet", "normjax.flows.Jet"),
    ("normjax.flows._jet.JetNetwork", ""),
    ("normjax.flows.nnx", ""),
    ("normjax.flows.two_moons", ""),
    ("normjax.flows.POTENTIALS", ""),
    ("normjax.flows.Bijector", ""),
    ("normjax.checkpoint.Checkpointer", ""),
    ("normjax.checkpoint.load", ""),
    ("flax.nnx.Linear", ""),
    ("Jet", "normjax.flows.Jet"),
    ("normjax.flows", ""),
    ("", ""),
    (None, ""),
    (["normjax.flows.Jet"], ""),
  ],
)
def test_build_refuses_what_is_not_a_public_model(name, hint):
  with pytest.raises(ValueError, match="class must name a public nnx.Module of normjax") as error:
    checkpoint.build({"class": name}, nnx.Rngs(0))
  assert repr(name) in str(error.value)
  if hint:
    assert str(error.value).endswith(f"nearest: {hint}")


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("normjax.flows.Jet", "a model spec is"),
    ({"kwargs": {}}, "a model spec is"),
    ({"class": "normjax.flows.Jet", "args": []}, "a model spec is"),
    ({"class": "normjax.flows.Jet", "kwargs": [1]}, "must be a dict"),
    ({"class": "normjax.flows.StandardNormal", "kwargs": {"shap": [2]}}, "shap"),
    ({"class": "normjax.flows.StandardNormal"}, "missing a required argument: 'shape'"),
    ({"class": "normjax.flows.StandardNormal", "kwargs": {"shape": [0]}}, "positive ints"),
  ],
)
def test_build_refuses_bad_specs(spec, message):
  with pytest.raises(ValueError, match=message):
    checkpoint.build(spec, nnx.Rngs(0))


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


def environment(**extra):
  return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **extra}


SAVER = """
import sys, jax, jax.numpy as jnp
from normjax import checkpoint
record = {"model": {"class": "x"}, "config": {}}
advance = jax.jit(lambda s: jax.tree.map(lambda v: v + 1, s))
state = {"x": jnp.zeros((400, 500)), "y": jnp.zeros(3, jnp.int32)}
with checkpoint.Checkpointer(sys.argv[1], record, save_every=1, max_to_keep=2) as checkpointer:
  first = 0
  if checkpointer.latest_step is not None:
    state, first = checkpointer.restore(jax.eval_shape(lambda: state))
  for step in range(first + 1, 10**6):
    state = advance(state)
    print(step, flush=True)
    checkpointer.save(step, state)
"""


def test_sigkill_during_a_save_loses_only_that_save(tmp_path):
  workdir = tmp_path / "run"
  record = {"model": {"class": "x"}, "config": {}}
  abstract = {
    "x": jax.ShapeDtypeStruct((400, 500), jnp.float32),
    "y": jax.ShapeDtypeStruct((3,), jnp.int32),
  }
  leftovers, last = 0, 0
  for delay in (0.0, 0.013, 0.037):
    process = subprocess.Popen(
      [sys.executable, "-W", "error", "-c", SAVER, str(workdir)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      env=environment(),
      text=True,
    )
    lines = [process.stdout.readline() for _ in range(5)]
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    rest, errors = process.communicate(timeout=60)
    assert all(lines), errors
    printed = [int(line) for line in [*lines, *rest.split()]]
    # The killed process had resumed from the last complete step, whatever had been cut off.
    assert printed[0] == last + 1
    names = sorted(p.name for p in (workdir / "checkpoints").iterdir())
    leftovers += any(not name.isdigit() for name in names)
    with checkpoint.Checkpointer(workdir, record, max_to_keep=2) as checkpointer:
      last = checkpointer.latest_step
      # At most the save that was running and the one being started are lost.
      assert printed[-1] - 2 <= last <= printed[-1]
      state, _ = checkpointer.restore(abstract)
      assert (np.asarray(state["x"]) == last).all()
      assert (np.asarray(state["y"]) == last).all()
      last += checkpointer.save(last + 1, jax.tree.map(lambda v: v + 1, state), force=True)
    assert all(p.name.isdigit() for p in (workdir / "checkpoints").iterdir())
  assert leftovers, "no kill hit a save: the test has shown nothing"


def test_an_unfinished_step_is_never_the_latest(copy):
  steps = copy / "checkpoints"
  for unfinished in ("17.orbax-checkpoint-tmp", "20.orbax-checkpoint-tmp"):
    shutil.copytree(steps / "15", steps / unfinished)
    (steps / unfinished / "commit_success.txt").unlink()
  with checkpoint.Checkpointer(copy, RECORD) as checkpointer:
    assert checkpointer.latest_step == 15
    assert_same(checkpointer.restore(ABSTRACT)[0], STATES[15])
    assert checkpointer.save(20, STATES[10], force=True)
    assert_same(checkpointer.restore(ABSTRACT)[0], STATES[10])
  assert sorted(p.name for p in steps.iterdir()) == ["10", "15", "20"]


WORKER = """
import sys, jax, jax.numpy as jnp, grain, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
workdir, port, me = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=me)
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from normjax import checkpoint
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
x = np.arange(64.0, dtype=np.float32).reshape(16, 4)
state = {"x": jax.make_array_from_process_local_data(split, x[8 * me : 8 * me + 8]),
         "key": jax.jit(lambda: jax.random.key(3), out_shardings=whole)()}
data = lambda: iter(grain.MapDataset.range(1000)[me::2].to_iter_dataset())
record = {"model": {"class": "x"}, "config": {"lr": 0.1}}
position = data()
for _ in range(3 + 10 * me): next(position)
with checkpoint.Checkpointer(workdir, record, save_every=2) as checkpointer:
  assert not checkpointer.save(1, state, position)
  assert checkpointer.save(2, state, position)
  assert not checkpointer.save(2, state, position)
  assert checkpointer.save(4, jax.jit(lambda s: {**s, "x": s["x"] + 1})(state), position)
abstract = {"x": jax.ShapeDtypeStruct((16, 4), np.float32, sharding=split),
            "key": jax.ShapeDtypeStruct((), state["key"].dtype, sharding=whole)}
with checkpoint.Checkpointer(workdir, record) as checkpointer:
  again = data()
  restored, step = checkpointer.restore(abstract, again)
  assert step == 4 and next(again) == next(position), step
  for shard in restored["x"].addressable_shards:
    np.testing.assert_array_equal(shard.data, x[shard.index] + 1)
try:
  checkpoint.Checkpointer(workdir, {**record, "config": {"lr": 0.2}})
except ValueError as error:
  assert "config.lr" in str(error)
else:
  raise SystemExit("another experiment was let in")
print("done", me, flush=True)
jax.distributed.shutdown()
"""


def test_two_processes_save_and_restore_together(tmp_path):
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    port = listener.getsockname()[1]
  workdir = tmp_path / "run"
  workers = [
    subprocess.Popen(
      [sys.executable, "-W", "error", "-c", WORKER, str(workdir), str(port), str(i)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      env=environment(),
      text=True,
    )
    for i in range(2)
  ]
  try:
    outputs = [worker.communicate(timeout=100) for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
  for i, (out, errors) in enumerate(outputs):
    assert f"done {i}" in out, errors
  # One process may look at what two have saved, but not go on with their data.
  record = {"model": {"class": "x"}, "config": {"lr": 0.1}}
  abstract = jax.eval_shape(lambda: {"x": jnp.zeros((16, 4)), "key": jax.random.key(0)})
  with checkpoint.Checkpointer(workdir, record) as checkpointer:
    state, _ = checkpointer.restore(abstract, step=2)
    np.testing.assert_array_equal(state["x"], np.arange(64.0).reshape(16, 4))
    assert_same(state["key"], jax.random.key(3))
    with pytest.raises(ValueError, match="data positions of 2 processes, this run has 1"):
      checkpointer.restore(abstract, numbers())
    (workdir / "checkpoints/4/state/ocdbt.process_1/manifest.ocdbt").unlink()
    with pytest.raises(
      ValueError, match=r"step 4 .* is damaged.*process_1/manifest.ocdbt is missing"
    ):
      checkpointer.restore(abstract)
