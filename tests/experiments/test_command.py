"""What command lines share: folders, lists of numbers, and what they refuse."""

import pytest

from experiments.command import numbers


def test_lists_of_numbers_name_their_flag():
  assert numbers("sizes", ["1", "16"], int) == [1, 16]
  with pytest.raises(ValueError, match="--temperatures must be numbers like 0.7,1.0, got '1,a'"):
    numbers("temperatures", ["1", "a"], float)


def test_results_are_not_overwritten_and_home_is_found(command, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "results.json").write_text("{}")
  code, _, errors = command("experiments.densities_2d", "--tiny", "--out=~")
  assert code == 2
  assert f"--out={tmp_path} holds results.json already" in errors


def test_rows_of_one_name_and_no_workdirs_are_refused(command, tmp_path):
  out = f"--out={tmp_path}/rows.png"
  code, _, errors = command("experiments.sample_rows", "--rows=A=x,A=y", out)
  assert (code, "--rows must have different names, got A=x, A=y" in errors) == (2, True)
  code, _, errors = command("experiments.sampling_speed", "--workdirs=")
  assert (code, "--workdirs must name a workdir" in errors) == (2, True)
