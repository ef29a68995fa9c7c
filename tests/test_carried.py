"""Increments that come back as cotangents: collected, added, and never seen by an optimizer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training.train_state import TrainState

from normjax import carried
from normjax.linen import to_linen

X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)), jnp.float32)


@jax.custom_vjp
def tracked(x, state):
  """Return x / (1 + state); the backward pass moves the state towards the mean cotangent."""
  return x / (1 + state)[None]


def _backward(saved, g):
  state = saved
  return g / (1 + state)[None], 0.5 * (jnp.mean(jnp.abs(g), 0) - state)


tracked.defvjp(lambda x, state: (tracked(x, state), state), _backward)


class Tracked(nnx.Module):
  def __init__(self, n, *, rngs):
    self.scale = nnx.Param(jnp.full(n, 2.0))
    self.size = carried.GradCarried(jnp.ones(n))

  def __call__(self, x):
    return self.scale[...][None] * tracked(x, self.size[...])


class Net(nnx.Module):
  """Two tracked layers, of which the second may be skipped."""

  def __init__(self):
    self.first, self.second = (Tracked(4, rngs=None) for _ in range(2))
    self.mean = nnx.BatchStat(jnp.zeros(4))

  def __call__(self, x, skip=False):
    self.mean[...] = jnp.mean(x, 0)
    x = self.first(x)
    return x if skip else self.second(x)


GRAPHDEF, PARAMS, STATE, REST = carried.split(Net())
SIZES = lambda state: np.stack([state["first"]["size"], state["second"]["size"]])


def loss_fn(params, state, x, skip=False):
  model = nnx.merge(GRAPHDEF, params, state, REST)
  return jnp.mean(model(x, skip) ** 2), carried.split(model)[3]


run = jax.jit(carried.value_and_grad(loss_fn), static_argnums=3)


def expected_sizes(params, state, x):
  """Return the new state of both layers, from the cotangents that autodiff gives them."""

  def outputs(shift):
    first, second = (1 / (1 + state[k]["size"]) for k in ("first", "second"))
    a = x * first[None] + shift[0]
    return (params["first"]["scale"][None] * a) * second[None] + shift[1]

  loss = lambda shift: jnp.mean((params["second"]["scale"][None] * outputs(shift)) ** 2)
  cotangents = jax.grad(loss)(jnp.zeros((2, *x.shape)))
  return 0.5 * SIZES(state) + 0.5 * np.mean(np.abs(cotangents), 1)


def test_split_separates_by_type_and_merge_restores():
  assert set(PARAMS) == set(STATE) == {"first", "second"}
  assert list(REST) == ["mean"]
  model = nnx.merge(GRAPHDEF, PARAMS, STATE, REST)
  np.testing.assert_array_equal(model(X), Net()(X))


def test_increments_lead_to_the_new_state_and_gradients_stay_gradients():
  (loss, rest), gradients, increments = run(PARAMS, STATE, X, False)
  new = carried.apply(STATE, increments)
  np.testing.assert_allclose(SIZES(new), expected_sizes(PARAMS, STATE, X), rtol=1e-6)
  np.testing.assert_allclose(rest["mean"], jnp.mean(X, 0), rtol=1e-6)
  step = 1e-3
  moved = jax.tree.map(lambda p: p + step, PARAMS)
  by_difference = (loss_fn(moved, STATE, X)[0] - loss) / step
  total = sum(jnp.sum(g) for g in jax.tree.leaves(gradients))
  np.testing.assert_allclose(by_difference, total, rtol=2e-2)


def test_a_layer_that_was_not_called_keeps_its_state():
  _, _, increments = run(PARAMS, STATE, X, True)
  assert np.any(increments["first"]["size"] != 0)
  assert np.all(increments["second"]["size"] == 0)


def test_remat_advances_the_state_once():
  rematerialized = carried.value_and_grad(jax.checkpoint(loss_fn, static_argnums=3))
  for one, other in zip(
    *map(
      jax.tree.leaves,
      (
        run(PARAMS, STATE, X, False),
        jax.jit(rematerialized, static_argnums=3)(PARAMS, STATE, X, False),
      ),
    ),
    strict=True,
  ):
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_accumulation_carries_the_state_through_the_micro_batches():
  def micro(state, x):
    _, gradients, increments = carried.value_and_grad(loss_fn)(PARAMS, state, x)
    return carried.apply(state, increments), gradients

  state, gradients = jax.jit(functools.partial(jax.lax.scan, micro))(STATE, X.reshape(4, 2, 4))
  one_by_one, mean = STATE, []
  for x in X.reshape(4, 2, 4):
    _, gradient, increments = run(PARAMS, one_by_one, x, False)
    one_by_one, mean = carried.apply(one_by_one, increments), [*mean, gradient]
  np.testing.assert_allclose(SIZES(state), SIZES(one_by_one), rtol=1e-6)
  for scanned, looped in zip(
    jax.tree.leaves(jax.tree.map(lambda g: g.mean(0), gradients)),
    jax.tree.leaves(jax.tree.map(lambda *g: sum(g) / 4, *mean)),
    strict=True,
  ):
    np.testing.assert_allclose(scanned, looped, rtol=1e-6)


def test_flax_train_state_takes_the_increments_of_a_linen_layer():
  """Clipping and the optimizer see parameters only: the state moves as `apply` moves it."""

  class Model(linen.Module):
    @linen.compact
    def __call__(self, x):
      x = to_linen(Tracked, 4, name="first")(x)
      return to_linen(Tracked, 4, name="second")(x)

  model, tx = Model(), optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(0.1))
  variables = model.init(jax.random.key(0), X)
  assert jax.tree.map(jnp.shape, variables[OVERWRITE_WITH_GRADIENT]) == jax.tree.map(
    jnp.shape, STATE
  )
  state = TrainState.create(apply_fn=model.apply, params=variables, tx=tx)

  @jax.jit
  def step(state):
    loss = lambda params: jnp.mean(state.apply_fn(params, X) ** 2)
    return state.apply_gradients(grads=jax.grad(loss)(state.params))

  params, sizes, opt = PARAMS, STATE, tx.init(PARAMS)
  for _ in range(3):
    state = step(state)
    _, gradients, increments = run(params, sizes, X, False)
    updates, opt = tx.update(gradients, opt, params)
    params, sizes = optax.apply_updates(params, updates), carried.apply(sizes, increments)
    np.testing.assert_allclose(
      SIZES(state.params[OVERWRITE_WITH_GRADIENT]), SIZES(sizes), rtol=1e-5
    )


@pytest.mark.parametrize("value", [jnp.zeros(2, jnp.int32), jnp.zeros(2, jnp.bfloat16)])
def test_a_state_that_loses_increments_is_refused(value):
  with pytest.raises(ValueError, match="value must be float32 or wider"):
    carried.GradCarried(value)
