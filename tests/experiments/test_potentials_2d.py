"""Flows fitted to energies: normalizers in closed form, divergences by another sum, the command."""

import contextlib
import dataclasses
import io
import json
import math
import types

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import potentials_2d
from experiments.plane import mesh
from normjax import flows


@pytest.mark.parametrize(("name", "widths"), [("U2", 0.4), ("U3", 0.35 + 0.35), ("U4", 0.4 + 0.35)])
def test_normalizers_are_those_of_the_closed_forms(name, widths):
  # Across the wave: normal bumps, wherever it is; along it: flat for 8, and two half bumps of 0.4.
  root = math.sqrt(2 * math.pi)
  exact = math.log(widths * root * (8 + 0.4 * root))
  found = potentials_2d.log_normalizer(potentials_2d.walled(flows.POTENTIALS[name]), 300)
  np.testing.assert_allclose(found, exact, atol=1e-4)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """What the command wrote, what it printed, and the densities that it drew."""
  out, drawn, printed, run = tmp_path_factory.mktemp("out"), [], io.StringIO(), potentials_2d.run

  def kept(*arguments):
    results, densities = run(*arguments)
    drawn.append(densities)
    return results, densities

  flag = types.SimpleNamespace(out=str(out), tiny=True, only=["affine coupling"])
  with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
    patch.setattr(potentials_2d.flags, "FLAGS", flag)
    patch.setattr(potentials_2d, "run", kept)
    more = dataclasses.replace(potentials_2d.TINY, draws=4000, side=60)
    patch.setattr(potentials_2d, "TINY", more)
    potentials_2d.main(["potentials_2d"])
  return out, printed.getvalue(), drawn[0]


def test_divergences_are_those_of_the_densities_on_the_mesh(written):
  out, _, drawn = written
  area = (12 / 60) ** 2
  for row in json.loads((out / "results.json").read_text())["rows"]:
    p, q = (drawn[row["potential"]][name] for name in ("true", "affine coupling"))
    # From the energy itself, since p underflows where q does not.
    energy = potentials_2d.walled(flows.POTENTIALS[row["potential"]])
    log_p = -np.asarray(energy(jnp.asarray(mesh(-6, 6, 60)))).reshape(60, 60) - row["log_z"]
    np.testing.assert_allclose(np.exp(log_p), p, rtol=1e-4, atol=1e-30)
    divergence = np.sum(q * (np.log(q) - log_p)) * area
    assert abs(row["kl"] - divergence) < 5 * row["se"], row
    assert 1 / 4000 <= row["ess"] <= 1
    assert abs(row["mass"] - 1) < 1e-2
    assert abs(np.sum(p) * area - 1) < 1e-2


def test_the_command_writes_what_it_prints(written):
  out, printed, _ = written
  assert (out / "table.md").read_text() == printed
  rows = json.loads((out / "results.json").read_text())["rows"]
  lines = [[c.strip() for c in line.strip("|").split("|")] for line in printed.splitlines()[2:]]
  assert lines == [
    [
      *(row["potential"], f"{row['log_z']:.3f}"),
      *(f"{row['kl']:.4f} ± {row['se']:.4f}", f"{row['ess']:.3f}"),
    ]
    for row in rows
  ]
  assert (out / "potentials_2d.png").read_bytes().startswith(b"\x89PNG")
