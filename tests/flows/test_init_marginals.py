"""The start of marginals from data: where components stand, what is left alone, odd batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from normjax import flows

RNG = np.random.default_rng(0)


def _components(transform, raw):
  """Return weights, centers and scales of the mixture that raw numbers (*batch, P) describe."""
  logits, at_zero = transform.components(jnp.zeros(raw.shape[:-1]), raw)
  _, at_one = transform.components(jnp.ones(raw.shape[:-1]), raw)
  scales = 1 / (at_one - at_zero)
  return jax.nn.softmax(logits), -at_zero * scales, scales


@pytest.mark.parametrize("num_components", [1, 2, 5])
def test_components_stand_at_quantiles(num_components):
  x = RNG.standard_normal((101, 2, 3)) * [1.0, 0.2, 4.0] + 2
  transform = flows.GaussianizationTransform(num_components)
  run = jax.jit(lambda x: _components(transform, transform.init_raw(x)))
  weights, centers, scales = run(jnp.asarray(x, jnp.float32))
  shares = (np.arange(num_components) + 0.5) / num_components
  expected = np.moveaxis(np.quantile(x, shares, axis=0), 0, -1)
  np.testing.assert_allclose(weights, 1 / num_components, rtol=1e-6)
  np.testing.assert_allclose(centers, expected, rtol=1e-4)
  if num_components == 1:
    nearest = 2 * np.std(x, axis=0)[..., None] * np.sqrt(3) / np.pi
  else:
    distances = np.abs(expected[..., None] - expected[..., None, :])
    nearest = np.sort(distances, axis=-1)[..., 1]
  np.testing.assert_allclose(scales, nearest / 2, rtol=1e-3)


DATA = {
  "normal": RNG.standard_normal(2000),
  "bimodal": np.where(RNG.random(2000) < 0.5, -2, 2) + 0.5 * RNG.standard_normal(2000),
  "skewed": RNG.exponential(size=2000),
  "heavy": RNG.standard_t(3, size=2000),
}


@pytest.mark.parametrize("name", ["GaussianizationTransform", "LogisticMixtureTransform"])
def test_marginals_become_what_the_base_is(name):
  x = jnp.asarray(np.stack(list(DATA.values()), axis=1), jnp.float32)
  layer = flows.Elementwise(getattr(flows, name)(8), (len(DATA),))
  run = jax.jit(lambda layer, x: flows.init_from_data(layer, x).forward(x)[0])
  z = np.asarray(run(layer, x), np.float64)
  base = stats.norm if name.startswith("Gauss") else stats.logistic(scale=np.sqrt(3) / np.pi)
  for marginal in z.T:
    # A sample of the base itself exceeds 1.36 / sqrt(2000) = 0.03 once in twenty.
    assert stats.ks_1samp(marginal, base.cdf).statistic < 0.045
  np.testing.assert_allclose(np.std(z[:, :3], axis=0), 1, atol=0.1)


START = jax.jit(flows.init_from_data)


def _marginals(**options):
  return flows.Elementwise(flows.LogisticMixtureTransform(2), (3,), **options)


def _raw(elementwise):
  return elementwise.parameters.values["raw"][...]


def test_compositions_start_it_once():
  x = jnp.asarray(5 + 3 * RNG.standard_normal((64, 3)), jnp.float32)
  first = START(_marginals(), x)
  twice = START(flows.Inverted(flows.Inverted(_marginals())), x)
  np.testing.assert_allclose(_raw(twice.bijector.bijector), _raw(first), rtol=1e-5, atol=1e-5)
  # The other way round there is nothing to match: it stays.
  np.testing.assert_array_equal(_raw(START(flows.Inverted(_marginals()), x / 10).bijector), 0)
  # The second layer of a scan sees what the first, already started, makes of x.
  scan = START(flows.Scan(lambda rngs: _marginals(), 2, rngs=nnx.Rngs(0)), x)
  raws = _raw(scan.layers)
  np.testing.assert_allclose(raws[0], _raw(first), rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(_raw(START(scan, x).layers), raws)
  second = START(_marginals(), jax.jit(first.forward)(x)[0])
  np.testing.assert_allclose(raws[1], _raw(second), rtol=1e-4, atol=1e-4)


def test_only_what_is_trained_without_a_condition_starts():
  x, cond = jnp.asarray(RNG.standard_normal((64, 3)), jnp.float32), jnp.ones((64, 2))
  old = _marginals(cond_dim=2, width=4, rngs=nnx.Rngs(0))
  new = START(old, x, cond)
  np.testing.assert_allclose(_raw(new), _raw(START(_marginals(), x)), rtol=1e-5)
  for one, other in zip(
    *(jax.tree.leaves(nnx.state(b.parameters.network)) for b in (old, new)), strict=True
  ):
    np.testing.assert_array_equal(one, other)
  shift = flows.Elementwise(flows.AdditiveTransform(), (3,))
  np.testing.assert_array_equal(_raw(START(shift, x)), 0)


class Centered(flows.AdditiveTransform):
  """x + t that takes the mean away at first."""

  def init_raw(self, x):
    return -jnp.mean(x, axis=0)[..., None]


def test_odd_batches():
  x = np.full((6, 3), 0.1)
  x[4:, :2] = [[1e30, -1e30], [-1e30, 0.1]]
  x = jnp.asarray(x, jnp.float32)
  assert np.all(np.isfinite(jax.jit(flows.GaussianizationTransform(1).init_raw)(x)))
  layer = flows.Elementwise(flows.LogisticMixtureTransform(8), (3,))
  new = START(layer, x)
  z, log_det = jax.jit(new.forward)(x)
  assert all(np.all(np.isfinite(v)) for v in (_raw(new), z, log_det))
  layer = flows.Elementwise(Centered(), (3,))
  own = flows.init_from_data(layer, jnp.array([[1.0, 2.0, 4.0], [3.0, 2.0, 0.0]]))
  np.testing.assert_array_equal(_raw(own), -2)
  with pytest.raises(ValueError, match="x must be finite at every Elementwise that starts from it"):
    flows.init_from_data(layer, jnp.full((2, 3), jnp.nan))
  with pytest.raises(ValueError, match="x must have shape"):
    flows.init_from_data(layer, jnp.ones((2, 4)))


def test_running_statistics_move_without_a_new_start():
  x = jnp.asarray(5 + RNG.standard_normal((16, 3)), jnp.float32)
  kernel = flows.KernelCoupling([0, 1, 2], 1, num_points=2, rngs=nnx.Rngs(0))
  kernel.weights_shift[...] += 1
  for layer in (_marginals(), kernel):
    chain = flows.Chain([layer, flows.BatchNormFlow(3, decay=0.0)])
    mean, expected = jax.jit(
      lambda chain: (flows.update_statistics(chain, x), chain.bijectors[0].forward(x)[0].mean(0))
    )(chain)
    np.testing.assert_allclose(mean.bijectors[1].mean[...], expected, rtol=1e-5)
