"""docs/flows.md: its snippets run, and its table names what there is."""

import re
from pathlib import Path

import jax.numpy as jnp

from normjax import flows, models

TEXT = (Path(__file__).parents[1] / "docs" / "flows.md").read_text()
PEERS = "| feature | normjax | distrax | flowjax | bijx | nflows | normflows | zuko | FrEIA |"


def test_snippets_run_one_after_the_other():
  space = {}
  blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
  assert len(blocks) >= 4
  for block in blocks:
    exec(block, space)
    if "log_prob" in space:
      assert jnp.all(jnp.isfinite(space["log_prob"]))


def test_the_table_of_peers_names_what_there_is():
  rows = [line.split("|") for line in TEXT.splitlines() if line.count("|") == PEERS.count("|")]
  names = {n for row in rows for n in re.findall(r"`(?:models\.)?(\w+)", row[2])}
  assert len(names) > 80
  known = {*flows.__all__, *models.__all__, "cond", "experiments", "nnx"}
  assert names <= known, names - known


def test_every_gap_has_a_reason():
  table, reasons = TEXT.split("\n(1) ")
  numbers = set(re.findall(r"not built[^|]*(\(\d+\))", table))
  assert len(numbers) > 5
  for number in numbers - {"(1)"}:
    assert f"{number} " in reasons
