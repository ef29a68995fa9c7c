"""The comparison itself: it accepts rounding and nothing else."""

import json

import numpy as np
import pytest

from tests.reference.fixtures import altered, assert_matches, load_cases

RNG = np.random.default_rng(0)
ARRAYS = {
  "float64": RNG.normal(size=(3, 4)),
  "float32": RNG.normal(size=(3, 4)).astype(np.float32),
  "scalar": np.float64(2.5),
  "tiny": 1e-8 * RNG.normal(size=5),
  "zero": np.zeros(3),
  "zero up to rounding": 1e-16 * RNG.normal(size=3),
  "infinite": np.array([1.0, np.inf, -np.inf, np.nan]),
  "integer": np.arange(4),
  "boolean": np.array([True, False]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_accepts_the_array_and_rejects_the_altered_one(name):
  assert_matches(ARRAYS[name], ARRAYS[name], name)
  with pytest.raises(AssertionError, match=name):
    assert_matches(altered(ARRAYS[name]), ARRAYS[name], name)


def test_accepts_the_rounding_of_the_recorded_dtype():
  wide = RNG.normal(size=100)
  assert_matches(wide, wide.astype(np.float32), "stored as float32")
  assert_matches(wide * (1 + 1e-12), wide, "float64")
  with pytest.raises(AssertionError, match="float64"):
    assert_matches(wide.astype(np.float32), wide, "float64")


def test_rejects_another_shape_and_another_place_of_nan():
  with pytest.raises(AssertionError, match="shape"):
    assert_matches(np.ones((1, 3)), np.ones(3), "y")
  with pytest.raises(AssertionError, match="y"):
    assert_matches(np.array([np.nan, 1.0]), np.array([1.0, np.nan]), "y")


def test_load_cases_reads_another_folder_and_splits_at_the_first_slash(tmp_path, monkeypatch):
  meta = {"cases": {"a": {"eps": 0.5}}}
  np.savez(tmp_path / "some.npz", **{"a/p/w": np.ones(2), "a/x": np.zeros(1), "g": np.ones(3)},
           meta=json.dumps(meta))  # fmt: skip
  monkeypatch.setenv("NORMJAX_REFERENCE_DIR", str(tmp_path))
  cases, read = load_cases("some")
  assert read == meta
  assert {case: sorted(arrays) for case, arrays in cases.items()} == {"a": ["p/w", "x"], "": ["g"]}
