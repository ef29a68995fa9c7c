import os

import jax
import pytest

from experiments import train
from tests.e2e import runs


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
  """Let all runs, in this process, in others and in other pytest workers, share compilations."""
  base = tmp_path_factory.getbasetemp()
  folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
  options = {
    "jax_compilation_cache_dir": str(folder),
    "jax_persistent_cache_min_compile_time_secs": 0.5,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  with pytest.MonkeyPatch.context() as patch:
    for name, value in options.items():
      patch.setenv(name.upper(), str(value))
    before = {name: jax.config.values[name] for name in options}
    for name, value in options.items():
      jax.config.update(name, value)
    yield
    for name, value in before.items():
      jax.config.update(name, value)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory, compiled_once):
  """A finished run of the tiny config."""
  workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
  assert train.train(runs.tiny(), str(workdir))
  return workdir
