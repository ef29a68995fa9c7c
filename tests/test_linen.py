"""The Linen adapter: interchangeable parameters, Linen's transforms, and no silent mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import normjax.linen
from normjax import norms
from normjax.linen import to_linen

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)
KEY = jax.random.key(0)


class Averaged(nnx.Module):
  """Subtracts the batch mean, or in evaluation its running average."""

  def __init__(self, n, *, use_running_average=False, rngs):
    self.mean = nnx.BatchStat(jnp.zeros(n))
    self.use_running_average = use_running_average

  def __call__(self, x, use_running_average=None):
    fixed = self.use_running_average if use_running_average is None else use_running_average
    if fixed:
      return x - self.mean[...][None]
    mean = jnp.mean(x, 0)
    self.mean[...] = 0.5 * self.mean[...] + 0.5 * mean
    return x - mean[None]


class Noisy(nnx.Module):
  """Adds noise drawn from the stream "noise"."""

  def __init__(self, *, deterministic=False, rngs):
    self.deterministic, self.rngs = deterministic, rngs

  def __call__(self, x, deterministic=None):
    still = self.deterministic if deterministic is None else deterministic
    return x if still else x + jax.random.normal(self.rngs.noise(), x.shape)


class Both(nnx.Module):
  """Nests layers with parameters, statistics and noise, also in a list."""

  def __init__(self, n, *, rngs):
    self.layers = nnx.List([norms.LayerNorm(n, rngs=rngs), Averaged(n, rngs=rngs)])
    self.dropout = nnx.Dropout(0.5, rngs=rngs)

  def __call__(self, x):
    for layer in self.layers:
      x = layer(x)
    return self.dropout(x)


@pytest.fixture(params=[True, False], ids=["graph", "tree"])
def _mode(request):
  with nnx.set_graph_mode(request.param), nnx.set_graph_updates(request.param):
    yield


@pytest.mark.parametrize(
  ("ours", "theirs"),
  [
    (normjax.linen.LayerNorm(6), linen.LayerNorm()),
    (normjax.linen.LayerNorm(6, use_bias=False, epsilon=0.1), linen.LayerNorm(0.1, use_bias=False)),
    (normjax.linen.RMSNorm(6), linen.RMSNorm()),
  ],
)
def test_swapping_the_flax_layer_keeps_parameters_and_numbers(ours, theirs):
  class Net(linen.Module):
    norm: linen.Module

    @linen.compact
    def __call__(self, x):
      return linen.Dense(3, name="head")(self.norm(x))

  old, new = Net(theirs), Net(ours)
  variables = old.init(KEY, X)
  assert jax.tree.map(jnp.shape, new.init(KEY, X)) == jax.tree.map(jnp.shape, variables)
  params = jax.tree.map(lambda v: v + jax.random.normal(KEY, v.shape), variables)
  got, wanted = (jax.jit(net.apply)(params, X) for net in (new, old))
  np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
  grads = [
    jax.jit(jax.grad(lambda p, n=net: jnp.sum(n.apply(p, X) ** 3)))(params) for net in (new, old)
  ]
  for a, b in zip(*map(jax.tree.leaves, grads), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("_mode")
def test_statistics_are_kept_or_the_call_is_refused():
  layer = to_linen(Averaged, 6)
  variables = layer.init(KEY, X)
  assert np.array_equal(variables["batch_stats"]["mean"], np.zeros(6))  # init takes no step
  for apply in (layer.apply, jax.jit(layer.apply)):
    with pytest.raises(ValueError, match=r"Averaged updates its statistics: .*'batch_stats'"):
      apply(variables, X)
  y, new = layer.apply(variables, X, mutable=["batch_stats"])
  np.testing.assert_allclose(new["batch_stats"]["mean"], jnp.mean(X, 0) / 2, rtol=1e-6)
  np.testing.assert_allclose(jnp.mean(y, 0), 0, atol=1e-6)
  y = layer.apply({**variables, **new}, X, use_running_average=True)
  np.testing.assert_allclose(y, X - jnp.mean(X, 0)[None] / 2, rtol=1e-6)
  frozen = to_linen(Averaged, 6, use_running_average=True)
  np.testing.assert_array_equal(frozen.apply({**variables, **new}, X), y)


@pytest.mark.usefixtures("_mode")
def test_noise_is_seeded_or_the_call_is_refused():
  layer = to_linen(Noisy)
  variables = layer.init(KEY, X)  # "params" seeds the stream, as for Linen's own layers
  assert not variables
  for rngs in ({}, {"dropout": KEY}):
    with pytest.raises(ValueError, match="Noisy draws random numbers: seed a stream"):
      jax.jit(lambda rngs: layer.apply(variables, X, rngs=rngs))(rngs)
  noise = lambda key, name="noise": layer.apply(variables, X, rngs={name: key}) - X
  one, two = noise(jax.random.key(1)), noise(jax.random.key(2))
  assert not np.allclose(one, two)
  np.testing.assert_array_equal(one, noise(jax.random.key(1)))
  assert np.std(noise(KEY, "params")) > 0.5
  assert np.std(noise(jax.random.PRNGKey(3), "default")) > 0.5
  np.testing.assert_array_equal(layer.apply(variables, X, deterministic=True), X)
  still = to_linen(Noisy, deterministic=True)
  np.testing.assert_array_equal(still.apply(still.init(KEY, X), X), X)


@pytest.mark.usefixtures("_mode")
def test_nested_modules_have_nested_variables():
  layer = to_linen(Both, 6, name="both")
  variables = layer.init(KEY, X)
  assert jax.tree.map(jnp.shape, variables) == {
    "params": {"layers": {"0": {"scale": (6,), "bias": (6,)}}},
    "batch_stats": {"layers": {"1": {"mean": (6,)}}},
  }
  y, new = layer.apply(variables, X, rngs={"dropout": KEY}, mutable=["batch_stats"])
  assert 0 < np.mean(np.asarray(y) == 0) < 1
  assert jax.tree.structure(new) == jax.tree.structure({"batch_stats": variables["batch_stats"]})
  with pytest.raises(ValueError, match="Both draws random numbers"):
    layer.apply(variables, X, mutable=["batch_stats"])


def test_variables_must_be_those_of_the_module():
  layer = normjax.linen.LayerNorm(6)
  params = layer.init(KEY, X)["params"]
  with pytest.raises(ValueError, match="variables must hold params/scale of LayerNorm"):
    layer.apply({"params": {"bias": params["bias"]}}, X)
  with pytest.raises(ValueError, match="variables hold params/gain, unknown to LayerNorm"):
    layer.apply({"params": {**params, "gain": params["bias"]}}, X)
  # A mutable collection that is missing starts from its initial value, as in Linen.
  averaged = to_linen(Averaged, 6)
  _, new = averaged.apply({}, X, mutable=["batch_stats"])
  np.testing.assert_allclose(new["batch_stats"]["mean"], jnp.mean(X, 0) / 2, rtol=1e-6)


def test_scan_over_layers_and_remat_inside():
  class Block(linen.Module):
    @linen.compact
    def __call__(self, x, _):
      x = linen.Dense(6, name="dense")(normjax.linen.LayerNorm(6, name="norm")(x))
      return to_linen(Averaged, 6, name="averaged")(x), None

  depth = 3
  stack = linen.scan(
    linen.remat(Block),
    variable_axes={"params": 0, "batch_stats": 0},
    split_rngs={"params": True},
    length=depth,
  )()
  variables = stack.init(KEY, X, None)
  assert variables["params"]["norm"]["scale"].shape == (depth, 6)
  assert variables["batch_stats"]["averaged"]["mean"].shape == (depth, 6)

  @jax.jit
  def step(variables):
    def loss(params):
      (y, _), new = stack.apply({**variables, "params": params}, X, None, mutable=["batch_stats"])
      return jnp.sum(y**3), (y, new)

    return jax.value_and_grad(loss, has_aux=True)(variables["params"])

  (_, (y, new)), grads = step(variables)
  x = X
  for i in range(depth):
    layer = jax.tree.map(lambda v, i=i: v[i], variables)
    (x, _), alone = Block().apply(layer, x, None, mutable=["batch_stats"])
    mean = new["batch_stats"]["averaged"]["mean"][i]
    np.testing.assert_allclose(mean, alone["batch_stats"]["averaged"]["mean"], atol=1e-6)
  np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-5)
  assert all(jnp.any(g != 0) for g in jax.tree.leaves(grads["norm"]))


def test_other_methods_are_offered():
  tokens = jnp.array([3, 1])
  layer = normjax.linen.FixNorm(5, 4)
  variables = layer.init(KEY, tokens)
  embedded = layer.apply(variables, tokens)
  for logits in (
    layer.apply(variables, embedded, method="attend"),
    layer.apply(variables, embedded, nnx_method="attend"),
    layer.bind(variables).attend(embedded),
  ):
    assert np.array_equal(jnp.argmax(logits, -1), tokens)


def test_every_norm_is_offered_by_name():
  for cls in norms.NAMES.values():
    layer = getattr(normjax.linen, cls.__name__)(6)
    assert layer.nnx_class is cls
  assert normjax.linen.CRMSNorm(7).init_with_output(KEY, X)[0].shape == X.shape
  with pytest.raises(AttributeError, match="no module 'layer_norm'"):
    _ = normjax.linen.layer_norm


def test_module_without_rngs_argument():
  class Doubled(nnx.Module):
    def __call__(self, x):
      return 2 * x

  np.testing.assert_array_equal(to_linen(Doubled).apply({}, X), 2 * X)
