import json

import jax
import optax
import pytest
from absl import logging

from normjax import checkpoint
from tests.checkpoint.states import RECORD, snapshot


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
