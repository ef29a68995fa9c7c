"""Set up every test process before jax starts: 8 CPU devices, strict ranks, quick compilation.

Compiling is most of the time that the tests take, so programs are compiled without most of their
optimizations, and without those emitters of fusions that take longest to compile.
`JAX_DISABLE_MOST_OPTIMIZATIONS=0 make test` tests what users run, in more time.
"""

import functools
import gc
import os

# For child processes too, and before jax is imported, which reads the flags once.
QUICKLY = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") not in ("0", "false")
if QUICKLY:
  os.environ["XLA_FLAGS"] = (
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
  )

import jax  # noqa: E402
import pytest  # noqa: E402
from jax._src.interpreters import mlir  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", QUICKLY)
# To make a context is a quarter of compiling one operation; what programs say stays as it is.
mlir.make_ir_context = functools.cache(mlir.make_ir_context)
# What is imported is never garbage, and what tests leave is little.
gc.freeze()
gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
  """Let all tests, in this process, in others and in other pytest workers, share compilations."""
  base = tmp_path_factory.getbasetemp()
  folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
  options = {
    "jax_compilation_cache_dir": str(folder),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  for name, value in options.items():
    os.environ[name.upper()] = str(value)
    jax.config.update(name, value)


@pytest.fixture(scope="module", autouse=True)
def context_of_a_module():
  """Forget the constants that the programs of a module of tests left in the shared context."""
  yield
  mlir.make_ir_context.cache_clear()


@pytest.fixture
def optimized():
  """Compile with all optimizations, where a test asserts something of the compiled program."""
  before = jax.config.values["jax_disable_most_optimizations"]
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", before)
