"""The allocator of CPU runs: chosen by the environment, set by one restart."""

import json
import os
import subprocess
import sys

import pytest

from experiments import allocator

SCRIPT = """
import json, os, sys
from experiments import allocator
allocator.pool_on_cpu()
print(json.dumps([sys.argv[1:], {k: os.environ.get(k) for k in allocator.POOLED}]))
"""


def run(**environ):
  clean = {k: v for k, v in os.environ.items() if k not in allocator.POOLED}
  clean.pop("NORMJAX_ALLOCATOR", None)
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT, "--one=1", "two"],
    env={**clean, "JAX_PLATFORMS": "cpu", **environ}, capture_output=True, text=True, check=True,
  )  # fmt: skip
  return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are glibc's")
def test_a_script_starts_itself_again_once_with_its_arguments():
  assert run() == [["--one=1", "two"], allocator.POOLED]


def test_it_is_switched_off_by_the_environment():
  assert set(run(NORMJAX_ALLOCATOR="default")[1].values()) == {None}


def test_settings_of_the_user_and_accelerators_are_left_alone():
  assert not allocator.wanted({"JAX_PLATFORMS": "cpu", "MALLOC_TOP_PAD_": "1"})
  assert not allocator.wanted({"JAX_PLATFORMS": "cuda"})
  assert not allocator.wanted({"JAX_PLATFORMS": "cpu", **allocator.POOLED})
  with pytest.raises(ValueError, match="NORMJAX_ALLOCATOR must be 'pooled' or 'default', got 'x'"):
    allocator.wanted({"NORMJAX_ALLOCATOR": "x"})
