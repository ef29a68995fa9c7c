"""Learned dequantization: the bound against exact probabilities, and the density of the noise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import stats

from normjax import flows, models

KEY = jax.random.key(0)
LOC, SCALE, LEVELS, LOW, LEVEL = 0.3, 0.12, 4.0, -0.5, 2


def _normal():
  return flows.Flow(flows.ElementwiseAffine(LOC, SCALE), flows.StandardNormal((1,)))


def _log_mass():
  """Return log P(q) + log(levels) of one level, by scipy."""
  edges = stats.norm(LOC, SCALE).cdf(LOW + np.array([LEVEL, LEVEL + 1]) / LEVELS)
  return np.log(edges[1] - edges[0]) + np.log(LEVELS)


def test_noise_of_the_posterior_makes_the_bound_exact():
  with jax.enable_x64(True):
    image = jnp.full((5, 1), LEVEL)
    # x = LOW + (q + u) / LEVELS is normal within its bin, so u is a truncated normal.
    loc, scale = (LOC - LOW) * LEVELS - LEVEL, SCALE * LEVELS
    base = flows.TruncatedNormal(
      (1,), low=-loc / scale, high=(1 - loc) / scale, param_dtype="float64"
    )
    posterior = flows.Flow(flows.ElementwiseAffine(loc, scale), base)
    for num_samples in (1, 3):
      run = lambda image, k=num_samples: flows.dequantized_log_prob(
        _normal(), posterior, image, KEY, levels=LEVELS, low=LOW, num_samples=k
      )
      bound = jax.jit(run)(image)
      np.testing.assert_allclose(bound, _log_mass(), rtol=1e-10)


def test_bounds_grow_with_the_number_of_samples_and_stay_below_the_truth():
  image = jnp.full((4000, 1), LEVEL)
  bounds, errors = [], []
  for num_samples in (1, 4, 32):
    bound = jax.jit(
      lambda image, k=num_samples: flows.dequantized_log_prob(
        _normal(), None, image, KEY, levels=LEVELS, low=LOW, num_samples=k
      )
    )(image)
    bounds.append(float(np.mean(bound)))
    errors.append(float(np.std(bound)) / np.sqrt(len(image)))
  assert np.all(np.diff(bounds) > 2 * np.add(errors[1:], errors[:-1]))
  assert bounds[-1] <= _log_mass() + 3 * errors[-1]
  np.testing.assert_allclose(bounds[-1], _log_mass(), atol=0.03)
  bits = flows.bits_per_dim(jnp.asarray([bounds[-1]]), (1,), LEVELS)
  np.testing.assert_allclose(bits, -(_log_mass() - np.log(LEVELS)) / np.log(2), atol=0.05)


def _moved(module, seed=0):
  rng = np.random.default_rng(seed)
  move = lambda p: jnp.asarray(p + 0.3 * rng.normal(size=p.shape), p.dtype)
  nnx.update(module, jax.tree.map(move, nnx.state(module, nnx.Param)))
  return module


def test_noise_has_the_density_that_is_told():
  with jax.enable_x64(True):
    dequantizer = _moved(
      models.VariationalDequantizer(
        [2, 1, 1], num_levels=5, width=4, param_dtype="float64", rngs=nnx.Rngs(0)
      )
    )
    steps = 80
    logit = (np.arange(steps) + 0.5) / steps * 20 - 10
    t = 1 / (1 + np.exp(-logit))
    weight = t * (1 - t) * 20 / steps
    grid = jnp.asarray(np.stack(np.meshgrid(t, t, indexing="ij"), axis=-1).reshape(-1, 2, 1, 1))
    image = jnp.asarray([[[[0]], [[3]]]], jnp.uint8)

    @jax.jit
    def run(grid):
      noise, log_prob = dequantizer.sample_and_log_prob(KEY, 300, jnp.tile(image, (300, 1, 1, 1)))
      other = jnp.tile(image[:, ::-1], (300, 1, 1, 1))
      again = dequantizer.log_prob(noise, jnp.tile(image, (300, 1, 1, 1)))
      density = jnp.exp(dequantizer.log_prob(grid, jnp.tile(image, (len(grid), 1, 1, 1))))
      return noise, log_prob, again, dequantizer.log_prob(noise, other), density

    noise, log_prob, again, other, density = map(np.asarray, run(grid))
  assert noise.shape == (300, 2, 1, 1)
  assert np.all((noise > 0) & (noise < 1))
  np.testing.assert_allclose(again, log_prob, rtol=1e-7)
  mass = np.sum(density.reshape(steps, steps) * weight[:, None] * weight[None])
  np.testing.assert_allclose(mass, 1, atol=2e-3)
  assert np.mean(np.abs(other - log_prob)) > 0.1  # the image matters
  # The second pixel's noise depends on the first's: draws are not independent.
  assert abs(stats.spearmanr(noise[:, 0, 0, 0], noise[:, 1, 0, 0]).statistic) > 0.15


@pytest.mark.slow
def test_learned_noise_beats_the_best_gaussian_under_uniform_noise():
  image = np.random.default_rng(0).integers(0, 3, (128, 2, 2, 1)).astype(np.uint8)
  flow = flows.Flow(flows.ElementwiseAffine(0.5, 0.3), flows.DiagonalNormal((2, 2, 1)))
  dequantizer = models.VariationalDequantizer((2, 2, 1), num_levels=3, width=4, rngs=nnx.Rngs(0))
  both = models.DequantizedFlow(flow, dequantizer)

  def objective(both, image, cond, key):
    return -flows.dequantized_log_prob(both, both.dequantizer, image, key, levels=3.0)

  result = flows.fit(
    both, image, key=KEY, objective=objective, optimizer=optax.adam(2e-2), epochs=100,
    batch_size=128, validation_fraction=0.0,
  )  # fmt: skip
  # Under uniform noise each pixel is uniform on [0, 1): a Gaussian pays log(2 pi e / 12) / 2.
  gaussian = 4 * np.log(2 * np.pi * np.e / 12) / 2
  assert 0 < result.train_losses[-10:].mean() < gaussian - 0.05
  assert result.flow.sample(KEY, 2).shape == (2, 2, 2, 1)


def test_bad_arguments_are_refused():
  normal = _normal()
  with pytest.raises(ValueError, match="num_samples must be at least 1"):
    flows.dequantized_log_prob(normal, None, jnp.zeros((1, 1), int), KEY, num_samples=0)
  with pytest.raises(ValueError, match="image must have an integer dtype"):
    flows.dequantized_log_prob(normal, None, jnp.zeros((1, 1)), KEY)
  make = models.VariationalDequantizer
  with pytest.raises(ValueError, match="shape must be"):
    make((4, 4), rngs=nnx.Rngs(0))
  for options, match in [
    ({"num_levels": 1}, "num_levels must be at least 2, got 1"),
    ({"num_couplings": 0}, "num_couplings must be at least 1"),
    ({"width": 0}, "width must be at least 1"),
  ]:
    with pytest.raises(ValueError, match=match):
      make((2, 2, 1), rngs=nnx.Rngs(0), **options)
  dequantizer = make((2, 2, 1), width=2, rngs=nnx.Rngs(0))
  for bad in (None, jnp.zeros((1, 2, 2, 1)), jnp.zeros((1, 4, 1, 1), int)):
    with pytest.raises(ValueError, match=r"cond must be integer images of shape \(b, 2, 2, 1\)"):
      dequantizer.sample(KEY, 1, bad)
