"""The injective flows of a sine: what is drawn, how a curve turns, and the command."""

import json

import jax
import numpy as np
import pytest

from experiments import injective_sine


def test_points_lie_about_a_sine():
  x = np.asarray(injective_sine.draw(jax.random.key(0), 20_000))
  # The nearest t of a point is unknown; along the middle, where the sine rises at a slope of 2, the
  # deviation of x2 - sin(2 x1) is that of 0.1 (n2 - 2 cos(2 t) n1).
  middle = np.abs(x[:, 0]) < 0.1
  off = x[middle, 1] - np.sin(2 * x[middle, 0])
  np.testing.assert_allclose([off.mean(), off.std()], [0, 0.1 * np.sqrt(5)], atol=0.015)
  np.testing.assert_allclose(x[:, 0].std(), np.sqrt(1.01), atol=0.02)


def test_turning_is_the_sum_of_angles():
  angle = np.linspace(0, np.pi, 200)
  half_turn = np.stack([np.cos(angle), np.sin(angle)], 1)
  # Its last tangents turn by pi in all, but for half a step at each end.
  np.testing.assert_allclose(injective_sine.turning(half_turn), np.pi * 198 / 199, rtol=1e-4)
  zigzag = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0], [3.0, 1.0]])
  np.testing.assert_allclose(injective_sine.turning(zigzag), np.pi, rtol=1e-5)


def test_the_command_writes_results_table_and_picture(command, tmp_path):
  code, printed, _ = command(
    "experiments.injective_sine", "--tiny", f"--out={tmp_path}", "--seeds=3"
  )
  assert code == 0
  assert printed.endswith((tmp_path / "table.md").read_text())
  results = json.loads((tmp_path / "results.json").read_text())
  assert results["steps"] == [2, 4]
  data, reconstruction = results["rows"]
  assert [row["jacobian_at"] for row in results["rows"]] == ["data", "reconstruction"]
  assert data["seed"] == 3
  # From one start on the same batches, so what differs is the option.
  for name in ("squared_error", "nll", "turning"):
    assert len(data[name]) == 2
    assert np.all(np.isfinite(data[name]))
    assert data[name] != reconstruction[name]
    np.testing.assert_allclose(data[name], reconstruction[name], rtol=0.05)
  assert (tmp_path / "injective_sine.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("seeds", ["", "0,x"])
def test_seeds_are_numbers(command, tmp_path, seeds):
  code, _, errors = command("experiments.injective_sine", f"--out={tmp_path}", f"--seeds={seeds}")
  assert code == 2
  assert "--seeds must be numbers like 0,1,2" in errors
