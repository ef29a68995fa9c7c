"""The start of ActNorm from data: through every composition, on one device and on several."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from normjax import flows


def _data(*shape, seed=0, dtype=jnp.float32):
  scales = np.arange(1, shape[-1] + 1)
  return jnp.asarray(5 + scales * np.random.default_rng(seed).standard_normal(shape), dtype)


def _assert_standard(z, atol=1e-5):
  axes = tuple(range(z.ndim - 1))
  np.testing.assert_allclose(jnp.mean(z, axes), 0, atol=atol)
  np.testing.assert_allclose(jnp.std(z, axes), 1, atol=atol)


@functools.cache
def _init(graphdef):
  return jax.jit(lambda state, x: nnx.state(flows.init_from_data(nnx.merge(graphdef, state), x)))


def _initialized(bijector, x):
  """Return what `init_from_data` gives, under jit, which is quicker."""
  graphdef, state = nnx.split(bijector)
  return nnx.merge(graphdef, _init(graphdef)(state, x))


@pytest.mark.parametrize("shape", [(64, 3), (8, 2, 3, 3)])
def test_act_norm_standardizes_its_batch_once(shape):
  x, old = _data(*shape), flows.ActNorm(3)
  new = flows.init_from_data(old, x)
  _assert_standard(new.forward(x)[0])
  np.testing.assert_array_equal(old.log_scale[...], 0)
  np.testing.assert_array_equal(old.forward(x)[0], x)  # the old one is as it was
  again = flows.init_from_data(new, x)
  np.testing.assert_array_equal(again.log_scale[...], new.log_scale[...])
  np.testing.assert_array_equal(again.shift[...], new.shift[...])


def test_options_set_the_standard_deviation():
  x = _data(10, 3)
  layer = flows.init_from_data(flows.ActNorm(3, ddof=1, epsilon=0.5), x)
  expected = -np.log(np.std(np.asarray(x, np.float64), axis=0, ddof=1) + 0.5)
  np.testing.assert_allclose(layer.log_scale[...], expected, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_squares_of_data_may_leave_the_range_of_float32(size):
  x = jnp.float32(size) * _data(64, 3)
  new = flows.init_from_data(flows.ActNorm(3, epsilon=0.0), x)
  _assert_standard(new.forward(x)[0])


class Sine(flows.Bijector):
  """z = x + sin(x) / 2, whose statistics no affine layer foresees; only the forward direction."""

  def forward(self, x, cond=None):
    return x + jnp.sin(x) / 2, jnp.sum(jnp.log1p(jnp.cos(x) / 2), axis=1)

  def inverse(self, z, cond=None):
    raise NotImplementedError


def test_layers_of_scans_and_chains_see_initialized_ones():
  x = _data(64, 3)
  step = lambda: flows.Chain([flows.ActNorm(3), Sine()])
  scan = flows.Scan(lambda rngs: step(), 3, rngs=nnx.Rngs(0))
  scanned = _initialized(flows.Flow(flows.Chain([scan, flows.ActNorm(3)]), _base()), x).bijector
  chained = _initialized(flows.Chain([step(), step(), step(), flows.ActNorm(3)]), x)
  _assert_standard(scanned.forward(x)[0])
  layer, last = scanned.bijectors[0].layers.bijectors[0], scanned.bijectors[1]
  for i in range(3):
    alone = chained.bijectors[i].bijectors[0]
    np.testing.assert_allclose(layer.log_scale[i], alone.log_scale[...], atol=1e-6)
    np.testing.assert_allclose(layer.shift[i], alone.shift[...], atol=1e-5)
  np.testing.assert_allclose(last.shift[...], chained.bijectors[3].shift[...], atol=1e-5)
  assert np.max(np.abs(layer.shift[1] - layer.shift[0])) > 0.1


def _base():
  return flows.StandardNormal((3,))


def test_inverted_layers_start_in_their_own_direction():
  x = _data(64, 3)
  inner = flows.Scan(
    lambda rngs: flows.Chain([flows.LeakyTanh(1.0), flows.ActNorm(3)]), 2, rngs=nnx.Rngs(0)
  )
  bijector = _initialized(flows.Inverted(flows.Chain([flows.ActNorm(3), inner])), x)
  z, log_det = bijector.forward(x)
  _assert_standard(z)
  back, back_log_det = bijector.inverse(z)
  np.testing.assert_allclose(back, x, rtol=1e-4, atol=1e-3)
  np.testing.assert_allclose(back_log_det, -log_det, atol=1e-4)


def test_networks_of_couplings_start_too():
  x = _data(8, 2, 2, 4)
  coupling = _initialized(flows.GlowCoupling(4, width=3, rngs=nnx.Rngs(0)), x)
  network = coupling.network
  hidden = network.norm_0.forward(network.conv_0(x[..., :2]))[0]
  _assert_standard(hidden)
  raw = network.conv_1(jax.nn.relu(hidden))
  std = jnp.std(raw, (0, 1, 2))
  standard = network.norm_1.forward(raw)[0]
  np.testing.assert_allclose(jnp.std(standard, (0, 1, 2)), std / (std + 1e-6), rtol=1e-5)
  np.testing.assert_allclose(jnp.mean(standard, (0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_array_equal(network.head.logs[...], 0)


def test_networks_of_quad_couplings_start_from_the_quarters_before():
  x = _data(8, 2, 2, 4)
  for method in ("forward", "inverse"):
    coupling = flows.QuadGlowCoupling(4, width=3, rngs=nnx.Rngs(0))
    if method == "inverse":
      coupling = flows.Inverted(coupling)
    new = _initialized(coupling, x)
    new = new.bijector if method == "inverse" else new
    data = x if method == "forward" else new.inverse(x)[0]
    for n, net in enumerate(new.nets, 1):
      _assert_standard(net.norm_0.forward(net.conv_0(data[..., :n]))[0])
  plain = _initialized(flows.QuadCoupling(4, nnx.Linear, rngs=nnx.Rngs(0)), x)
  wanted = flows.QuadCoupling(4, nnx.Linear, rngs=nnx.Rngs(0)).nets[0].kernel[...]
  np.testing.assert_array_equal(plain.nets[0].kernel[...], wanted)


def test_sharded_batches_have_the_statistics_of_the_whole():
  with jax.enable_x64(True):
    x = _data(16, 3, dtype=jnp.float64)
    make = lambda rngs: flows.Chain([flows.ActNorm(3, param_dtype=jnp.float64), flows.LeakyTanh()])
    scan = flows.Scan(make, 2, rngs=nnx.Rngs(0))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    one, many = (_initialized(scan, batch).layers.bijectors[0] for batch in (x, sharded))
    np.testing.assert_allclose(many.log_scale[...], one.log_scale[...], atol=1e-12)
    np.testing.assert_allclose(many.shift[...], one.shift[...], atol=1e-12)


def test_constant_channels_are_refused_unless_allowed():
  x = _data(64, 3).at[:, 1].set(0.1)
  for epsilon in (1e-6, 0.0):
    with pytest.raises(ValueError, match="vary in every channel of every ActNorm"):
      flows.init_from_data(flows.ActNorm(3, epsilon=epsilon), x)
  scan = flows.Scan(lambda rngs: flows.ActNorm(3), 2, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="vary in every channel"):
    flows.init_from_data(scan, x)
  with pytest.raises(ValueError, match="vary in every channel"):
    flows.init_from_data(flows.Inverted(flows.ActNorm(3)), x)
  wide = flows.init_from_data(flows.ActNorm(3), 1e7 * _data(64, 3))
  assert np.all(np.isfinite(wide.log_scale[...]))
  layer = flows.init_from_data(flows.ActNorm(3, allow_constant=True), x)
  np.testing.assert_allclose(layer.log_scale[1], np.log(1e3), rtol=1e-6)
  np.testing.assert_allclose(layer.forward(x)[0][:, 1], 0, atol=1e-4)


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match="flow must be a flows.Bijector or a flows.Flow"):
    flows.init_from_data(_base(), _data(4, 3))
  with pytest.raises(ValueError, match="more than ddof=1 entries per channel to start from, got 1"):
    flows.init_from_data(flows.ActNorm(3, ddof=1), _data(1, 3))
  with pytest.raises(ValueError, match="features must be at least 1, got 0"):
    flows.ActNorm(0)
  for options in ({"epsilon": -1.0}, {"epsilon": float("nan")}, {"ddof": -1}):
    with pytest.raises(ValueError, match="epsilon and ddof must be at least 0"):
      flows.ActNorm(3, **options)


def test_nnx_modes_give_the_same_start():
  x = _data(16, 3)

  def start():
    make = lambda rngs: flows.Chain([flows.ActNorm(3), flows.LeakyTanh()])
    scan = flows.Scan(make, 2, rngs=nnx.Rngs(0))
    new = flows.init_from_data(flows.Inverted(flows.Chain([scan, flows.ActNorm(3)])), x)
    return jax.tree.leaves(nnx.state(new))

  with nnx.set_graph_mode(True), nnx.set_graph_updates(True):
    graph = start()
  with nnx.set_graph_mode(False), nnx.set_graph_updates(False):
    tree = start()
  assert len(graph) == 4
  for one, other in zip(graph, tree, strict=True):
    np.testing.assert_array_equal(one, other)
    assert np.all(one != 0)
