import pytest

from experiments import train
from tests.e2e import runs


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
  """A finished run of the tiny config."""
  workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
  assert train.train(runs.tiny(), str(workdir))
  return workdir
