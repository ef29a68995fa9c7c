"""Toy data: where the points lie, and the densities known in closed form."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import flows
from normjax.flows import _toy_densities, _toy_samplers

KEY = jax.random.key(0)


@pytest.mark.parametrize("name", sorted(flows.TOY_SAMPLERS))
def test_samplers_keep_the_protocol(name):
  sampler = flows.TOY_SAMPLERS[name]
  x = sampler(KEY, 200)
  assert x.shape == (200, 2)
  assert x.dtype == jnp.float32
  np.testing.assert_array_equal(x, sampler(KEY, 200))
  assert np.all(np.any(x != sampler(jax.random.key(1), 200), axis=1))
  assert np.all(np.abs(x) < 6)
  assert np.linalg.matrix_rank(np.cov(x.T)) == 2
  for n in (0, -3, 1.5):
    with pytest.raises(ValueError, match="n must be an int of at least 1"):
      sampler(KEY, n)


def test_registries_name_every_sampler_and_density():
  def public(module):
    functions = inspect.getmembers(module, inspect.isfunction)
    own = {name for name, member in functions if member.__module__ == module.__name__}
    return {name for name in own if not name.startswith("_")}

  assert public(_toy_samplers) == set(flows.TOY_SAMPLERS)
  assert public(_toy_densities) == {f"{name}_log_prob" for name in flows.TOY_LOG_PROBS}
  for name, sampler in flows.TOY_SAMPLERS.items():
    assert sampler is getattr(flows, name)
  for name, log_prob in flows.TOY_LOG_PROBS.items():
    assert log_prob is getattr(flows, f"{name}_log_prob")


def test_two_moons_lie_on_half_circles():
  x1, x2 = np.asarray(flows.two_moons(KEY, 500, noise=0.0)).T
  upper = np.isclose(np.hypot(x1, x2), 1, atol=1e-5) & (x2 > -1e-5)
  lower = np.isclose(np.hypot(x1 - 1, x2 - 0.5), 1, atol=1e-5) & (x2 < 0.5 + 1e-5)
  assert np.all(upper | lower)
  assert 0.4 < np.mean(upper) < 0.6


def test_circles_have_their_radii():
  radius = np.linalg.norm(flows.circles(KEY, 500, inner_radius=0.3, noise=0.0), axis=1)
  inner = np.isclose(radius, 0.3, atol=1e-5)
  assert np.all(inner | np.isclose(radius, 1, atol=1e-5))
  assert 0.4 < np.mean(inner) < 0.6


def test_noise_blurs_by_its_standard_deviation():
  for sampler in (flows.two_moons, flows.circles, flows.two_spirals):
    offset = sampler(KEY, 4000, noise=0.2) - sampler(KEY, 4000, noise=0.0)
    np.testing.assert_allclose(np.std(offset, axis=0), 0.2, rtol=0.05)


def test_two_spirals_wind_around_the_origin():
  x = np.asarray(flows.two_spirals(KEY, 500, noise=0.0)) * 3
  t = np.linspace(0, 3 * np.pi, 2000)
  arm = np.stack([-np.cos(t), np.sin(t)], axis=1) * t[:, None]
  to = lambda curve: np.min(np.linalg.norm(x[:, None] - curve[None], axis=-1), axis=1)
  one, other = to(arm), to(-arm)
  # The jitter is uniform on a square of side 1/2; the arms are about pi apart.
  assert np.all(np.minimum(one, other) < np.hypot(0.5, 0.5) + 1e-2)
  assert abs(np.mean(one < other) - 0.5) < 0.1
  # t = 3 pi sqrt(u) covers the disc evenly, out to its rim.
  radius = np.linalg.norm(x, axis=1)
  assert abs(np.mean(radius < 3 * np.pi * np.sqrt(0.5)) - 0.5) < 0.1
  assert np.max(radius) > 8


def test_pinwheel_arms_are_equal_up_to_rotation():
  x = np.asarray(flows.pinwheel(KEY, 20_000, radial_std=0.1, tangential_std=0.05))
  angle = np.arctan2(x[:, 1], x[:, 0]) - 0.25 * np.exp(np.linalg.norm(x, axis=1))
  arm = np.round(angle / (2 * np.pi / 5))
  residual = angle - arm * 2 * np.pi / 5
  np.testing.assert_allclose(np.mean(residual), 0, atol=0.01)
  assert np.std(residual) < 0.08
  _, counts = np.unique(np.mod(arm, 5), return_counts=True)
  np.testing.assert_allclose(counts / len(x), 0.2, atol=0.02)
  three = np.asarray(flows.pinwheel(KEY, 3000, num_arms=3, radial_std=0.0, tangential_std=0.0))
  assert len(np.unique(three.round(4), axis=0)) == 3


def test_checkerboard_entropy_is_log_32():
  x = flows.checkerboard(KEY, 20_000)
  np.testing.assert_allclose(-flows.checkerboard_log_prob(x), np.log(32), rtol=1e-6)
  # The density is constant on the dark cells, so they are hit equally often...
  cells, counts = np.unique(np.floor(np.asarray(x) / 2), axis=0, return_counts=True)
  assert len(cells) == 8
  np.testing.assert_allclose(counts / len(x), 1 / 8, atol=0.01)
  # ... and evenly.
  within = np.asarray(x) / 2 - np.floor(np.asarray(x) / 2)
  np.testing.assert_allclose(np.mean(within, axis=0), 0.5, atol=0.01)
  np.testing.assert_allclose(np.var(within, axis=0), 1 / 12, rtol=0.03)


def test_checkerboard_density_integrates_to_one():
  side = (np.arange(100) + 0.5) / 10 - 5  # midpoints on [-5, 5], aligned with the cells
  grid = jnp.asarray(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2), jnp.float32)
  mass = np.sum(np.exp(flows.checkerboard_log_prob(grid))) * 0.1**2
  np.testing.assert_allclose(mass, 1, rtol=1e-5)


def test_eight_gaussians_density():
  side = (np.arange(400) + 0.5) / 50 - 4
  grid = jnp.asarray(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2), jnp.float32)
  mass = np.sum(np.exp(flows.eight_gaussians_log_prob(grid, radius=1.5, std=0.2))) * 0.02**2
  np.testing.assert_allclose(mass, 1, rtol=1e-4)


@pytest.mark.parametrize("std", [0.05, 0.1])
def test_eight_gaussians_entropy_is_that_of_separate_modes(std):
  x = flows.eight_gaussians(KEY, 20_000, std=std)
  entropy = np.log(8) + np.log(2 * np.pi * np.e * std**2)
  actual = -np.mean(flows.eight_gaussians_log_prob(x, std=std))
  np.testing.assert_allclose(actual, entropy, atol=0.03)  # standard error 0.007


def test_log_probs_refuse_bad_points():
  for log_prob in flows.TOY_LOG_PROBS.values():
    for shape in ((2,), (3, 3)):
      with pytest.raises(ValueError, match=r"x must have shape \(b, 2\)"):
        log_prob(jnp.zeros(shape))
    # Densities of integers would be rounded.
    with pytest.raises(ValueError, match="x must be floating, got int32"):
      log_prob(jnp.ones((3, 2), int))
  with pytest.raises(ValueError, match="std must be above 0 and finite, got 0"):
    flows.eight_gaussians_log_prob(jnp.zeros((1, 2)), std=0.0)


def test_samplers_refuse_negative_spreads():
  for name, option in (
    ("two_moons", "noise"),
    ("circles", "noise"),
    ("two_spirals", "noise"),
    ("pinwheel", "radial_std"),
    ("pinwheel", "tangential_std"),
    ("eight_gaussians", "std"),
  ):
    for value in (-0.1, np.nan):
      with pytest.raises(ValueError, match=f"{option} must be at least 0, got {value}"):
        flows.TOY_SAMPLERS[name](KEY, 3, **{option: value})
  with pytest.raises(ValueError, match="num_arms must be at least 1, got 0"):
    flows.pinwheel(KEY, 3, num_arms=0)
