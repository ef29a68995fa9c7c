"""Solutions of the inverse problem, deviations that overflow, and the command."""

import contextlib
import io
import json
import types

import jax
import numpy as np
import pytest

from experiments import exploding_inverse


def test_measurements_have_two_solutions():
  x, y = map(np.asarray, exploding_inverse.draw(jax.random.key(0), 20_000))
  # In the frame of y, solutions are (0.3 |y|^2, +-0.6 |y|^2) / |y| and noise.
  length = np.linalg.norm(y, axis=1, keepdims=True)
  along = np.sum(x * y, 1) / length[:, 0]
  across = (x[:, 1] * y[:, 0] - x[:, 0] * y[:, 1]) / length[:, 0]
  for noise in (along - 0.3 * length[:, 0], np.abs(across) - 0.6 * length[:, 0]):
    np.testing.assert_allclose([np.mean(noise), np.std(noise)], [0, 0.1], atol=0.003)
  np.testing.assert_allclose(np.mean(across > 0), 0.5, atol=0.02)
  # Of unit length but for the noise, in eight directions.
  np.testing.assert_allclose(np.mean(length**2), 1 + 2 * 0.1**2, atol=0.01)
  turns = np.round(np.arctan2(y[:, 1], y[:, 0]) / (np.pi / 4)) % 8
  np.testing.assert_allclose(np.bincount(turns.astype(int), minlength=8) / 20_000, 1 / 8, atol=0.01)


def test_deviations_are_those_of_the_worse_coordinate_whatever_overflows():
  x = np.zeros((4, 2, 2), np.float32)
  x[:, 0] = [[1, 8], [-1, 8], [1, 8], [-1, 8]]
  x[:, 1] = [[0, 0], [np.inf, 0], [0, 0], [-np.inf, 0]]
  found = exploding_inverse.deviations(x)
  np.testing.assert_allclose(found, [1, np.finfo(np.float32).max / 2**0.5], rtol=1e-6)


def test_the_command_writes_what_it_prints(tmp_path):
  printed, flag = io.StringIO(), types.SimpleNamespace(out=str(tmp_path), tiny=True, seeds=["0"])
  kinds = {"modified spline": exploding_inverse.KINDS["modified spline"]}
  with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
    patch.setattr(exploding_inverse.flags, "FLAGS", flag)
    patch.setattr(exploding_inverse, "KINDS", kinds)
    exploding_inverse.main(["exploding_inverse"])
    flag.seeds = ["0", "x"]
    with pytest.raises(ValueError, match="--seeds must be numbers like 0,1,2, got '0,x'"):
      exploding_inverse.main(["exploding_inverse"])
  assert (tmp_path / "table.md").read_text() == printed.getvalue()
  (row,) = json.loads((tmp_path / "results.json").read_text())["rows"]
  assert (row["kind"], row["seed"]) == ("modified spline", 0)
  cells = [cell.strip() for cell in printed.getvalue().splitlines()[2].strip("|").split("|")]
  assert cells[1] == f"{row['nll']:.2f}"
  assert cells[2:-1] == [
    f"{row['median'][str(m)]:.2f}, {row['largest'][str(m)]:.2f}" for m in exploding_inverse.FACTORS
  ]
  # Two layers of splines add to draws of the prior at most two boxes and what shifts learned.
  assert all(value < 1 for value in row["largest"].values())
  assert (tmp_path / "exploding_inverse.png").read_bytes().startswith(b"\x89PNG")
