import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from normjax import checkpoint
from normjax.checkpoint import _manifest
from tests.checkpoint.states import (
  ABSTRACT,
  RECORD,
  STATES,
  Position,
  assert_same,
  flip_one_bit,
  mesh,
  numbers,
  restore,
  snapshot,
)


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
