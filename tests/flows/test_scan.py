"""Stacks of bijectors: order, arguments, and gradients that store no activations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import flows
from normjax.flows import Bijector
from tests.flows.affine_coupling import alternating_orders, random_coupling

MODES = ("store", "remat", "reversible")


class Warp(Bijector):
  """z = exp(s + t[label]) x + shift + cond v: no coupling, so `Scan` takes the generic path."""

  def __init__(self, rngs):
    draw = lambda shape: nnx.Param(0.3 * jax.random.normal(rngs.params(), shape))
    self.log_scale, self.table, self.shift, self.v = (
      draw((3,)),
      draw((4, 3)),
      draw((3,)),
      draw((3,)),
    )

  def _terms(self, cond):
    rows = self.table[...][cond["label"]]  # (b, 3)
    shift = self.shift[...][None] + cond["context"][:, None] * self.v[...][None]
    return self.log_scale[...][None] + rows, shift

  def forward(self, x, cond=None):
    log_scale, shift = self._terms(cond)
    return x * jnp.exp(log_scale) + shift, jnp.sum(log_scale, axis=1)

  def inverse(self, z, cond=None):
    log_scale, shift = self._terms(cond)
    return (z - shift) * jnp.exp(-log_scale), -jnp.sum(log_scale, axis=1)


def _normal(seed, shape):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _gradients(scan, x, cond):
  """Return the loss and its gradients by parameters, x and the floating leaves of cond."""
  graphdef, params, rest = nnx.split(scan, nnx.Param, ...)

  def loss(params, x, context):
    condition = context if "label" not in cond else cond | {"context": context}
    z, log_det = nnx.merge(graphdef, params, rest).forward(x, condition)
    return jnp.sum(jnp.sin(z)) + jnp.sum(log_det**2)

  run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
  value, (params_bar, x_bar, context_bar) = run(params, x, cond["context"])
  return value, nnx.to_pure_dict(params_bar), x_bar, context_bar


def _assert_same(one, other, atol=2e-5):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol), one, other)


def test_integer_and_floating_conditions_get_their_gradients():
  x = _normal(0, (5, 3))
  cond = {"context": _normal(1, (5,)), "label": jnp.array([0, 3, 1, 1, 2])}
  results = {m: _gradients(flows.Scan(Warp, 4, memory=m, rngs=nnx.Rngs(0)), x, cond) for m in MODES}
  assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(results["store"]))
  _assert_same(results["remat"], results["store"])
  _assert_same(results["reversible"], results["store"])


def test_couplings_conditions_get_their_gradients():
  x, cond = _normal(0, (5, 4)), {"context": _normal(1, (5, 2))}
  make = lambda rngs, order: random_coupling(rngs, order, cond_dim=2)
  results = {}
  for memory in MODES:
    scan = flows.Scan(make, 4, alternating_orders(4, 4), memory=memory, rngs=nnx.Rngs(0))
    results[memory] = _gradients(scan, x, cond)
  assert np.all(results["store"][3] != 0)
  _assert_same(results["remat"], results["store"])
  _assert_same(results["reversible"], results["store"])


@pytest.mark.parametrize("memory", MODES)
def test_layers_apply_first_to_last_with_their_slice(memory):
  make = lambda rngs, xs: flows.ElementwiseAffine(loc=xs["loc"], scale=xs["scale"])
  xs = {"loc": jnp.array([1.0, -2.0, 0.5]), "scale": jnp.array([2.0, 0.5, -3.0])}
  scan = flows.Scan(make, 3, xs, memory=memory, rngs=nnx.Rngs(0))
  x = expected = _normal(0, (2, 4))
  for loc, scale in zip(xs["loc"], xs["scale"], strict=True):
    expected = (expected - loc) / scale
  z, log_det = scan.forward(x)
  np.testing.assert_allclose(z, expected, rtol=1e-5)
  np.testing.assert_allclose(log_det, -4 * np.log(3.0), rtol=1e-5)
  back, inverse_log_det = scan.inverse(z)
  np.testing.assert_allclose(back, x, rtol=0, atol=1e-5)
  np.testing.assert_allclose(inverse_log_det, -log_det, rtol=1e-5)


def test_layers_draw_their_own_parameters():
  log_scale = flows.Scan(Warp, 5, rngs=nnx.Rngs(0)).layers.log_scale[...]
  assert log_scale.shape == (5, 3)
  assert len(np.unique(log_scale)) == 15


def test_wrong_arguments_are_refused():
  with pytest.raises(ValueError, match="length must be at least 1, got 0"):
    flows.Scan(Warp, 0, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="memory must be one of .*'reversible'.*, got 'revers'"):
    flows.Scan(Warp, 2, memory="revers", rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match=r"leading axis 3 \(length\), got shape \(2, 4\)"):
    flows.Scan(lambda rngs, xs: Warp(rngs), 3, jnp.zeros((2, 4)), rngs=nnx.Rngs(0))


@functools.cache
def _temporaries(memory, depth):
  """Return the bytes of temporaries of the gradient of Jet's loss, compiled but never run."""
  make = lambda: flows.Jet(
    (16, 16, 3), depth=depth, block_depth=1, emb_dim=128, num_heads=4, patch_size=4, memory=memory,
    rngs=nnx.Rngs(0),
  )  # fmt: skip
  graphdef, params, rest = nnx.split(nnx.eval_shape(make), nnx.Param, ...)

  def loss(params, rest, x):
    z, log_det = nnx.merge(graphdef, params, rest).forward(x)
    return jnp.mean(0.5 * jnp.sum(z**2, axis=(1, 2, 3)) - log_det)

  x = jax.ShapeDtypeStruct((16, 16, 16, 3), jnp.float32)
  compiled = jax.jit(jax.value_and_grad(loss)).lower(params, rest, x).compile()
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.usefixtures("optimized")
def test_reversible_memory_does_not_grow_with_depth():
  reversible = _temporaries("reversible", 64)
  assert reversible <= 1.05 * _temporaries("reversible", 8)
  assert reversible <= _temporaries("store", 64) / 40
  assert reversible < 0.6 * _temporaries("remat", 64)


@pytest.mark.usefixtures("optimized")
def test_stored_memory_grows_with_depth():
  shallow, deep = _temporaries("store", 8), _temporaries("store", 64)
  # 56 more couplings keep 16 to 24 activations of (batch 16, tokens 16, width 128) each: the MLP,
  # whose hidden layer is as large as 4 of them, keeps one array of that size, not five.
  activation = 56 * 16 * 16 * 128 * 4
  assert 16 * activation <= deep - shallow <= 24 * activation
  assert shallow > _temporaries("reversible", 8)
