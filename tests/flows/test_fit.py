"""Training in one call: each step, each epoch and each stop against what they are by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from normjax import flows

KEY = jax.random.key(0)
ALWAYS_ONE = optax.GradientTransformation(
  lambda params: optax.EmptyState(),
  lambda grads, state, params=None: (jax.tree.map(jnp.ones_like, grads), state),
)


class Weight(nnx.Module):
  """One number."""

  def __init__(self, w=0.0):
    self.w = nnx.Param(jnp.asarray(w))


def _table(n, seed=0):
  return np.random.default_rng(seed).normal(size=(n, 2)).astype(np.float32) * 2 + 1


@pytest.mark.parametrize("graph", [True, False])
def test_full_batches_are_gradient_descent(graph):
  x, rate = _table(50), 0.1
  loc, log_scale = np.zeros(2), np.zeros(2)
  for _ in range(5):
    eps = (x - loc) * np.exp(-log_scale)
    loc_bar, log_scale_bar = -np.mean(eps, 0) * np.exp(-log_scale), 1 - np.mean(eps**2, 0)
    loss = np.mean(np.sum(eps**2 / 2 + log_scale + np.log(2 * np.pi) / 2, axis=1))
    loc, log_scale = loc - rate * loc_bar, log_scale - rate * log_scale_bar
  with nnx.set_graph_mode(graph), nnx.set_graph_updates(graph):
    flow = flows.Flow(flows.ElementwiseAffine(0.0, 1.0), flows.DiagonalNormal((2,)))
    result = flows.fit(
      flow, x, key=KEY, optimizer=optax.sgd(rate), epochs=5, validation_fraction=0.0
    )
    np.testing.assert_allclose(result.flow.base.loc[...], loc, rtol=1e-5)
    np.testing.assert_allclose(result.flow.base.log_scale[...], log_scale, rtol=1e-5)
    np.testing.assert_allclose(result.flow.log_prob(x[:1]).shape, (1,))
    assert np.all(flow.base.loc[...] == 0)  # the old one is left as it is
  assert result.train_losses.shape == (5,)
  np.testing.assert_allclose(result.train_losses[-1], loss, rtol=1e-5)
  assert result.validation_losses.shape == (0,)
  assert result.best_epoch == 4


def test_an_epoch_sees_every_example_once_and_the_rest_is_held_out():
  x, seen = np.arange(1.0, 11.0), []
  slope = lambda model, x, cond, key: model.w * x + 0 * jax.random.uniform(key)
  # With the rate of the batch size, w falls by the sum of the examples seen.
  options = dict(key=KEY, objective=slope, optimizer=optax.sgd(2.0), batch_size=2)
  result = flows.fit(Weight(), x, epochs=1, validation_fraction=0.0, **options)
  assert float(result.flow.w[...]) == -x.sum()
  result = flows.fit(Weight(), x[:9], epochs=3, validation_fraction=0.0, **options)
  assert -3 * x[1:9].sum() <= float(result.flow.w[...]) <= -3 * x[:8].sum()
  result = flows.fit(
    Weight(), x, epochs=1, validation_fraction=0.3, callback=lambda *a: seen.append(a), **options
  )
  # Seven are left to train on, six of them in whole batches; three are held out, in a batch and a
  # half. Their loss is w times their mean, where w is minus the sum of the six.
  held_out = float(result.validation_losses[0] / result.flow.w[...] * 3)
  left_out = x.sum() + float(result.flow.w[...]) - held_out
  assert round(left_out, 3) in x
  assert round(held_out, 3) in range(6, 28)
  assert seen == [(0, float(result.train_losses[0]), float(result.validation_losses[0]))]


def test_epochs_are_shuffled_and_conditions_stay_with_their_examples():
  x = np.arange(8.0)
  cond = {"twin": x, "label": np.arange(8)}
  first = []

  def objective(model, x, cond, key):
    return model.w + x[0] + 100 * (jnp.abs(x - cond["twin"]) + jnp.abs(x - cond["label"]))

  result = flows.fit(
    Weight(), x, cond, key=KEY, objective=objective, optimizer=optax.sgd(0.0), epochs=6,
    batch_size=8, validation_fraction=0.0, callback=lambda epoch, loss, _: first.append(loss),
  )  # fmt: skip
  assert all(loss in x for loss in first)
  assert len(set(first)) > 2
  np.testing.assert_array_equal(result.train_losses, first)


def test_stops_early_and_returns_the_best_epoch():
  objective = lambda model, x, cond, key: (model.w - 3) ** 2 + 0 * x
  fit = lambda **options: flows.fit(
    Weight(), np.zeros(10), key=KEY, objective=objective, optimizer=ALWAYS_ONE, epochs=9, **options
  )
  result = fit(patience=2)
  np.testing.assert_allclose(result.validation_losses, [4, 1, 0, 1, 4])
  np.testing.assert_allclose(result.train_losses, [9, 4, 1, 0, 1])
  assert (result.best_epoch, float(result.flow.w[...])) == (2, 3.0)
  result = fit(patience=None)
  assert len(result.validation_losses) == 9
  assert (result.best_epoch, float(result.flow.w[...])) == (2, 3.0)


def test_dropout_draws_anew_in_each_step_and_is_off_for_held_out_examples():
  class Dropped(nnx.Module):
    def __init__(self):
      self.w = nnx.Param(jnp.zeros(()))
      self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=0))

  objective = lambda model, x, cond, key: 0 * model.w + model.dropout(x)
  result = flows.fit(
    Dropped(), np.ones(20), key=KEY, objective=objective, optimizer=optax.sgd(0.0), epochs=5,
  )  # fmt: skip
  np.testing.assert_array_equal(result.validation_losses, 1)
  assert len(np.unique(result.train_losses)) > 2
  assert result.flow.dropout.deterministic


def test_running_statistics_move_with_every_batch():
  x = _table(40)
  flow = flows.Flow(flows.BatchNormFlow(2, decay=0.5), flows.StandardNormal((2,)))
  options = dict(key=KEY, optimizer=optax.sgd(0.0), epochs=3, validation_fraction=0.0)
  layer = flows.fit(flow, x, **options).flow.bijector
  # Whole batches: three steps from 0 and 1 towards their moments.
  np.testing.assert_allclose(layer.mean[...], 7 / 8 * x.mean(0), rtol=1e-5)
  np.testing.assert_allclose(layer.var[...], 1 / 8 + 7 / 8 * x.var(0), rtol=1e-5)
  np.testing.assert_array_equal(flow.bijector.mean[...], 0)

  class Normed(nnx.Module):
    def __init__(self):
      self.norm = nnx.BatchNorm(2, momentum=0.5, rngs=nnx.Rngs(0))

  objective = lambda model, x, cond, key: jnp.sum(model.norm(x), axis=1)
  norm = flows.fit(Normed(), x, objective=objective, **options).flow.norm
  np.testing.assert_allclose(norm.mean[...], 7 / 8 * x.mean(0), rtol=1e-5)


def test_what_is_not_finite_ends_training():
  fit = lambda objective, w, **options: flows.fit(
    Weight(w), np.ones(4), key=KEY, objective=objective, batch_size=1, epochs=3, **options
  )
  line = lambda model, x, cond, key: model.w * x
  rate = dict(optimizer=optax.sgd(1.0), validation_fraction=0.0)
  log = lambda model, x, cond, key: jnp.log(model.w) + 0 * x
  with pytest.raises(FloatingPointError, match="the loss is nan at step 1 of epoch 0: lower the"):
    fit(log, 0.5, **rate)
  with pytest.raises(FloatingPointError, match="parameters are not finite after epoch 0"):
    flows.fit(
      Weight(), np.ones(1), key=KEY, objective=line, optimizer=optax.sgd(float("nan")), epochs=1,
      validation_fraction=0.0,
    )  # fmt: skip
  sides = lambda model, x, cond, key: jnp.where(model.w[...] < 1, model.w * x, jnp.inf)
  with pytest.raises(FloatingPointError, match="held-out loss is inf after epoch 0"):
    flows.fit(Weight(), np.ones(2), key=KEY, objective=sides, optimizer=ALWAYS_ONE, epochs=1)


def test_bad_arguments_are_refused():
  flow, x = flows.Flow(flows.Chain([]), flows.StandardNormal((2,))), _table(8)
  for options, match in [
    ({"epochs": 0}, "epochs must be at least 1, got 0"),
    ({"batch_size": 0}, "batch_size must be at least 1"),
    ({"patience": 0}, "patience must be at least 1"),
    ({"validation_fraction": 1.0}, r"validation_fraction must be in \[0, 1\), got 1.0"),
    ({"cond": np.zeros((7, 1))}, r"cond must have 8 rows, as x has, got shape \(7, 1\)"),
  ]:
    with pytest.raises(ValueError, match=match):
      flows.fit(flow, x, key=KEY, **options)
  with pytest.raises(ValueError, match=r"n > 1, got \(1, 2\)"):
    flows.fit(flow, x[:1], key=KEY)
  with pytest.raises(ValueError, match="x must be floating"):
    flows.fit(flow, x.astype(int), key=KEY)
  with pytest.raises(ValueError, match="flow must be a flows.Distribution without an objective"):
    flows.fit(Weight(), x, key=KEY)
