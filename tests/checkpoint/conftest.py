import shutil
from pathlib import Path

import pytest

from normjax import checkpoint
from tests.checkpoint.states import RECORD, STATES, numbers


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
