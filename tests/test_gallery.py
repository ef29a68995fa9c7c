"""docs/norms.md: every norm has an entry, and its snippets run."""

import re
from pathlib import Path

import jax.numpy as jnp
import pytest

from normjax import norms

TEXT = (Path(__file__).parents[1] / "docs" / "norms.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
ENTRIES = dict(re.findall(r"### `(\w+)`\n.*?```python\n(.*?)```", TEXT, re.DOTALL))


@pytest.fixture(scope="module")
def names():
  namespace = {}
  exec(BLOCKS[0], namespace)
  return namespace


def test_every_norm_that_a_config_can_name_has_an_entry():
  assert set(norms.NAMES) <= set(ENTRIES)
  assert len(ENTRIES) == len(BLOCKS) - 1
  for name in ENTRIES:
    assert name in norms.NAMES or name in norms.__all__


@pytest.mark.parametrize("entry", ENTRIES)
def test_snippets_run_as_they_stand(entry, names):
  space = dict(names)
  exec(ENTRIES[entry], space)
  given = space["image"] if "(image" in ENTRIES[entry] else space["x"]
  assert space["y"].shape == given.shape
  assert jnp.all(jnp.isfinite(space["y"]))
  assert not jnp.array_equal(space["y"], given)
