import contextlib
import io
import runpy
import sys
import warnings

import jax
import pytest
from absl.testing import flagsaver


@pytest.fixture
def command(monkeypatch):
  """Return a function that runs a script as `python -m` does, in this process with its imports.

  It gives the exit code and what was printed to standard output and to standard error.
  """
  monkeypatch.setenv("NORMJAX_ALLOCATOR", "default")

  def run(module, *arguments):
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    out, errors = io.StringIO(), io.StringIO()
    with (
      flagsaver.flagsaver(),
      contextlib.redirect_stdout(out),
      contextlib.redirect_stderr(errors),
      jax.numpy_rank_promotion("allow"),
      # runpy warns of modules that a test has imported too.
      warnings.catch_warnings(action="ignore", category=RuntimeWarning),
      pytest.raises(SystemExit) as end,
    ):
      runpy.run_module(module, run_name="__main__", alter_sys=True)
    return end.value.code or 0, out.getvalue(), errors.getvalue()

  return run
