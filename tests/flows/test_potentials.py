"""Toy energies: the formulas as printed, and where those break down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import flows


def _as_printed(name, z):
  """Return the energy by the formulas of the paper, without any care for underflow."""
  z1, z2 = z[:, 0], z[:, 1]
  bump = lambda t: np.exp(-0.5 * t**2)
  w1, w2 = np.sin(2 * np.pi * z1 / 4), 3 * bump((z1 - 1) / 0.6)
  w3 = 3 / (1 + np.exp(-(z1 - 1) / 0.3))
  radius = np.hypot(z1, z2)
  sides = np.log(bump((z1 - 2) / 0.6) + bump((z1 + 2) / 0.6))
  return {
    "U1": 0.5 * ((radius - 2) / 0.4) ** 2 - sides,
    "U2": 0.5 * ((z2 - w1) / 0.4) ** 2,
    "U3": -np.log(bump((z2 - w1) / 0.35) + bump((z2 - w1 + w2) / 0.35)),
    "U4": -np.log(bump((z2 - w1) / 0.4) + bump((z2 - w1 + w3) / 0.35)),
  }[name]


@pytest.mark.parametrize("name", ["U1", "U2", "U3", "U4"])
def test_energies_are_the_papers(name):
  z = np.random.default_rng(0).normal(size=(200, 2)) * 2
  with jax.enable_x64(True):
    energy = flows.POTENTIALS[name](jnp.asarray(z))
  np.testing.assert_allclose(energy, _as_printed(name, z), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", sorted(flows.POTENTIALS))
def test_energies_and_forces_are_finite_where_densities_underflow(name):
  z = jnp.array([[0.0, 0.0], [50.0, -80.0], [-1e4, 1e4], [0.0, 1e3], [2.0, 0.0]], jnp.float32)
  energy, pull = jax.vjp(flows.POTENTIALS[name], z)
  (force,) = pull(jnp.ones(len(z)))
  assert np.all(np.isfinite(energy))
  assert np.all(np.isfinite(force))
  assert np.all(energy[1:4] > 1e3)


def test_u1_is_symmetric():
  z = jax.random.normal(jax.random.key(0), (20, 2)) * 2
  for sign in ([-1.0, 1.0], [1.0, -1.0]):
    mirrored = flows.energy_u1(z * jnp.array([sign]))
    np.testing.assert_allclose(mirrored, flows.energy_u1(z), rtol=1e-5)


def test_registry_names_every_energy():
  assert flows.POTENTIALS == {f"U{k}": getattr(flows, f"energy_u{k}") for k in range(1, 5)}


@pytest.mark.parametrize("name", sorted(flows.POTENTIALS))
def test_bad_points_are_refused(name):
  for shape in ((2,), (3, 1), (3, 3), (1, 3, 2)):
    with pytest.raises(ValueError, match=r"z must have shape \(b, 2\)"):
      flows.POTENTIALS[name](jnp.zeros(shape))
  with pytest.raises(ValueError, match="z must be floating"):
    flows.POTENTIALS[name](jnp.zeros((3, 2), int))
