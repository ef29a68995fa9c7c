"""Energy-based flows of convolutions: energies without determinants, densities with them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import flows, models

SHAPE = (2, 3, 2)
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def moved():
  """A flow away from its start, and images, in float64."""
  with jax.enable_x64(True):
    flow = models.ebflow_conv(SHAPE, num_layers=3, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(flow)
    move = lambda p: p + 0.1 * jnp.asarray(RNG.standard_normal(p.shape))
    return graphdef, jax.tree.map(move, state), jnp.asarray(RNG.standard_normal((2, *SHAPE)))


def test_density_and_samples_are_those_of_the_dense_map(moved):
  graphdef, state, x = moved

  @jax.jit
  def run(state, x):
    flow = nnx.merge(graphdef, state)
    flat = lambda v: flow.bijector.forward(v.reshape(1, *SHAPE))[0].reshape(-1)
    samples, sampled = flow.sample_and_log_prob(jax.random.key(0), 2)
    x = jnp.concatenate([x, samples])
    z, log_det = flow.bijector.forward(x)
    return {
      "z": z,
      "log_prob": flow.base.log_prob(z) + log_det,
      "sampled": sampled,
      "energy": flow.energy(x),
      "jacobian": jax.lax.map(jax.jacfwd(flat), x.reshape(4, -1)),
    }

  with jax.enable_x64(True):
    got = jax.tree.map(np.asarray, run(state, x))
  log_det = np.linalg.slogdet(got["jacobian"])[1]
  expected = log_det - np.sum(got["z"] ** 2, (1, 2, 3)) / 2 - 6 * np.log(2 * np.pi)
  np.testing.assert_allclose(got["log_prob"], expected, rtol=1e-11)
  # Latents of samples are those that were drawn.
  np.testing.assert_allclose(got["sampled"], got["log_prob"][2:], rtol=1e-9)
  np.testing.assert_allclose(np.ptp(got["energy"] + got["log_prob"]), 0, atol=1e-11)
  assert np.ptp(log_det) > 1e-3


def test_training_takes_no_determinant(moved):
  graphdef, state, x = moved

  def loss(state, x):
    energy = nnx.merge(graphdef, state).energy
    return flows.denoising_score_matching(energy, x, jnp.ones_like(x), 0.1).mean()

  decomposes = lambda f: re.search(r" = (lu|triangular_solve)\b", str(jax.make_jaxpr(f)(state, x)))
  with jax.enable_x64(True):
    assert not decomposes(jax.grad(loss))
    assert decomposes(lambda state, x: nnx.merge(graphdef, state).log_prob(x))
    gradients = jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(state, x))
  assert all(np.all(np.isfinite(g)) and np.any(g != 0) for g in jax.tree.leaves(gradients))


def test_starts_near_the_identity_with_bends():
  flow = models.ebflow_conv(
    (2, 2, 4), num_layers=2, kernel_size=5, alpha=0.5, rngs=nnx.Rngs(0)
  )  # fmt: skip
  x = jnp.asarray(RNG.standard_normal((3, 2, 2, 4)), jnp.float32)
  z, bent = jax.jit(
    lambda x: (flow.bijector.forward_varying(x)[0], flows.SmoothLeakyReLU(0.5).forward(x)[0])
  )(x)
  biases = np.concatenate([b.ravel() for b in (
    flow.bijector.bijectors[0].layers.bijectors[0].bias[...], flow.bijector.bijectors[1].bias[...]
  )])  # fmt: skip
  assert np.all(biases != 0)
  # 0.01 / (5 sqrt(4)) is their deviation.
  np.testing.assert_allclose(np.std(biases), 1e-3, rtol=0.7)
  np.testing.assert_allclose(z, bent, atol=0.01)
  assert np.max(np.abs(z - bent)) > 0


def test_refusals():
  make = lambda shape=SHAPE, **options: models.ebflow_conv(shape, rngs=nnx.Rngs(0), **options)
  for call, message in (
    (lambda: make((4, 4)), r"shape must be \(height, width, channels\), got \(4, 4\)"),
    (lambda: make((4, 4, 0)), "shape must be a tuple or list of positive ints"),
    (lambda: make(num_layers=0), "num_layers must be at least 1, got 0"),
    (lambda: make(kernel_size=2), "kernel_size must be an odd int"),
    (lambda: make(alpha=0.0), "alpha must be in"),
    (lambda: make(num_layers=1).energy(jnp.ones((1, 2, 3, 1))), r"x must have shape \(b, h, w, 2"),
  ):
    with pytest.raises(ValueError, match=message):
      call()
  large = make((40, 40, 2), num_layers=1)
  x = jnp.zeros((1, 40, 40, 2))
  assert jax.eval_shape(large.energy, x).shape == (1,)
  with pytest.raises(ValueError, match="at most 3072 entries"):
    jax.eval_shape(large.log_prob, x)
