"""Back-propagation without stored activations, for stacks of every family of layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from normjax import flows, models

B, WIDE = 6, {"param_dtype": "float64"}


@pytest.fixture(autouse=True)
def _x64():
  with jax.enable_x64(True):
    yield


def _glow(convolution):
  def make(rngs):
    layers = [
      flows.ActNorm(4, **WIDE),
      flows.INVERTIBLE_CONVOLUTIONS[convolution](4, rngs=rngs),
      flows.GlowCoupling(4, width=3, rngs=rngs, **WIDE),
    ]
    return flows.Chain(layers)

  return lambda length, memory: flows.Scan(make, length, memory=memory, rngs=nnx.Rngs(0))


def _net(inputs, outputs, *, rngs):
  return nnx.Conv(inputs, outputs, (3, 3), rngs=rngs, **WIDE)


def _plain(make):
  return lambda length, memory: flows.Scan(make, length, memory=memory, rngs=nnx.Rngs(0))


def _ordered(make):
  def scan(length, memory):
    orders = jnp.stack([jnp.roll(jnp.arange(4), i) for i in range(length)])
    return flows.Scan(make, length, orders, memory=memory, rngs=nnx.Rngs(0))

  return scan


def _multi_scale(length, memory):
  glow = models.Glow((4, 4, 4), num_levels=2, num_steps=length, width=3, memory=memory,
                     rngs=nnx.Rngs(0), **WIDE)  # fmt: skip
  return glow.bijector


# family -> (make(length, memory), event shape)
FAMILIES = {
  "ActNorm, 1x1, coupling": (_glow("1x1"), (2, 2, 4)),
  "MultiScale": (_multi_scale, (4, 4, 4)),
  "CInC, quad coupling": (
    _plain(
      lambda rngs: flows.Chain(
        [flows.CInCConv(4, rngs=rngs), flows.QuadCoupling(4, _net, rngs=rngs)]
      )
    ),
    (2, 2, 4),
  ),
  "RQSCoupling": (
    _ordered(
      lambda rngs, order: flows.RQSCoupling(order, width=4, depth=1, num_bins=4, rngs=rngs, **WIDE)
    ),
    (4,),
  ),
  "KernelCoupling": (
    _ordered(lambda rngs, order: flows.KernelCoupling(order, 2, num_points=3, rngs=rngs, **WIDE)),
    (4,),
  ),
  "MaskedAutoregressive": (
    _ordered(
      lambda rngs, order: flows.MaskedAutoregressive(
        4, order=order, width=4, depth=1, rngs=rngs, **WIDE
      )
    ),
    (4,),
  ),
}


def _loss(bijector):
  """Return `loss(params, rest, x)` and its arguments, with parameters moved off their start."""
  graphdef, params, rest = nnx.split(bijector, nnx.Param, ...)

  def loss(params, rest, x):
    z, log_det = nnx.merge(graphdef, params, rest).forward(x)
    return jnp.sum(jnp.sin(z)) + jnp.sum(log_det**2)

  return loss, nnx.to_pure_dict(params), nnx.to_pure_dict(rest)


def _moved(params):
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda p: p + 0.2 * jnp.asarray(rng.normal(size=p.shape), p.dtype), params)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_plain_autodiff(family):
  make, shape = FAMILIES[family]
  x = jnp.asarray(np.random.default_rng(1).normal(size=(B, *shape)))
  losses = [_loss(make(3, memory)) for memory in ("store", "reversible")]
  params, rest = _moved(jax.tree.map(lambda p: p.astype(x.dtype), losses[0][1])), losses[0][2]

  @jax.jit
  def run(params, rest, x):
    return [jax.grad(loss, argnums=(0, 2))(params, rest, x) for loss, _, _ in losses]

  stored, rebuilt = map(jax.tree.leaves, run(params, rest, x))
  for a, b in zip(stored, rebuilt, strict=True):
    assert np.any(np.asarray(a) != 0)
    np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-10 * np.max(np.abs(a)))


def _kept(family, memory, length):
  """Return the bytes that the backward pass gets from the forward pass, parameters apart."""
  make, shape = FAMILIES[family]
  loss, params, rest = _loss(nnx.eval_shape(lambda: make(length, memory)))
  x = jax.ShapeDtypeStruct((B, *shape), jnp.float64)
  backward = jax.eval_shape(lambda *a: jax.vjp(loss, *a)[1], params, rest, x)
  size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
  return size(backward) - size((params, rest))


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_activations_do_not_grow_with_depth(family):
  assert _kept(family, "reversible", 64) <= 1.05 * _kept(family, "reversible", 8)
  stored = _kept(family, "store", 8), _kept(family, "store", 64)
  assert stored[1] > 6 * stored[0] > 6 * _kept(family, "reversible", 8)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("family", FAMILIES)
def test_temporaries_do_not_grow_with_depth(family):
  make, shape = FAMILIES[family]

  def temporaries(memory, length):
    loss, params, rest = _loss(nnx.eval_shape(lambda: make(length, memory)))
    x = jax.ShapeDtypeStruct((1024, *shape), jnp.float64)
    compiled = jax.jit(jax.grad(loss)).lower(params, rest, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  shallow = temporaries("reversible", 8)
  assert temporaries("reversible", 64) <= 1.05 * shallow
  assert temporaries("store", 64) > 3 * shallow


@pytest.mark.parametrize("make", [models.affine_coupling_flow, models.maf])
def test_parameters_may_be_wider_than_the_data(make):
  x = jnp.asarray(np.random.default_rng(3).normal(size=(B, 4)), jnp.float32)

  def bars(memory):
    flow = make(4, num_layers=2, width=4, depth=1, memory=memory, rngs=nnx.Rngs(0), **WIDE)
    graphdef, params, rest = nnx.split(flow, nnx.Param, ...)
    log_prob = lambda params, x: nnx.merge(graphdef, params, rest).log_prob(x).sum()
    return jax.jit(jax.value_and_grad(log_prob, argnums=(0, 1)))(_moved(params), x)

  stored, rebuilt = bars("store"), bars("reversible")
  assert stored[1][1].dtype == rebuilt[1][1].dtype == jnp.float32
  for a, b in zip(jax.tree.leaves(stored), jax.tree.leaves(rebuilt), strict=True):
    np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


def test_training_goes_the_same_way():
  """Constant memory at equal losses: rebuilt inputs drift by rounding, over steps and layers."""
  with jax.enable_x64(False):
    x = jnp.asarray(np.random.default_rng(2).normal(size=(100, 16, 8)), jnp.float32)
    flows_of = lambda memory: models.affine_coupling_flow(
      8, num_layers=16, width=8, depth=1, memory=memory, rngs=nnx.Rngs(0)
    )
    optimizer = optax.adam(1e-2)

    @functools.partial(jax.jit, static_argnums=0)
    def train(graphdef, params, rest, x):
      def step(carry, batch):
        params, state = carry
        loss = lambda params: -nnx.merge(graphdef, params, rest).log_prob(2 * batch + 1).mean()
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(params, updates), state), value

      return jax.lax.scan(step, (params, optimizer.init(params)), x)[1]

    losses = []
    for memory in ("store", "reversible"):
      graphdef, params, rest = nnx.split(flows_of(memory), nnx.Param, ...)
      losses.append(np.asarray(train(graphdef, params, rest, x)))
  assert np.any(losses[1] != losses[0])
  assert losses[0][-1] < losses[0][0] - 4  # nats
  np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-4)
