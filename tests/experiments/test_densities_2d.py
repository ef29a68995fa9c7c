"""Two-dimensional densities: masses, entropies and the command; nothing is trained for long."""

import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import densities_2d
from normjax import flows


def test_a_mesh_integrates_a_density_and_starts_at_the_top_left():
  points = densities_2d.mesh(-6.0, 6.0, 60)
  np.testing.assert_allclose(points[0], [-5.9, 5.9], rtol=1e-6)
  np.testing.assert_allclose(points[59], [5.9, 5.9], rtol=1e-6)
  log_prob = flows.StandardNormal((2,)).log_prob(jnp.asarray(points))
  np.testing.assert_allclose(np.exp(log_prob).sum() * 0.2**2, 1, rtol=1e-5)


def test_entropies_are_those_of_the_closed_forms():
  points = flows.checkerboard(jax.random.key(0), 100)
  np.testing.assert_allclose(densities_2d.entropy("checkerboard", points), math.log(32), rtol=1e-6)
  assert densities_2d.entropy("two_moons", points) is None


def test_command_writes_what_it_prints(tmp_path):
  out = tmp_path / "run"
  done = subprocess.run(
    [
      *(sys.executable, "-m", "experiments.densities_2d", "--tiny", f"--out={out}"),
      "--only=affine coupling,spline coupling",
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  rows = json.loads((out / "results.json").read_text())["rows"]
  assert {(row["density"], row["family"]) for row in rows} == {
    (name, family)
    for name in flows.TOY_SAMPLERS
    for family in ("affine coupling", "spline coupling")
  }
  assert (out / "table.md").read_text() == done.stdout
  for line in done.stdout.splitlines()[2:]:
    name, exact, *scores, _ = (cell.strip() for cell in line.strip("|").split("|"))
    wanted = [row for row in rows if row["density"] == name]
    assert scores == [f"{row['nll']:.3f} ± {row['se']:.3f}" for row in wanted]
    assert bool(exact) == (name in flows.TOY_LOG_PROBS)
  assert (out / "densities_2d.png").read_bytes().startswith(b"\x89PNG")


def test_unknown_families_are_refused(tmp_path):
  done = subprocess.run(
    [sys.executable, "-m", "experiments.densities_2d", f"--out={tmp_path}", "--only=maf"],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert "--only must be one of affine coupling" in done.stderr


def test_every_family_is_a_flow_over_points():
  for family, make in densities_2d.FAMILIES.items():
    flow = nnx.eval_shape(lambda make=make: make(densities_2d.TINY, nnx.Rngs(0)))
    assert isinstance(flow, flows.Flow), family
