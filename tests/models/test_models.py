"""Classifiers: they learn, evaluate each example by itself, and really hold the norm asked for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from normjax import checkpoint, models, norms

IMAGE = (8, 8, 1)
SPECS = {
  "MLP": {"shape": IMAGE, "width": 12, "depth": 3},
  "ResNet": {"in_features": 1, "width": 4, "depths": (2, 2)},
  "ViT": {"shape": IMAGE, "features": 8, "depth": 2, "num_heads": 2},
  "LSTMClassifier": {"in_features": 8, "width": 6},
}


def build(name, norm="batch_norm", **options):
  kwargs = {**SPECS[name], "num_classes": 3, "norm": norm, **options}
  return checkpoint.build({"class": f"normjax.models.{name}", "kwargs": kwargs}, nnx.Rngs(0))


def examples(name, count=16):
  rng = np.random.default_rng(0)
  label = np.arange(count) % 3
  image = rng.standard_normal((count, *IMAGE)) + label.reshape(-1, 1, 1, 1)
  return jnp.float32(image[..., 0] if name == "LSTMClassifier" else image), jnp.asarray(label)


@functools.cache
def trained(name, norm="batch_norm"):
  """Return a model after forty steps of gradient descent, and the losses."""
  graphdef, params, rest = checkpoint.to_state(build(name, norm))
  x, label = examples(name)

  def step(state, _):
    def loss_fn(params):
      model = checkpoint.from_state(graphdef, params, state[1])
      loss = optax.softmax_cross_entropy_with_integer_labels(model(x), label).mean()
      return loss, checkpoint.to_state(model)[2]

    (loss, rest), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state[0])
    return (jax.tree.map(lambda p, g: p - 0.05 * g, state[0], gradients), rest), loss

  state, losses = jax.jit(lambda s: jax.lax.scan(step, s, length=40))((params, rest))
  return checkpoint.from_state(graphdef, *state), np.asarray(losses)


@pytest.mark.parametrize("name", SPECS)
def test_steps_lower_the_loss(name):
  _, losses = trained(name)
  assert np.isfinite(losses).all()
  assert losses[-1] < 0.9 * losses[0]
  assert losses[1] < losses[0]


@pytest.mark.parametrize("name", SPECS)
def test_running_statistics_move_in_training_and_in_every_block(name):
  moved = 0
  for path, variable in nnx.to_flat_state(nnx.state(trained(name)[0], nnx.BatchStat)):
    if path[-1] == "mean":
      # Blocks in a scan have their statistics along a leading axis.
      rows = np.asarray(variable[...]).reshape(-1, variable.shape[-1])
      assert (np.abs(rows).max(-1) > 1e-4).all(), path
      moved += len(rows)
  assert moved == {"MLP": 3, "ResNet": 10, "ViT": 5, "LSTMClassifier": 1}[name]


@pytest.mark.parametrize("name", SPECS)
def test_evaluation_does_not_depend_on_the_batch_and_writes_nothing(name):
  model, _ = trained(name)
  x, _ = examples(name)
  train = jax.jit(lambda model, x: model(x))
  assert np.abs(train(model, x)[:4] - train(model, x[:4])).max() > 1e-3
  view = nnx.view(model, use_running_average=True)
  alone = jax.jit(lambda x: view(x))  # the model is no argument: a write would be an error
  before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(view)))
  np.testing.assert_allclose(alone(x)[:4], alone(x[:4]), rtol=1e-5, atol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(view)))


@pytest.mark.parametrize("name", SPECS)
def test_the_norm_is_the_one_asked_for(name):
  kinds = lambda model: {type(m) for _, m in nnx.iter_modules(model)} & set(norms.NAMES.values())
  for norm in ("batch_norm", "rms_norm"):
    assert kinds(build(name, norm)) == {norms.NAMES[norm]}
  x, _ = examples(name)
  outputs = [build(name, norm)(x) for norm in ("layer_norm", "rms_norm")]
  outputs.append(build(name, "layer_norm", norm_options={"epsilon": 3.0})(x))
  assert all(np.abs(outputs[i] - outputs[j]).max() > 1e-3 for i, j in ((0, 1), (0, 2), (1, 2)))
  with pytest.raises(ValueError, match="did you mean 'layer_norm'"):
    build(name, "layer_nrm")
  with pytest.raises(ValueError, match="layer_norm has no option 'decay'"):
    build(name, "layer_norm", norm_options={"decay": 0.5})


@pytest.mark.parametrize("name", ["MLP", "ResNet", "LSTMClassifier"])
def test_networks_without_a_norm(name):
  model = build(name, None)
  assert not any(type(m) in norms.NAMES.values() for _, m in nnx.iter_modules(model))
  assert model(examples(name)[0]).shape == (16, 3)
  with pytest.raises(ValueError, match="norm_options must be empty without a norm"):
    build(name, None, norm_options={"epsilon": 1.0})


def test_the_mlp_is_its_equation():
  model = build("MLP", "layer_norm")
  x, _ = examples("MLP", 2)
  h = np.asarray(x, np.float64).reshape(2, -1)
  layers = [(model.first.linear.kernel[...], model.first.linear.bias[...])]
  others = model.others.blocks.linear
  layers += list(zip(others.kernel[...], others.bias[...], strict=True))
  assert len(layers) == 3
  for kernel, bias in layers:
    h = h @ kernel + bias[None]
    h = np.maximum(0, (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6))
  expected = h @ model.head.kernel[...] + model.head.bias[...][None]
  np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-4)


def test_the_lstm_is_its_equation():
  model = build("LSTMClassifier", None)
  x, _ = examples("LSTMClassifier", 2)
  h = c = np.zeros((2, 6))
  total, sigmoid = 0, lambda v: 1 / (1 + np.exp(-v))
  for t in range(8):
    gates = x[:, t] @ model.input.kernel[...] + h @ model.recurrent.kernel[...]
    i, f, o, u = np.split(np.asarray(gates, np.float64), 4, axis=-1)
    c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(u)
    h = sigmoid(o) * np.tanh(c)
    total = total + h
  expected = total / 8 @ model.head.kernel[...] + model.head.bias[...][None]
  np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)


def test_a_resnets_blocks_are_its_depths():
  model = models.ResNet(1, 3, width=4, depths=(3, 1, 2), stem_stride=2, rngs=nnx.Rngs(0))
  repeated = [len(block.blocks.conv1.kernel) if hasattr(block, "blocks") else 1
              for stage in model.stages for block in stage]  # fmt: skip
  assert repeated == [3, 1, 1, 1]
  assert [stage[0].shortcut.kernel.shape for stage in list(model.stages)[1:]] == [
    (1, 1, 4, 8), (1, 1, 8, 16),
  ]  # fmt: skip
  assert model.head.kernel.shape == (16, 3)
  widths = jax.eval_shape(lambda x: model.stem(x), jnp.zeros((1, 8, 8, 1))).shape
  assert widths == (1, 4, 4, 4)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: models.MLP((2,), 3, depth=0, rngs=nnx.Rngs(0)), "depth must be at least 1, got 0"),
    (lambda: models.ResNet(1, 3, depths=(), rngs=nnx.Rngs(0)), r"depths must be one or more"),
    (lambda: models.ResNet(1, 0, rngs=nnx.Rngs(0)), "num_classes must be at least 1, got 0"),
    (lambda: models.ViT((9, 8, 1), 3, rngs=nnx.Rngs(0)), r"patch_size 4 divides, got \(9, 8, 1\)"),
    (lambda: build("MLP")(jnp.ones((2, 3))), r"x must have shape \(batch, \*\(8, 8, 1\)\)"),
    (lambda: build("ResNet")(jnp.ones((2, 8, 8, 3))), r"x must have shape \(b, h, w, 1\)"),
    (lambda: build("ViT")(jnp.ones((2, 8, 8, 3))), r"x must have shape \(batch, \*\(8, 8, 1\)\)"),
    (lambda: build("LSTMClassifier")(jnp.ones((2, 8))), r"x must have shape \(batch, time, 8\)"),
  ],
)
def test_wrong_arguments(make, message):
  with pytest.raises(ValueError, match=message):
    make()
