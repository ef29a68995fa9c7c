"""A BatchNorm from torch's state dict, of arrays or of what looks like tensors."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import norms

RNG = np.random.default_rng(0)
GIVEN = {
  "weight": RNG.normal(size=3).astype(np.float32),
  "bias": RNG.normal(size=3).astype(np.float32),
  "running_mean": RNG.normal(size=3).astype(np.float32),
  "running_var": RNG.random(3).astype(np.float32) + 0.5,
  "num_batches_tracked": np.array(12),
}
X = RNG.normal(size=(5, 3)).astype(np.float32)


class Tensor:
  """A tensor that NumPy can only read detached, on the CPU, and as a double."""

  def __init__(self, value, ready=()):
    self.value, self.ready = np.asarray(value), set(ready)

  def detach(self):
    return Tensor(self.value, self.ready | {"detached"})

  def cpu(self):
    return Tensor(self.value, self.ready | {"cpu"})

  def is_floating_point(self):
    return self.value.dtype.kind == "f"

  def double(self):
    return Tensor(self.value.astype(np.float64), self.ready | {"double"})

  def __array__(self, dtype=None, copy=None):
    assert self.ready >= {"detached", "cpu"}
    assert "double" in self.ready or not self.is_floating_point()
    return self.value


def test_layer_evaluates_as_torch_does():
  layer = norms.BatchNorm(3, decay=1 - 0.1, epsilon=1e-5, rngs=nnx.Rngs(0))
  nnx.update(layer, norms.batch_norm_from_torch(GIVEN))
  layer.eval()
  g = GIVEN
  wanted = (X - g["running_mean"]) / np.sqrt(g["running_var"] + 1e-5) * g["weight"] + g["bias"]
  np.testing.assert_allclose(layer(X), wanted, rtol=1e-5, atol=1e-6)
  layer.train()
  layer(X)
  np.testing.assert_allclose(layer.mean, 0.9 * g["running_mean"] + 0.1 * X.mean(0), rtol=1e-5)
  np.testing.assert_allclose(layer.var, 0.9 * g["running_var"] + 0.1 * X.var(0, ddof=1), rtol=1e-5)


def test_tensors_of_one_layer_of_a_model_in_half_precision():
  model = {f"layer1.bn.{name}": Tensor(np.float16(v)) for name, v in GIVEN.items()}
  model["layer1.bn.num_batches_tracked"] = Tensor(12)
  model["layer1.conv.weight"] = Tensor(np.ones((2, 2)))
  tree = norms.batch_norm_from_torch(model, "layer1.bn.")
  assert sorted(tree) == ["bias", "mean", "scale", "var"]
  for ours, theirs in (("scale", "weight"), ("var", "running_var")):
    assert tree[ours].dtype == jnp.float32
    np.testing.assert_array_equal(tree[ours], GIVEN[theirs].astype(np.float16))


def test_layer_without_parameters():
  running = {name: GIVEN[name] for name in ("running_mean", "running_var")}
  assert sorted(norms.batch_norm_from_torch(running)) == ["mean", "var"]


@pytest.mark.parametrize(
  ("error", "changes"),
  [
    ("must hold running_mean, running_var .*track_running_stats=True",
     {"running_mean": None, "running_var": None}),
    (r"got \['conv.weight'\] too: give the prefix", {"conv.weight": np.ones(3)}),
    (r"vectors of one size \(c,\), got .*'mean': \(4,\)", {"running_mean": np.ones(4)}),
    ("vectors of one size", {"weight": np.ones((1, 3)), "bias": np.ones((1, 3))}),
    ("running_var must not be negative, got -1.0", {"running_var": np.array([1.0, -1.0, 1.0])}),
    ("bias must be floating, got int64", {"bias": np.arange(3)}),
  ],
)  # fmt: skip
def test_bad_state_dicts(error, changes):
  with pytest.raises(ValueError, match=error):
    norms.batch_norm_from_torch(GIVEN | changes)


def test_bad_prefix():
  with pytest.raises(ValueError, match=r"must hold bn.running_mean, bn.running_var .* got \['bias"):
    norms.batch_norm_from_torch(GIVEN, "bn.")
