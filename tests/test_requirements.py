"""requirements.txt pins what pyproject.toml asks for: all of it, nothing else, as installed."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
  name: wanted for name, wanted in PROJECT["optional-dependencies"].items() if name != "docs"
}
WANTED = [Requirement(w) for w in sum(EXTRAS.values(), PROJECT["dependencies"])]
LINES = [
  line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")
]
PINS = {
  canonicalize_name(name): Version(version)
  for name, version in (line.split("==") for line in LINES)
}


def needed(requirement):
  """Yield the requirements that an installed distribution adds to `requirement`."""
  for text in importlib.metadata.requires(requirement.name) or []:
    further = Requirement(text)
    # An extra that was not asked for adds nothing.
    if further.marker is None or any(
      further.marker.evaluate({"extra": extra}) for extra in ["", *requirement.extras]
    ):
      yield further


def closure():
  """Return every requirement that is reached from pyproject.toml, one per name and extras."""
  found, waiting = {}, list(WANTED)
  while waiting:
    requirement = waiting.pop()
    key = canonicalize_name(requirement.name), frozenset(requirement.extras)
    if key not in found:
      found[key] = requirement
      waiting.extend(needed(requirement))
  return found


def test_every_line_is_an_exact_pin():
  assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in LINES)
  assert len(PINS) == len(LINES)


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_pin_lies_in_the_range_of_pyproject(wanted):
  assert wanted.specifier.contains(PINS[canonicalize_name(wanted.name)])


def test_pins_are_what_pyproject_needs():
  assert {name for name, _ in closure()} == set(PINS)


@pytest.mark.parametrize("name", PINS)
def test_pin_is_installed(name):
  assert Version(importlib.metadata.version(name)) == PINS[name]


def test_python_versions_agree():
  config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
  assert PROJECT["requires-python"] == ">=3.11"
  assert config["basedpyright"]["pythonVersion"] == "3.11"
  assert config["ruff"]["target-version"] == "py311"
  assert "3.11" in (ROOT / "Makefile").read_text()
