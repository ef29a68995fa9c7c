"""Which rows of the tables are further configurations of a layer that has a row of its own."""

import pytest


def variants_slow(rows):
  """Return the names of rows as parameters; variants ("Name, how" or "Name/how") are slow."""
  variant = lambda name: "/" in name or ", " in name
  return [pytest.param(n, marks=pytest.mark.slow) if variant(n) else n for n in rows]
