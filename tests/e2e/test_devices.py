import socket

import numpy as np
import pytest

from experiments import train
from tests.e2e import runs


def assert_close_run(workdir, reference):
  """Assert that two runs, summed in other orders on other devices, are the same experiment."""
  curve, expected = runs.curve(workdir), runs.curve(reference)
  assert [line.keys() for line in curve] == [line.keys() for line in expected]
  assert [line["step"] for line in curve] == [line["step"] for line in expected]
  for name in ("loss", "test_bits_per_dim"):
    found, wanted = ([line[name] for line in c if name in line] for c in (curve, expected))
    np.testing.assert_allclose(found, wanted, rtol=2e-6, err_msg=name)


@pytest.mark.parametrize("mesh", ["data:8", "data:2,fsdp:4"])
def test_eight_devices_give_the_same_curve(uninterrupted, tmp_path, mesh):
  assert train.train(runs.tiny(), str(tmp_path / "run"), mesh)
  assert_close_run(tmp_path / "run", uninterrupted)


def test_two_processes_give_the_same_curve(uninterrupted, tmp_path):
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    port = listener.getsockname()[1]
  variables = {
    "NORMJAX_COORDINATOR": f"localhost:{port}",
    "NORMJAX_NUM_PROCESSES": "2",
    "JAX_NUM_CPU_DEVICES": "1",
  }
  arguments = ["-m", "experiments.train", runs.TINY, f"--workdir={tmp_path / 'run'}"]
  arguments += ["--mesh=data:2", "--distributed"]
  processes = [runs.start(*arguments, **variables, NORMJAX_PROCESS_ID=str(i)) for i in range(2)]
  for process in processes:
    code, out, errors = runs.finish(process)
    assert code == 0, errors
    assert "python -m experiments.evaluate" in out
  assert_close_run(tmp_path / "run", uninterrupted)
