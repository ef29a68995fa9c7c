"""What the tests of checkpoints save: a state with every kind of Variable, and a Jet."""

import os
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType

from normjax import checkpoint

ROOT = Path(__file__).resolve().parents[2]
RECORD = {"model": {"class": "tests.Net"}, "config": {"lr": 0.1, "data": {"name": "digits"}}}


class Carried(nnx.Variable):
  pass


class Net(nnx.Module):
  def __init__(self, rngs):
    self.linear = nnx.Linear(4, 8, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)
    self.carried = Carried(jnp.full((8,), 3.0))
    self.half = nnx.Param(jnp.linspace(0, 1, 5, dtype=jnp.bfloat16))
    self.order = Carried(jnp.array([2, 0, 1], jnp.int8))

  def __call__(self, x):
    self.carried[...] = self.carried[...] + 1
    return self.dropout(self.norm(self.linear(x)))


def init_state(seed=0):
  _, params, rest = checkpoint.to_state(Net(nnx.Rngs(seed)))
  return {
    "params": params,
    "rest": rest,
    "opt": optax.adamw(1e-3, mu_dtype=jnp.bfloat16).init(params),
    "key": jax.random.split(jax.random.key(seed), 3),
    "step": jnp.int32(seed),
  }


ABSTRACT = jax.eval_shape(init_state)
STATES = {step: init_state(step) for step in (5, 10, 15)}


def numbers():
  return iter(grain.MapDataset.range(100).shuffle(seed=1).repeat().to_iter_dataset())


class Position:
  """The protocol of a grain iterator, without its prefetching threads."""

  def __init__(self, state):
    self.state = state

  def get_state(self):
    return self.state

  def set_state(self, state):
    self.state = state


def raw(tree):
  is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree)


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype, path
    assert raw(x).tobytes() == raw(y).tobytes(), path


def mesh(n, *names):
  return jax.make_mesh(n, names, axis_types=(AxisType.Auto,) * len(n))


def snapshot(directory):
  return {p: p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def restore(workdir, step=None, abstract=ABSTRACT, data=None, record=RECORD):
  with checkpoint.Checkpointer(workdir, record) as checkpointer:
    return checkpointer.restore(abstract, data, step)


JET = {
  "class": "normjax.flows.Flow",
  "kwargs": {
    "bijector": {
      "class": "normjax.flows.Jet",
      "kwargs": {
        "shape": [4, 4, 1],
        "depth": 2,
        "block_depth": 1,
        "emb_dim": 8,
        "num_heads": 1,
        "patch_size": 2,
        "kinds": ["channels"],
        "dtype": "bfloat16",
      },
    },
    "base": {"class": "normjax.flows.StandardNormal", "kwargs": {"shape": [4, 4, 1]}},
  },
}


_structure = []


@jax.jit
def _jet_state(key):
  graphdef, params, rest = checkpoint.to_state(checkpoint.build(JET, nnx.Rngs(key)))
  _structure.append(graphdef)
  return params, rest


def jet_parts(seed):
  params, rest = _jet_state(jax.random.key(seed))
  return _structure[0], params, rest


def environment(**extra):
  return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **extra}


def flip_one_bit(path):
  content = bytearray(path.read_bytes())
  content[2 * len(content) // 3] ^= 4
  path.write_bytes(bytes(content))
