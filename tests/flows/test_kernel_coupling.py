"""Kernels, kernel couplings and their start from data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import flows, models

KERNELS = sorted(flows.KERNELS)


def _normal(seed, shape):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_fall_from_the_outputscale_and_are_positive(name):
  kernel = flows.KERNELS[name]
  x = _normal(0, (6, 2))
  gram = np.asarray(kernel(x, x, jnp.array([0.5, 2.0]), 3.0))
  np.testing.assert_allclose(np.diag(gram), 3.0, rtol=1e-6)
  np.testing.assert_allclose(gram, gram.T, rtol=1e-6)
  assert np.linalg.eigvalsh(gram).min() > -1e-5
  line = jnp.linspace(0, 4, 20).reshape(-1, 1)
  assert np.all(np.diff(kernel(line, jnp.zeros((1, 1)))[:, 0]) < 0)
  gradient = jax.grad(lambda x: jnp.sum(kernel(x, x[:1])))(x[:1])
  np.testing.assert_array_equal(gradient, 0)  # at distance 0


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_zero_far_away_with_gradients(name):
  kernel = lambda x: flows.KERNELS[name](x, jnp.zeros((1, 2)), jnp.array([0.5, 2.0]), 3.0)
  x = jnp.array([[1e4, 0.0], [0.0, -1e18], [1e30, 1e30]])
  run = jax.jit(jax.value_and_grad(lambda x: jnp.sum(kernel(x))))
  assert all(np.all(v == 0) for v in run(x))
  whole = flows.KERNELS[name](jnp.zeros((1, 2), int), jnp.zeros((1, 2), int), 0.5, 2.5)
  np.testing.assert_array_equal(whole, 2.5)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("inf")])
def test_bad_scales_are_refused(bad):
  x = jnp.ones((2, 3))
  with pytest.raises(ValueError, match="lengthscale must be above 0"):
    flows.matern12(x, x, bad)
  with pytest.raises(ValueError, match="outputscale must be above 0"):
    flows.matern32(x, x, 1.0, bad)
  with pytest.raises(ValueError, match="lengthscale must have a shape"):
    flows.matern52(x, x, jnp.ones(2))
  with pytest.raises(ValueError, match="x and y must have shapes"):
    flows.squared_exponential(x, x[:, :2])


def _random_layer(**options):
  layer = flows.KernelCoupling([2, 0, 1], 2, num_points=4, rngs=nnx.Rngs(0), **options)
  layer.weights_scale[...] = _normal(1, (4, 1))
  layer.weights_shift[...] = _normal(2, (4, 1))
  return layer


def test_starts_as_the_identity():
  layer = flows.KernelCoupling([1, 0, 2], 1, num_points=4, rngs=nnx.Rngs(0))
  x = _normal(0, (5, 3))
  z, log_det = layer.forward(x)
  np.testing.assert_array_equal(z, x)
  np.testing.assert_array_equal(log_det, 0)


def test_is_the_identity_far_away_and_not_nearby():
  layer, x = _random_layer(), _normal(0, (5, 3))
  far = x + 100 * jnp.array([[1.0, 0.0, 0.0]])
  np.testing.assert_array_equal(layer.forward(far)[0], far)
  np.testing.assert_array_equal(layer.forward(far)[1], 0)
  z = layer.forward(x)[0]
  np.testing.assert_array_equal(z[:, [2, 0]], x[:, [2, 0]])
  assert np.all(z[:, 1] != x[:, 1])


def test_order_of_points_does_not_matter():
  layer, other, x = _random_layer(), _random_layer(), _normal(0, (5, 3))
  for name in ("points", "weights_scale", "weights_shift"):
    getattr(other, name)[...] = getattr(layer, name)[...][jnp.array([2, 0, 3, 1])]
  for one, two in zip(layer.forward(x), other.forward(x), strict=True):
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_bound_bounds_the_scale():
  layer, x = _random_layer(bound=0.5), _normal(0, (5, 3))
  free = _random_layer()
  layer.weights_scale[...], free.weights_scale[...] = jnp.full((2, 4, 1), 9.0)
  np.testing.assert_allclose(
    layer.forward(x)[1], 0.5 * np.tanh(free.forward(x)[1] / 0.5), rtol=1e-5
  )


def test_number_of_parameters():
  count = lambda m: sum(leaf.size for leaf in jax.tree.leaves(nnx.state(m, nnx.Param)))
  build = lambda **options: models.ferumal_flow(
    5, num_layers=3, num_points=7, rngs=nnx.Rngs(0), **options
  )
  assert count(build()) == 3 * (2 * 7 * 3 + 7 * 2 + 2 + 1)
  assert count(build(trainable_points=False)) == 3 * (2 * 7 * 3 + 2 + 1)


@pytest.mark.parametrize("split", ["random", "alternating"])
def test_two_layers_change_every_feature(split):
  flow = models.ferumal_flow(5, num_layers=3, num_points=2, split=split, rngs=nnx.Rngs(0))
  orders = np.asarray(flow.bijector.layers.order[...])
  np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(5), (3, 1)))
  assert set(orders[0, 2:]) | set(orders[1, 2:]) == set(range(5))


def test_start_takes_points_from_what_reaches_the_layer():
  flow = models.ferumal_flow(4, num_layers=2, num_points=6, cond_dim=1, rngs=nnx.Rngs(0))
  scan = flow.bijector
  scan.layers.weights_shift[...] = _normal(3, scan.layers.weights_shift.shape)
  before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(flow)))
  x, cond = _normal(0, (20, 4)), _normal(1, (20, 1))
  start = jax.jit(lambda x, cond: nnx.state(flows.init_from_data(flow, x, cond)))
  state = start(x, cond)
  jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(flow)))
  nnx.update(flow, state)
  layers = scan.layers
  cut = lambda i: nnx.merge(
    nnx.split(layers)[0], jax.tree.map(lambda leaf: leaf[i], nnx.split(layers)[1])
  )
  reaches = x
  for i in range(2):
    layer = cut(i)
    inputs = np.concatenate([reaches[:, layer.order[...][:2]], cond], axis=1)
    distance = np.abs(layer.points[...][:, None] - inputs[None]).max(-1)
    np.testing.assert_allclose(distance.min(1), 0, atol=1e-5)
    assert list(distance.argmin(1)) == list(range(6))
    points = np.asarray(layer.points[...])
    pairs = np.abs(points[:, None] - points[None])[np.triu_indices(6, 1)]
    np.testing.assert_allclose(np.exp(layer.log_lengthscale[...]), np.median(pairs, 0), rtol=1e-5)
    reaches = layer.forward(reaches, cond)[0]
  assert np.abs(reaches - x).max() > 0.1


def test_points_that_are_not_trained_start_in_a_scan_too():
  make = lambda rngs: flows.KernelCoupling(
    [0, 1], 1, num_points=3, trainable_points=False, rngs=rngs
  )
  x = _normal(0, (5, 2))
  scan = flows.init_from_data(flows.Scan(make, 1, rngs=nnx.Rngs(0)), x)
  np.testing.assert_array_equal(scan.layers.points[0], x[:3, :1])


def test_start_refuses():
  layer = flows.KernelCoupling([0, 1], 1, num_points=3, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="x must have a row for each of the 3 points, got 2"):
    flows.init_from_data(layer, jnp.ones((2, 2)))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"order": [0, 0]}, "order must be a permutation"),
    ({"order": [0.0, 1.0]}, "order must be a list"),
    ({"num_conditioning": 0}, "num_conditioning must be 1 to 1"),
    ({"num_conditioning": 2}, "num_conditioning must be 1 to 1"),
    ({"num_points": 0}, "num_points must be at least 1"),
    ({"kernel": "rbf"}, "kernel must be one of"),
    ({"bound": float("inf")}, "bound must be above 0 and finite, got inf"),
    ({"cond_dim": 0}, "cond_dim must be at least 1"),
    ({"lengthscale": 0.0}, "lengthscale must be above 0"),
  ],
)
def test_bad_arguments_are_refused(options, message):
  options = {"order": [0, 1], "num_conditioning": 1, "num_points": 3} | options
  with pytest.raises(ValueError, match=message):
    flows.KernelCoupling(**options, rngs=nnx.Rngs(0))


def test_bad_arguments_of_the_model_are_refused():
  for options in ({"dim": 1}, {"dim": 2, "split": "none"}, {"dim": 2, "num_layers": 0}):
    with pytest.raises(ValueError, match="must be"):
      models.ferumal_flow(**options, rngs=nnx.Rngs(0))
