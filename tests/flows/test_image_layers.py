"""Masked couplings, wavelets, batch normalization of flows, volume, and bijectors of parts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments import step
from normjax import flows


def _moved(layer, seed=0):
  """Return the layer with parameters away from special values."""
  rng = np.random.default_rng(seed)
  move = lambda p: p + jnp.asarray(0.3 * rng.standard_normal(p.shape), p.dtype)
  nnx.update(layer, jax.tree.map(move, nnx.state(layer, nnx.Param)))
  return layer


def test_masks_alternate():
  board = flows.checkerboard_mask((3, 4, 2), parity=1)
  assert board.shape == (3, 4, 2)
  assert board[0, 0, 0] == board[1, 1, 1] == 1
  assert board[0, 1, 0] == board[1, 0, 1] == 0
  np.testing.assert_array_equal(board + flows.checkerboard_mask((3, 4, 2)), 1)
  np.testing.assert_array_equal(flows.channel_mask((2, 2, 3))[0, 1], [0, 1, 1])
  np.testing.assert_array_equal(flows.channel_mask((2, 2, 3), parity=1)[1, 0], [1, 0, 0])
  with pytest.raises(ValueError, match="at least two channels"):
    flows.channel_mask((2, 2, 1))
  with pytest.raises(ValueError, match="parity must be 0 or 1, got 2"):
    flows.checkerboard_mask((2, 2, 1), parity=2)
  with pytest.raises(ValueError, match=r"shape must be \(height, width, channels\), got \(4,\)"):
    flows.checkerboard_mask((4,))


def test_masked_entries_see_the_others_only():
  mask = flows.checkerboard_mask((3, 3, 1))
  layer = _moved(
    flows.ImageCoupling(
      flows.AffineTransform("tanh"), mask, width=4, depth=1, cond_dim=2, rngs=nnx.Rngs(0)
    )
  )
  x = jnp.asarray(np.random.default_rng(1).standard_normal((1, 3, 3, 1)), jnp.float32)
  cond = jnp.array([[0.5, -1.0]])
  run = jax.jit(lambda x, cond: layer.forward(x, cond)[0].reshape(-1))
  jacobian = jax.jit(jax.jacobian(lambda x: run(x, cond)))(x).reshape(9, 9)
  moves = mask.reshape(-1) == 1
  np.testing.assert_array_equal(jacobian[~moves], np.eye(9)[~moves])
  np.testing.assert_array_equal(jacobian[moves][:, moves] * (1 - np.eye(4)), 0)
  assert np.count_nonzero(jacobian[moves][:, ~moves]) == 4 * 5
  assert np.all(np.abs(run(x, cond) - run(x, -cond))[moves] > 1e-4)
  with pytest.raises(ValueError, match="mask must have shape"):
    flows.ImageCoupling(flows.AffineTransform(), [0, 1], rngs=nnx.Rngs(0))


def test_gin_keeps_volume_but_not_scales():
  layer = _moved(flows.GINCoupling(jnp.arange(4), width=4, depth=1, rngs=nnx.Rngs(0)))
  x = jnp.asarray(np.random.default_rng(1).standard_normal((1, 4)), jnp.float32)
  jacobian = jax.jacobian(lambda x: layer.forward(x)[0])(x)[0, :, 0]
  scales = np.diagonal(jacobian)[2:]
  np.testing.assert_allclose(np.prod(scales), 1, rtol=1e-5)
  assert abs(scales[0] - 1) > 1e-2


def test_wavelets_of_a_square():
  a, b, c, d = pixels = np.array([3.0, 1.0, -2.0, 0.5])
  x = jnp.asarray(np.stack([pixels, 10 * pixels], -1).reshape(1, 2, 2, 2))
  z, _ = flows.HaarSqueeze().forward(x)
  sums = np.array([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d]) / 2
  np.testing.assert_allclose(z[0, 0, 0], np.stack([sums, 10 * sums], -1).reshape(-1), rtol=1e-6)


def _batch_norm_net(rngs):
  """Return a flow with batch normalization in a scan, inverted once, and beside an ActNorm."""
  layer = lambda rngs: flows.Chain(
    [
      flows.BatchNormFlow(2, decay=0.5, epsilon=1e-3),
      flows.ActNorm(2),
      flows.AffineCoupling(jnp.arange(2), width=2, depth=1, rngs=rngs),
    ]
  )
  return _moved(flows.Flow(flows.Scan(layer, 2, rngs=rngs), flows.StandardNormal((2,))))


def test_training_normalizes_the_batch_and_is_differentiated_through():
  with jax.enable_x64(True):
    layer = flows.BatchNormFlow(2, param_dtype=jnp.float64)
    layer.log_scale[...], layer.bias[...] = jnp.array([0.3, -0.2]), jnp.array([1.0, 2.0])
    x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (4, 2, 1, 2)))
    z, log_det = layer.forward(x)
    rows = np.asarray(x).reshape(-1, 2)
    gain = np.exp([0.3, -0.2]) / np.sqrt(rows.var(axis=0) + 1e-5)
    expected = (rows - rows.mean(axis=0)) * gain + [1, 2]
    np.testing.assert_allclose(z.reshape(-1, 2), expected, rtol=1e-12)
    np.testing.assert_allclose(log_det, 2 * np.log(gain).sum(), rtol=1e-12)
    slope = jax.grad(lambda x: layer.forward(x)[1][0])(x).reshape(-1, 2)
    centred = rows - rows.mean(axis=0)
    np.testing.assert_allclose(slope, -2 * centred / 8 / (rows.var(axis=0) + 1e-5), rtol=1e-10)
    np.testing.assert_array_equal(layer.mean[...], 0)  # forward moves nothing


def test_statistics_move_in_a_function_of_their_own():
  flow = _batch_norm_net(nnx.Rngs(0))
  x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (16, 2)), jnp.float32)

  @jax.jit
  def run(state, x):
    flow = nnx.merge(graphdef, state)
    new = flows.update_statistics(flow, x)
    return nnx.state(new), nnx.state(flows.init_from_data(flow, x))

  graphdef, state = nnx.split(flow)
  moved, started = run(state, x)
  layers = lambda s: s["bijector"]["layers"]["bijectors"]
  first = layers(moved)[0]
  np.testing.assert_allclose(first["mean"][0], 0.5 * x.mean(axis=0), rtol=1e-5)
  np.testing.assert_allclose(first["var"][0], 0.5 + 0.5 * x.var(axis=0), rtol=1e-5)
  np.testing.assert_allclose(layers(started)[0]["mean"][0], x.mean(axis=0), rtol=1e-5)
  assert np.all(np.abs(first["mean"][1]) > 1e-3)  # the second layer has seen other data
  for path, value in nnx.to_flat_state(moved):
    if path[-1] not in ("mean", "var"):
      np.testing.assert_array_equal(value[...], dict(nnx.to_flat_state(state))[path][...])
  # Statistics of one batch, used in evaluation, are those of training on this batch.
  frozen = nnx.merge(graphdef, started)
  trained = frozen.log_prob(x)
  frozen.eval()
  np.testing.assert_allclose(frozen.log_prob(x), trained, rtol=1e-4)
  z, _ = frozen.bijector.forward(x)
  np.testing.assert_allclose(frozen.bijector.inverse(z)[0], x, atol=1e-4)
  assert nnx.view(flows.BatchNormFlow(2), use_running_average=True).use_running_average


class _Task:
  """Maximum likelihood of a flow with batch normalization, as an experiment writes it."""

  model = {
    "class": "normjax.flows.Flow",
    "kwargs": {
      "bijector": {"class": "normjax.flows.BatchNormFlow", "kwargs": {"features": 2}},
      "base": {"class": "normjax.flows.StandardNormal", "kwargs": {"shape": [2]}},
    },
  }

  def loss(self, flow, batch, key):
    nnx.update(flow, nnx.state(flows.update_statistics(flow, batch), nnx.BatchStat))
    return -jnp.mean(flow.log_prob(batch)), {}

  def score(self, flow, batch, key, draws):
    return flow.log_prob(batch)


def test_statistics_leave_a_training_step_as_auxiliary_output():
  steps = step.make_steps(_Task(), optax.sgd(0.1), 0.0)
  x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (16, 2)), jnp.float32)
  state = steps.init(0)
  before = state["params"]["bijector"]["log_scale"]
  state, metrics = jax.jit(steps.train)(state, x)
  mean = state["rest"]["bijector"]["mean"]
  np.testing.assert_allclose(mean, 0.1 * x.mean(axis=0), rtol=1e-5)
  assert np.all(state["params"]["bijector"]["log_scale"] != before)
  assert np.isfinite(metrics["gradient_norm"])
  # In evaluation each example has the density that the running statistics give it.
  np.testing.assert_allclose(
    steps.score(state, x, None)[:1], steps.score(state, x[:1], None), rtol=1e-6
  )


def test_what_batch_normalization_refuses():
  layer = flows.BatchNormFlow(2)
  with pytest.raises(ValueError, match="use_running_average must be True to invert"):
    layer.inverse(jnp.ones((3, 2)))
  with pytest.raises(ValueError, match="more than one position"):
    layer.forward(jnp.ones((1, 2)))
  with pytest.raises(ValueError, match="features must be at least 1, got 0"):
    flows.BatchNormFlow(0)
  with pytest.raises(ValueError, match=r"epsilon must be above 0 and decay in \[0, 1\), got 0"):
    flows.BatchNormFlow(1, epsilon=0)
  with pytest.raises(ValueError, match="flow must be a flows.Bijector or a flows.Flow"):
    flows.update_statistics(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), jnp.ones((2, 1)))


def test_parts_leave_the_rest_alone():
  x = jnp.array([[0.5, 1.0, -1.0]])
  z, log_det = flows.Indexed(flows.Exp(), [2, 0]).forward(x)
  np.testing.assert_allclose(z, [[np.exp(0.5), 1, np.exp(-1)]], rtol=1e-6)
  np.testing.assert_allclose(log_det, [-0.5], rtol=1e-6)
  both = flows.Concatenate([flows.ActNorm(2), flows.Exp()], [2, 1])
  data = jnp.asarray(np.random.default_rng(0).normal(3, 2, (16, 3)), jnp.float32)
  started = flows.init_from_data(both, data)
  z, _ = started.forward(data)
  np.testing.assert_allclose(z[:, :2].std(axis=0), 1, rtol=1e-4)
  np.testing.assert_allclose(z[:, 2], np.exp(data[:, 2]), rtol=1e-6)
  with pytest.raises(ValueError, match="sizes must have 2 entries"):
    flows.Concatenate([flows.Exp(), flows.Exp()], [1])
  with pytest.raises(ValueError, match=r"sizes\[1\] must be at least 1, got 0"):
    flows.Concatenate([flows.Exp(), flows.Exp()], [1, 0])
  with pytest.raises(ValueError, match="indices must be different integers"):
    flows.Indexed(flows.Exp(), [1, 1])


def test_elementwise_flow_keeps_its_parameters_per_entry():
  layer = _moved(flows.Elementwise(flows.AffineTransform("tanh"), (2, 2)))
  raw = layer.parameters.values["raw"][...]
  z, log_det = layer.forward(jnp.ones((3, 2, 2)))
  log_scale = 2 * np.tanh(raw[..., 0] / 2)
  np.testing.assert_allclose(z[1], np.exp(log_scale) + raw[..., 1], rtol=1e-6)
  np.testing.assert_allclose(log_det, log_scale.sum(), rtol=1e-5)
  with pytest.raises(ValueError, match="rngs must be given where there is a cond_dim"):
    flows.Elementwise(flows.AffineTransform(), (2,), cond_dim=1)
