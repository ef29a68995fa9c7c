"""Two-dimensional densities: masses, entropies and the command; nothing is trained for long."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import densities_2d, families_2d, plane, scan_train
from experiments.families_2d import FAMILIES
from normjax import flows


def test_a_mesh_integrates_a_density_and_starts_at_the_top_left():
  points = plane.mesh(-6.0, 6.0, 60)
  np.testing.assert_allclose(points[0], [-5.9, 5.9], rtol=1e-6)
  np.testing.assert_allclose(points[59], [5.9, 5.9], rtol=1e-6)
  log_prob = flows.StandardNormal((2,)).log_prob(jnp.asarray(points))
  np.testing.assert_allclose(np.exp(log_prob).sum() * 0.2**2, 1, rtol=1e-5)


def test_entropies_are_those_of_the_closed_forms():
  points = flows.checkerboard(jax.random.key(0), 100)
  np.testing.assert_allclose(densities_2d.entropy("checkerboard", points), math.log(32), rtol=1e-6)
  assert densities_2d.entropy("two_moons", points) is None


def test_command_writes_what_it_prints(command, tmp_path):
  out, only = tmp_path / "run", "--only=affine coupling,spline coupling"
  code, printed, errors = command("experiments.densities_2d", "--tiny", f"--out={out}", only)
  assert code == 0, errors
  rows = json.loads((out / "results.json").read_text())["rows"]
  assert {(row["density"], row["family"]) for row in rows} == {
    (name, family)
    for name in flows.TOY_SAMPLERS
    for family in ("affine coupling", "spline coupling")
  }
  assert all(0.5 < row["mass"] < 1.1 for row in rows)  # nearly normal, on squares that hold most
  assert (out / "table.md").read_text() == printed
  head, _, known, *lines = (
    [cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines()
  )
  assert head == ["family", *flows.TOY_SAMPLERS, "mass"]
  for name, exact in zip(flows.TOY_SAMPLERS, known[1:-1], strict=True):
    assert bool(exact) == (name in flows.TOY_LOG_PROBS)
  for family, *scores, masses in lines:
    own = [row for row in rows if row["family"] == family]
    assert scores == [f"{row['nll']:.3f} ± {row['se']:.3f}" for row in own]
    found = [row["mass"] for row in own]
    assert masses == f"{min(found):.3f} to {max(found):.3f}"
  assert (out / "densities_2d.png").read_bytes().startswith(b"\x89PNG")


def test_unknown_families_are_refused(command, tmp_path):
  code, _, errors = command("experiments.densities_2d", f"--out={tmp_path}", "--only=maf")
  assert code == 2
  assert "--only must be one of affine coupling" in errors


def test_every_family_is_a_density_of_points():
  for family, make in FAMILIES.items():
    make = lambda make=make: make(families_2d.Size(2, 4), nnx.Rngs(0)).log_prob(jnp.zeros((3, 2)))
    assert jax.eval_shape(make).shape == (3,), family


def test_families_that_lack_their_package_are_left_out_or_refused(monkeypatch):
  assert families_2d.chosen([]) == [name for name in FAMILIES if name != "continuous"]
  assert families_2d.chosen(["continuous", "MAF"]) == ["continuous", "MAF"]
  monkeypatch.setattr(families_2d.importlib.util, "find_spec", lambda name: None)
  assert families_2d.chosen(["MAF"]) == ["MAF"]
  with pytest.raises(ValueError, match="--only: 'continuous' needs diffrax: pip install diffrax"):
    families_2d.chosen(["MAF", "continuous"])


def test_training_minimizes_what_it_is_told_to_until_the_end():
  def objective(flow, key, progress):
    target = jnp.where(progress > 0.2, 2.0, -3.0) + 0.1 * jax.random.normal(key)
    return jnp.mean((flow.log_prob(jnp.zeros((1, 2))) * 0 + flow.bijector.shift[...] - target) ** 2)

  flow = flows.Flow(flows.ActNorm(2), flows.StandardNormal((2,)))
  adam = scan_train.falling_adam(0.1, 400)
  trained = jax.jit(lambda: scan_train.train(flow, objective, 400, adam, jax.random.key(0)))()
  np.testing.assert_allclose(trained.bijector.shift[...], 2, atol=0.1)


def test_scores_are_those_of_held_out_points_under_a_flow_that_starts_from_the_pool():
  points = 5 + 3 * np.random.default_rng(0).standard_normal((2, 200, 2)).astype(np.float32)
  make = lambda size, rngs: flows.Flow(flows.ActNorm(2), flows.StandardNormal((2,)))
  settings = dataclasses.replace(densities_2d.TINY, learning_rate=1e-4)
  run = densities_2d.fit(make, settings)
  score, error, log_prob, samples = run(points[0], points[1], points[1], jax.random.key(0))
  mean, std = points[0].mean(0), points[0].std(0)
  z = (points[1] - mean) / std
  exact = np.sum(z**2, axis=1) / 2 + np.log(2 * np.pi) + np.log(std).sum()
  np.testing.assert_allclose(-log_prob, exact, atol=5e-3)
  np.testing.assert_allclose(score, exact.mean(), atol=1e-3)
  np.testing.assert_allclose(error, exact.std() / np.sqrt(200), rtol=1e-2)
  np.testing.assert_allclose(samples.mean(0), mean, atol=1)
