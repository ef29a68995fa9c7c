"""Compiling is nearly all the time that these tests take; fast code isn't needed."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def _compiled_plainly():
  before = jax.config.values["jax_disable_most_optimizations"]
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)
