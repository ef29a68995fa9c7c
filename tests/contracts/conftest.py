"""Tests of a row share what is compiled for it: they run one after the other, in one process."""

from pathlib import Path

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
  """Order the tests of each table by row, and within a row as they are written."""
  firsts = {}

  def place(index, item):
    params = getattr(item, "callspec", None) and item.callspec.params
    if item.path.parent != HERE or not params or "name" not in params:
      return index
    return firsts.setdefault((item.path, params["name"]), index)

  places = {item: place(index, item) for index, item in enumerate(items)}
  items.sort(key=places.__getitem__)
