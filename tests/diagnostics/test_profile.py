"""Profiles: right numbers, in the order of calls, from a model that stays as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from normjax import blocks, diagnostics, norms

X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 4)), jnp.float32)


class Step(nnx.Module):
  def __init__(self, rngs):
    self.norm, self.linear = norms.RMSNorm(8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)

  def __call__(self, x):
    return x + self.linear(self.norm(x))


class Net(nnx.Module):
  """A layer with statistics, a scanned stack, a list, a layer called twice and one never called."""

  def __init__(self, rngs):
    self.unused = nnx.Linear(4, 4, rngs=rngs)
    self.begin = nnx.Linear(4, 8, rngs=rngs)
    self.norm = norms.BatchNorm(8, rngs=rngs)
    self.stack = blocks.Repeat(Step, 3, rngs=rngs)
    self.ends = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])

  def __call__(self, x):
    x = self.stack(self.norm(self.begin(x)))
    for layer in (*self.ends, self.ends[0]):
      x = layer(x)
    return x


@pytest.fixture(scope="module")
def model():
  return Net(nnx.Rngs(0))


@pytest.fixture(scope="module")
def found(model):
  return diagnostics.profile(model, X, loss=lambda y: jnp.sum(y**2))


def by_hand(model):
  """Return outputs and their gradients, layer by layer, of the model without its last layers."""
  model = nnx.merge(*nnx.split(model))
  graphdef, state = nnx.split(model.stack.blocks)
  steps = [nnx.merge(graphdef, jax.tree.map(lambda v, i=i: v[i], state)) for i in range(3)]

  def run(shifts):
    outputs = {}

    def tied(name, x):
      outputs[name] = x + shifts.get(name, 0.0)
      return outputs[name]

    x = tied("norm", norms.batch_norm(tied("begin", model.begin(X)))[0])
    for i, step in enumerate(steps):
      y = tied(
        f"stack.blocks.{i}.linear", step.linear(tied(f"stack.blocks.{i}.norm", step.norm(x)))
      )
      x = tied(f"stack.blocks.{i}", x + y)
    x = tied("stack", x)
    for layer in (*model.ends, model.ends[0]):
      x = layer(x)
    return jnp.sum(x**2), outputs

  _, outputs = run({})
  gradients, _ = jax.grad(run, has_aux=True)(jax.tree.map(jnp.zeros_like, outputs))
  return outputs, gradients


def test_layers_come_in_the_order_of_their_calls(found):
  stack = [f"stack.blocks.{i}{part}" for i in range(3) for part in (".norm", ".linear", "")]
  assert found.names == ("begin", "norm", *stack, "stack", "ends.0", "ends.1")
  assert found.kinds[:5] == ("Linear", "BatchNorm", "RMSNorm", "Linear", "Step")


def test_statistics_are_those_of_outputs_and_gradients(model, found):
  outputs, gradients = by_hand(model)
  for i, name in enumerate(found.names[:-2]):
    for side, arrays in ((found.activations, outputs), (found.gradients, gradients)):
      x = np.asarray(arrays[name], np.float64)
      expected = {
        "mean": x.mean(),
        "rms": np.sqrt((x**2).mean()),
        "std": x.std(),
        "max": np.abs(x).max(),
        "zeros": (x == 0).mean(),
        "channel_mean_square": (x.mean((0, 1)) ** 2).mean(),
        "channel_variance": x.var((0, 1)).mean(),
      }
      assert set(expected) == set(diagnostics.STATISTICS) == set(side)
      for statistic, value in expected.items():
        scale = expected["max"] if statistic == "mean" else abs(value) + 1e-6
        np.testing.assert_allclose(side[statistic][i], value, rtol=0, atol=2e-5 * scale)


def test_a_layer_called_twice_is_averaged(model, found):
  layers = nnx.merge(*nnx.split(model))
  x = layers.stack(layers.norm(layers.begin(X)))
  first = layers.ends[0](x)
  second = layers.ends[0](layers.ends[1](first))
  wanted = np.mean([np.abs(first).max(), np.abs(second).max()])
  np.testing.assert_allclose(found.activations["max"][-2], wanted, rtol=1e-5)


def test_the_model_stays_as_it_was(model):
  before = nnx.split(model)
  diagnostics.profile(model, X)
  after = nnx.split(model)
  assert before[0] == after[0]
  assert jax.tree.all(jax.tree.map(np.array_equal, before[1], after[1]))


def test_tree_mode_gives_the_same_numbers(model, found):
  with nnx.set_graph_mode(False), nnx.set_graph_updates(False):
    again = diagnostics.profile(model, X, loss=lambda y: jnp.sum(y**2))
  np.testing.assert_array_equal(again.gradients["rms"], found.gradients["rms"])


def test_without_a_loss_the_last_gradient_is_standard_normal():
  model = nnx.Sequential(nnx.Linear(4, 64, rngs=nnx.Rngs(0)))
  found = diagnostics.profile(model, jnp.ones((64, 4)))
  np.testing.assert_allclose(found.gradients["rms"], 1.0, atol=0.05)


def test_a_model_without_layers_is_refused():
  with pytest.raises(ValueError, match="model must call layers"):
    diagnostics.profile(norms.RMSNorm(4, rngs=nnx.Rngs(0)), X)


def test_the_picture_shows_something_and_an_unknown_statistic_is_refused(found, tmp_path):
  path = diagnostics.draw_profile({"one": found, "two": found}, tmp_path / "profile.png")
  pixels = np.asarray(Image.open(path).convert("L"))
  assert min(pixels.shape) > 300
  assert 0.02 < np.mean(pixels < 250) < 0.5
  with pytest.raises(ValueError, match="statistic must be one of mean, rms"):
    diagnostics.draw_profile(found, tmp_path / "profile.png", "median")
