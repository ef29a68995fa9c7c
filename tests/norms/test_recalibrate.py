"""Exact running statistics: of all positions, whatever the batches, the masks and the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import norms

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(3.0, 2.0, (10, 4, 3)), jnp.float32)
# Batches of which the last is smaller and elsewhere.
BATCHES = [X[:4], X[4:8], 5 + X[8:]]
ROWS = np.concatenate(BATCHES).reshape(-1, 3)


class Net(nnx.Module):
  """A norm, a linear layer, dropout and a norm, and one that is never called."""

  def __init__(self, **options):
    rngs = nnx.Rngs(0)
    self.first = norms.BatchNorm(3, **options, rngs=rngs)
    self.layers = nnx.List([nnx.Linear(3, 2, rngs=rngs), norms.BatchNorm(2, rngs=rngs)])
    self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
    self.unused = norms.BatchNorm(2, rngs=rngs)

  def __call__(self, x, mask=None):
    x = self.layers[0](self.first(x, mask=mask))
    return self.layers[1](self.dropout(x), mask=mask)


def assert_statistics(norm, rows, rtol=1e-5):
  np.testing.assert_allclose(norm.mean[...], np.mean(rows, 0), rtol=rtol, atol=1e-5)
  np.testing.assert_allclose(norm.var[...], np.var(rows, 0), rtol=rtol)


@pytest.mark.parametrize("evaluates", [False, True])
def test_each_layer_gets_the_statistics_of_all_that_it_meets(evaluates):
  model = Net(use_running_average=evaluates, decay=0.99)
  model.unused.mean[...] = jnp.ones(2)
  before = nnx.to_pure_dict(nnx.state(model))
  counts = norms.recalibrate(model, iter(BATCHES))
  assert counts == {"first": 40, "layers/1": 40, "unused": 0}
  assert_statistics(model.first, ROWS)
  # The second layer meets batches that the first normalized by their own statistics.
  alike = lambda x: norms.batch_norm(x)[0]
  assert_statistics(model.layers[1], np.concatenate([model.layers[0](alike(x)) for x in BATCHES])
                    .reshape(-1, 2), 1e-4)  # fmt: skip
  after = nnx.to_pure_dict(nnx.state(model))
  for tree in (before, after):
    tree["first"] = {k: v for k, v in tree["first"].items() if k not in ("mean", "var")}
    tree["layers"][1] = {}
  assert jax.tree.structure(before) == jax.tree.structure(after)
  assert all(
    bool(jnp.all(u == v)) for u, v in zip(*map(jax.tree.leaves, (before, after)), strict=True)
  )
  assert type(model.first) is norms.BatchNorm
  assert model.first.use_running_average == evaluates


def test_masks_decide_what_counts():
  model = Net()
  masks = [jnp.asarray(RNG.random(x.shape[:2]) < 0.5) for x in BATCHES]
  masks[1] = jnp.zeros_like(masks[1])
  batches = list(zip(BATCHES, masks, strict=True))
  counts = norms.recalibrate(model, batches, lambda model, batch: model(batch[0], mask=batch[1]))
  rows = np.concatenate([np.asarray(x)[np.asarray(mask)] for x, mask in batches])
  assert counts["first"] == len(rows)
  assert_statistics(model.first, rows)


def test_renorm_keeps_what_it_averages():
  for average, wanted in (("sigma", np.sqrt(ROWS.var(0) + 1e-3)), ("var", ROWS.var(0))):
    model = nnx.List([
      norms.BatchRenorm(3, average=average, rngs=nnx.Rngs(0)), norms.BatchNorm(3, rngs=nnx.Rngs(0))
    ])  # fmt: skip
    model[0].mean[...] = 100 * jnp.ones(3)  # would move what the second layer meets
    norms.recalibrate(model, BATCHES, lambda model, x: model[1](model[0](x)))
    np.testing.assert_allclose(model[0].mean[...], ROWS.mean(0), rtol=1e-5)
    np.testing.assert_allclose(getattr(model[0], average)[...], wanted, rtol=1e-5)
    assert model[0].step[...] == 0
    np.testing.assert_allclose(model[1].mean[...], np.zeros(3), atol=1e-5)


def test_a_layer_that_is_called_twice_meets_both_inputs():
  norm = norms.BatchNorm(3, rngs=nnx.Rngs(0))
  counts = norms.recalibrate(norm, BATCHES, lambda norm, x: (norm(x), norm(2 * x)))
  assert counts == {"": 80}
  assert_statistics(norm, np.concatenate([ROWS, 2 * ROWS]))


def test_a_layer_that_is_told_to_evaluate_stays():
  model = nnx.List([norms.BatchNorm(3, rngs=nnx.Rngs(i)) for i in range(2)])
  model[0].mean[...] = jnp.array([1.0, 2.0, 3.0])
  counts = norms.recalibrate(model, BATCHES, lambda m, x: m[1](m[0](x, use_running_average=True)))
  assert counts == {"0": 0, "1": 40}
  np.testing.assert_array_equal(model[0].mean[...], [1, 2, 3])
  inverse = 1 / np.sqrt(1 + 1e-5)
  assert_statistics(model[1], (ROWS - np.array([1, 2, 3])) * inverse)


def test_a_stack_under_scan_and_a_subclass():
  class Doubled(norms.BatchNorm):
    def __call__(self, x, *args, **kwargs):
      return 2 * super().__call__(x, *args, **kwargs)

  @nnx.split_rngs(splits=2)
  @nnx.vmap
  def create(rngs):
    return Doubled(3, rngs=rngs)

  model = nnx.Dict(stack=create(nnx.Rngs(0)))

  def forward(model, x):
    graphdef, state = nnx.split(model.stack)

    def body(x, state):
      layer = nnx.merge(graphdef, state)
      return layer(x), nnx.to_pure_dict(nnx.state(layer))

    x, new = jax.lax.scan(body, x, nnx.to_pure_dict(state))
    nnx.update(model.stack, new)
    return x

  counts = norms.recalibrate(model, BATCHES, forward)
  assert counts == {"stack": 80}
  stack = model.stack
  assert type(stack) is Doubled
  np.testing.assert_allclose(stack.mean[...][0], ROWS.mean(0), rtol=1e-5)
  np.testing.assert_allclose(stack.var[...][0], ROWS.var(0), rtol=1e-5)
  np.testing.assert_allclose(stack.mean[...][1], np.zeros(3), atol=1e-5)
  np.testing.assert_allclose(stack.var[...][1], np.full(3, 4), rtol=1e-4)


def test_one_program_serves_all_batches_of_a_shape():
  traced = []

  def forward(model, x):
    traced.append(x.shape)
    return model(x)

  norms.recalibrate(norms.BatchNorm(3, rngs=nnx.Rngs(0)), [X, X + 1, X - 1], forward)
  assert traced == [X.shape]


def test_nothing_to_recalibrate_is_an_error():
  with pytest.raises(ValueError, match="model must hold BatchNorm or BatchRenorm layers, got Lin"):
    norms.recalibrate(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), BATCHES)
  norm = norms.BatchNorm(3, rngs=nnx.Rngs(0))
  nowhere = jnp.zeros((1, 1), bool)
  for batches, forward in (([], norm), (BATCHES, lambda m, x: m(x, mask=nowhere))):
    with pytest.raises(
      ValueError, match=r"batches must bring valid positions to a layer of \[''\]"
    ):
      norms.recalibrate(norm, batches, forward)
  np.testing.assert_array_equal(norm.mean[...], np.zeros(3))
