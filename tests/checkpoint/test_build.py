import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import checkpoint, flows
from tests.checkpoint.states import jet_parts


def test_build_reads_lists_and_dtypes():
  kwargs = {"num_features": [2, 3], "axis": [1, 2], "param_dtype": "bfloat16", "dtype": "float16"}
  norm = checkpoint.build({"class": "normjax.norms.LayerNorm", "kwargs": kwargs}, nnx.Rngs(0))
  assert norm.scale.shape == (2, 3)
  assert norm.scale.dtype == jnp.bfloat16
  assert norm(jnp.ones((4, 2, 3))).dtype == jnp.float16


@pytest.fixture
def publish(monkeypatch):
  """Add a class to the public names of normjax.flows."""

  def add(cls):
    monkeypatch.setattr(flows, cls.__name__, cls, raising=False)
    monkeypatch.setattr(flows, "__all__", [*flows.__all__, cls.__name__])

  return add


def test_build_makes_arguments_of_json(publish):
  class Probe(nnx.Module):
    def __init__(self, sizes, options, mode, dtype, state_dtype=None):
      self.received = (sizes, options, mode, dtype, state_dtype)

  Probe.__module__ = "normjax.flows._probe"
  publish(Probe)
  kwargs = {
    "sizes": [2, [3, 4]],
    "options": {"class": "a", "other": [1]},
    "mode": "bfloat16",
    "dtype": "bfloat16",
    "state_dtype": "float32",
  }
  built = checkpoint.build({"class": "normjax.flows.Probe", "kwargs": kwargs}, nnx.Rngs(0))
  expected = {"class": "a", "other": (1,)}
  dtypes = (jnp.dtype("bfloat16"), jnp.dtype("float32"))
  assert built.received == ((2, (3, 4)), expected, "bfloat16", *dtypes)
  assert [type(x) for x in built.received[3:]] == [type(x) for x in dtypes]


def test_build_refuses_classes_from_elsewhere(publish):
  publish(nnx.Linear)
  with pytest.raises(ValueError, match="got 'normjax.flows.Linear'"):
    checkpoint.build({"class": "normjax.flows.Linear"}, nnx.Rngs(0))


def test_build_makes_nested_models():
  flow = checkpoint.from_state(jet_parts(3)[0], *jet_parts(3)[1:])
  assert isinstance(flow, flows.Flow)
  assert isinstance(flow.bijector, flows.Jet)
  assert isinstance(flow.base, flows.StandardNormal)
  assert flow.base.shape == (4, 4, 1)
  three, four = (jax.tree.leaves(jet_parts(seed)[1]) for seed in (3, 4))
  assert any(not np.array_equal(a, b) for a, b in zip(three, four, strict=True))


@pytest.mark.parametrize(
  ("name", "hint"),
  [
    ("os.system", ""),
    ("builtins.eval", ""),
    ("normjax.flows.Jett", "normjax.flows.Jet"),
    ("normjax.norms.Jet", "normjax.flows.Jet"),
    ("normjax.flows._jet.Jet", "normjax.flows.Jet"),
    ("normjax.flows._jet.JetNetwork", ""),
    ("normjax.flows.nnx", ""),
    ("normjax.flows.two_moons", ""),
    ("normjax.flows.POTENTIALS", ""),
    ("normjax.flows.Bijector", ""),
    ("normjax.checkpoint.Checkpointer", ""),
    ("normjax.checkpoint.load", ""),
    ("flax.nnx.Linear", ""),
    ("Jet", "normjax.flows.Jet"),
    ("normjax.flows", ""),
    ("", ""),
    (None, ""),
    (["normjax.flows.Jet"], ""),
  ],
)
def test_build_refuses_what_is_not_a_public_model(name, hint):
  with pytest.raises(ValueError, match="class must name a public nnx.Module of normjax") as error:
    checkpoint.build({"class": name}, nnx.Rngs(0))
  assert repr(name) in str(error.value)
  if hint:
    assert str(error.value).endswith(f"nearest: {hint}")


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("normjax.flows.Jet", "a model spec is"),
    ({"kwargs": {}}, "a model spec is"),
    ({"class": "normjax.flows.Jet", "args": []}, "a model spec is"),
    ({"class": "normjax.flows.Jet", "kwargs": [1]}, "must be a dict"),
    ({"class": "normjax.flows.StandardNormal", "kwargs": {"shap": [2]}}, "shap"),
    ({"class": "normjax.flows.StandardNormal"}, "missing a required argument: 'shape'"),
    ({"class": "normjax.flows.StandardNormal", "kwargs": {"shape": [0]}}, "positive ints"),
  ],
)
def test_build_refuses_bad_specs(spec, message):
  with pytest.raises(ValueError, match=message):
    checkpoint.build(spec, nnx.Rngs(0))
