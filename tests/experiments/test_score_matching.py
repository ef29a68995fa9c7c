"""The comparison of likelihood and score matching as a command, and the task of its digits."""

import json

import numpy as np
import pytest

from experiments import score_matching, tasks
from experiments.configs import ebflow_digits


def test_command_writes_what_it_prints(command, tmp_path):
  out = tmp_path / "run"
  code, printed, errors = command("experiments.score_matching", f"--out={out}", "--tiny")
  assert code == 0, errors
  assert (out / "table.md").read_text() == printed
  results = json.loads((out / "results.json").read_text())
  assert [(r["dim"], r["objective"]) for r in results["time"]] == [
    (4, name) for name in score_matching.LABELS
  ]
  assert all(0 < r["least"] <= r["median"] for r in results["time"])
  assert [r["objective"] for r in results["sine"]] == ["fdssm"]
  for row in results["sine"] + results["digits"]:
    assert len(row["last"]) == len(row["mean"]) == 2
    assert all(1 < v < 60 for v in row["last"] + row["mean"])
    assert score_matching.spread(row["mean"]) in printed
  # Seeds differ, and so do both sides of the logit.
  assert len({v for row in results["digits"] for v in row["last"]}) == 4
  assert (out / "score_matching.png").read_bytes().startswith(b"\x89PNG")


def test_refuses_other_parts():
  assert score_matching.chosen(["digits", "time"]) == ("time", "digits")
  for only in (["time", "rings"], []):
    with pytest.raises(ValueError, match="--only must be some of time,sine,digits"):
      score_matching.chosen(only)


def test_spread_counts_what_failed():
  assert score_matching.spread([1.0, 3.0]) == "2.000 ± 1.414"
  assert score_matching.spread([1.0, np.nan, np.inf]) == "2 of 3 fail"


def test_config_refuses_other_flows():
  config = ebflow_digits.get_config("tiny")
  config.flow = "glow"
  with pytest.raises(ValueError, match=r"config\.flow"):
    tasks.make(config)


def test_config_refuses_noise_that_training_would_not_add():
  config = ebflow_digits.get_config("tiny")
  config.noise = 0.1
  with pytest.raises(ValueError, match=r"config\.noise must be 0, .*got 0\.1"):
    tasks.make(config)


def test_config_refuses_other_objectives():
  config = ebflow_digits.get_config("tiny")
  config.objective.name = "mle"
  with pytest.raises(ValueError, match=r"config\.objective\.name"):
    tasks.make(config)
