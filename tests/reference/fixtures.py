"""Recorded numbers of other implementations: how the tests read them and compare with them.

A fixture is one `.npz` file: arrays named `case/array` and a JSON string `meta` with the settings
of every case. `$NORMJAX_REFERENCE_DIR` points the tests at another folder of such files.
"""

import json
import os
import pathlib

import numpy as np
import pytest

# Relative to the largest entry. Arrays stored as float32 were computed wider and then rounded.
_RTOL = {"float64": 1e-9, "complex128": 1e-9, "float32": 1e-5, "float16": 1e-3}
# What is left of an exact zero after float64 arithmetic, and how far from it we may land.
_ZERO_PEAK = 1e-11
_ZERO_ATOL = 1e-9
# A few float64 roundings of numbers of order one, for small results of large cancelling terms.
_ROUNDING = 1e-12


def reference_dir() -> pathlib.Path:
  """Return the folder of the fixtures: `$NORMJAX_REFERENCE_DIR`, or the copies kept here."""
  default = pathlib.Path(__file__).parent / "data"
  return pathlib.Path(os.environ.get("NORMJAX_REFERENCE_DIR", default))


def load_cases(slug: str) -> tuple[dict[str, dict[str, np.ndarray]], dict]:
  """Return `(cases, meta)` of the fixture `slug`.

  Args:
    slug: name of the file without `.npz`.

  Returns:
    `cases[case][name]`, where `case` is everything before the first "/" of the stored key (arrays
    without one belong to the case ""), and the decoded `meta`.
  """
  cases = {}
  with np.load(reference_dir() / f"{slug}.npz", allow_pickle=False) as stored:
    meta = json.loads(str(stored["meta"]))
    for key in stored.files:
      if key != "meta":
        case, name = key.split("/", 1) if "/" in key else ("", key)
        cases.setdefault(case, {})[name] = stored[key]
  return cases, meta


def assert_matches(actual, expected, name: str) -> None:
  """Compare `actual` with a recorded array at the tolerance of the recorded dtype.

  Integers and booleans must be equal; NaN and infinities must stand in the same places. An array
  that is zero up to rounding is compared absolutely.

  Args:
    actual: what we computed.
    expected: what the fixture holds.
    name: how an error calls the array.

  Raises:
    AssertionError: if shapes differ or an entry is off.
  """
  actual, expected = np.asarray(actual), np.asarray(expected)
  assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, recorded {expected.shape}"
  if expected.dtype.name not in _RTOL:
    np.testing.assert_array_equal(actual, expected, err_msg=name)
    return
  finite = np.isfinite(expected)
  np.testing.assert_array_equal(actual[~finite], expected[~finite], err_msg=name)
  peak = np.max(np.abs(expected[finite]), initial=0.0)
  if peak <= _ZERO_PEAK:
    atol = _ZERO_ATOL
  else:
    atol = max(_RTOL[expected.dtype.name] * peak, min(_ROUNDING, 1e-3 * peak))
  np.testing.assert_allclose(actual[finite], expected[finite], rtol=0, atol=atol, err_msg=name)


def altered(expected: np.ndarray) -> np.ndarray:
  """Return `expected` changed by as little as a comparison must notice.

  Args:
    expected: a recorded array.

  Returns:
    The array times 1.01; plus 1e-3 if it is zero up to rounding; with its first entry increased
    by one (negated for booleans) if it is not floating.
  """
  changed = np.array(expected)
  if changed.dtype.kind not in "fc":
    first = (0,) * changed.ndim
    changed[first] = not changed[first] if changed.dtype.kind == "b" else changed[first] + 1
    return changed
  peak = np.max(np.abs(changed[np.isfinite(changed)]), initial=0.0)
  return changed * 1.01 if peak > _ZERO_PEAK else changed + 1e-3


def assert_described(cases: dict, meta: dict) -> None:
  """Check that a fixture holds cases, and settings for exactly these.

  Args:
    cases: what `load_cases` returns.
    meta: likewise.

  Raises:
    AssertionError: if not.
  """
  assert cases
  assert set(cases) == set(meta["cases"])


def assert_case_matches(computed: dict, recorded: dict, case: str) -> None:
  """Compare all results of a case with what is recorded of it: no array more, and none less.

  Args:
    computed: our arrays by their names.
    recorded: those of the fixture, inputs left out.
    case: how errors call the case.

  Raises:
    AssertionError: if the names differ or an array is off.
  """
  assert recorded.keys() == computed.keys(), (
    f"{case}: recorded {sorted(recorded)}, computed {sorted(computed)}"
  )
  for array, expected in recorded.items():
    assert_matches(computed[array], expected, f"{case}/{array}")


def assert_alterations_are_noticed(computed: dict, recorded: dict, case: str) -> None:
  """Check that the comparison of a case fails for each recorded array when that array is altered.

  Args:
    computed: our arrays by their names.
    recorded: those of the fixture, inputs left out.
    case: how errors call the case.

  Raises:
    AssertionError: if an alteration passes.
  """
  for array, expected in recorded.items():
    with pytest.raises(AssertionError, match=f"{case}/{array}"):
      assert_matches(computed[array], altered(expected), f"{case}/{array}")
