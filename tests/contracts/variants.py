"""Which rows of the tables are further configurations of a class that has a row of its own."""

import pytest


def variants_slow(rows):
  """Return the names of rows as parameters; variants ("Name, how" or "Name/how") are slow.

  Of a class that has variants only, the first is not.
  """
  variant = lambda name: "/" in name or ", " in name
  cls = lambda name: getattr(rows[name], "cls", name.split("/")[0])
  shown = {cls(name) for name in rows if not variant(name)}
  names = []
  for name in rows:
    slow = variant(name) and cls(name) in shown
    shown.add(cls(name))
    names.append(pytest.param(name, marks=pytest.mark.slow) if slow else name)
  return names
