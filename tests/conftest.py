"""Set up every test process before jax starts: 8 CPU devices, strict ranks, quick compilation.

Compiling is nearly all the time that the tests take, so programs are compiled without most of their
optimizations. `JAX_DISABLE_MOST_OPTIMIZATIONS=0 make test` tests what users run, in more time.
"""

import os

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
QUICKLY = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # for child processes too
jax.config.update("jax_disable_most_optimizations", QUICKLY not in ("0", "false"))


@pytest.fixture
def optimized():
  """Compile with all optimizations, where a test asserts something of the compiled program."""
  before = jax.config.values["jax_disable_most_optimizations"]
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", before)
