"""What every layer promises, one row per layer: a new layer adds its row and nothing else."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from normjax import norms
from normjax.linen import to_linen

N = 6
EVERY_OTHER = np.array([True, False, True, True, False, True])


@dataclasses.dataclass(frozen=True)
class Row:
  """How to build a layer for n features, and what it can do.

  `true_gradient` is False where the backward pass is not the derivative of the forward pass.
  `wide` are options without which a float64 input is computed in a narrower dtype. `roundings` says
  how many roundings of its dtype, relative to the largest entry, a 16 bit output may be off.
  """

  cls: Callable[..., nnx.Module]
  args: Callable[[int], tuple] = lambda n: (n,)
  options: dict[str, Any] = dataclasses.field(default_factory=dict)
  shape: Callable[[int], tuple] = lambda n: (8, 3, n)
  method: str = "__call__"
  smallest: int = 1
  mask: bool = True
  same_shape: bool = True
  true_gradient: bool = True
  wide: dict[str, Any] = dataclasses.field(default_factory=dict)
  roundings: float = 1.0

  def build(self, n=N, **options):
    return self.cls(*self.args(n), **self.options, **options, rngs=nnx.Rngs(0))


# The names of `norms.NAMES`; then variants and the layers that are not in it.
NAMED = {
  "l2_normalize": Row(norms.L2Normalize, options={"use_scale": True, "use_bias": True}),
  "layer_norm": Row(norms.LayerNorm),
  "lp_normalize": Row(norms.LpNormalize, options={"p": 3.0}),
  "rms_norm": Row(norms.RMSNorm),
  "scale_norm": Row(norms.ScaleNorm, options={"use_bias": True}),
}
OTHERS = {
  "CRMSNorm": Row(norms.CRMSNorm, args=lambda n: (n + 1,), mask=False),
  "FixNorm": Row(norms.FixNorm, args=lambda n: (9, n), method="attend", mask=False,
                 same_shape=False, roundings=8),
  "LayerNorm, two axes": Row(norms.LayerNorm, args=lambda n: ((2, n),),
                             options={"axis": (1, 3)}, shape=lambda n: (8, 2, 3, n)),
  "LayerNorm, pre-normalized": Row(norms.LayerNorm, options={"prenormalize": True}, smallest=2,
                                   mask=False, wide={"compute_dtype": "float64"}),
  "RMSNorm, partial": Row(norms.RMSNorm, smallest=2,
                          options={"partial": 0.5, "epsilon_placement": "outside"}),
}  # fmt: skip
ROWS = NAMED | OTHERS


def draw(shape, seed=0, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def randomized(params):
  """Replace initial values: a scale of ones hides a scale that is not applied."""
  leaves, tree = jax.tree.flatten(params)
  return jax.tree.unflatten(tree, [draw(v.shape, i, v.dtype) for i, v in enumerate(leaves)])


def evaluator(row, module):
  """Return a jitted (params, rest, x, **call) -> (y, (dparams, dx), new rest), and the state."""
  graphdef, params, rest = nnx.split(module, nnx.Param, ...)

  @jax.jit
  def run(params, rest, x, **call):
    def loss(params, x):
      merged = nnx.merge(graphdef, params, rest, copy=True)
      y = getattr(merged, row.method)(x, **call)
      weight = draw(y.shape, seed=1, dtype=y.dtype)
      return jnp.sum(y * weight), (y, nnx.state(merged, nnx.Not(nnx.Param)))

    (_, (y, new)), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)
    return y, grads, new

  return run, randomized(params), rest


@functools.cache
def plain(name):
  """Return what many checks compare with: (input, run, params, rest, run's result)."""
  row = ROWS[name]
  x = draw(row.shape(N), seed=2)
  run, params, rest = evaluator(row, row.build())
  return x, run, params, rest, run(params, rest, x)


def assert_close(a, b, rtol=1e-6):
  """Compare trees of arrays, each relative to its largest entry."""
  flat_a, tree_a = jax.tree.flatten(a)
  flat_b, tree_b = jax.tree.flatten(b)
  assert tree_a == tree_b
  for u, v in zip(flat_a, flat_b, strict=True):
    u, v = np.asarray(u, np.float64), np.asarray(v, np.float64)
    np.testing.assert_allclose(u, v, rtol=0, atol=rtol * np.max(np.abs(v), initial=1e-30))


def finite(tree):
  return all(bool(jnp.all(jnp.isfinite(v))) for v in jax.tree.leaves(tree))


def test_every_layer_has_a_row_and_every_row_a_layer():
  assert set(NAMED) == set(norms.NAMES)
  for name, row in NAMED.items():
    assert norms.NAMES[name] is row.cls
  public = {v for v in vars(norms).values() if isinstance(v, type) and issubclass(v, nnx.Module)}
  assert {row.cls for row in ROWS.values()} == public


@pytest.mark.parametrize("name", ROWS)
def test_jit_equals_eager(name):
  row = ROWS[name]
  x, _, params, _, jitted = plain(name)
  module = row.build()
  nnx.update(module, params)
  eager = getattr(module, row.method)(x)
  assert_close(eager, jitted[0])
  assert (eager.shape == x.shape) == row.same_shape
  assert finite(jitted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ROWS)
def test_output_has_the_dtype_of_the_input_and_state_stays_float32(name, dtype):
  x, run, params, rest, _ = plain(name)
  x = (300 * x).astype(dtype)  # squares that are no float16
  y, (dparams, dx), new = run(params, rest, x)
  assert y.dtype == dx.dtype == dtype
  for leaf in jax.tree.leaves((params, dparams, rest, new)):
    assert leaf.dtype == jnp.float32
  wide = run(params, rest, x.astype(jnp.float32))[0]
  assert_close(y, wide, rtol=ROWS[name].roundings * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_dtype_decides_the_output(row):
  for given, wanted in ((jnp.bfloat16, jnp.float32), (jnp.float32, jnp.float16)):
    method = getattr(row.build(dtype=wanted), row.method)
    assert jax.eval_shape(method, draw(row.shape(N), dtype=given)).dtype == wanted


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.mask])
def test_masked_values_do_not_enter_the_statistics_and_are_normalized(name):
  x, run, params, rest, unmasked = plain(name)
  ones = (1,) * (x.ndim - 1)
  assert_close(run(params, rest, x, mask=jnp.ones((*ones, N), bool)), unmasked)
  mask = jnp.asarray(EVERY_OTHER).reshape(*ones, N)
  y = run(params, rest, x, mask=mask)[0]
  assert not np.allclose(y[..., EVERY_OTHER], unmasked[0][..., EVERY_OTHER])
  for junk in (1e4, jnp.inf, jnp.nan):
    y_junk = run(params, rest, jnp.where(mask, x, junk), mask=mask)[0]
    assert_close(y_junk[..., EVERY_OTHER], y[..., EVERY_OTHER])
  # With its initial parameters a layer maps equal entries of a row to equal outputs.
  fresh = ROWS[name].build()
  equal = jnp.where(mask, x, x[..., :1])
  y = fresh(equal, mask=mask)
  np.testing.assert_allclose(y[..., ~EVERY_OTHER], y[..., [0, 0]], rtol=1e-6)


@pytest.mark.parametrize("name", ROWS)
def test_one_feature_and_no_variance_give_finite_values_and_gradients(name):
  row = ROWS[name]
  x, run, params, rest, _ = plain(name)
  narrow, *state = evaluator(row, row.build(row.smallest))
  for value in (0.0, 3.0):
    assert finite(run(params, rest, jnp.full(x.shape, value)))
    assert finite(narrow(*state, jnp.full(row.shape(row.smallest), value)))


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.true_gradient])
def test_gradient_is_that_of_finite_differences(name):
  row = ROWS[name]
  with jax.enable_x64(True):
    module = row.build(**row.wide)
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    params = jax.tree.map(lambda v: v.astype(jnp.float64), randomized(params))

    @jax.jit
    def f(params, x):
      return getattr(nnx.merge(graphdef, params, rest, copy=True), row.method)(x)

    x = draw(row.shape(N), seed=2, dtype=jnp.float64)
    assert f(params, x).dtype == jnp.float64
    check_grads(f, (params, x), order=1, modes=["rev"], atol=1e-6, rtol=1e-6, eps=1e-5)


@pytest.mark.parametrize("name", ROWS)
def test_linen_equals_nnx(name):
  row = ROWS[name]
  x, _, params, _, (y, _, _) = plain(name)
  layer = to_linen(row.cls, *row.args(N), **row.options)
  variables = layer.init(jax.random.key(0), x, nnx_method=row.method)
  params = nnx.to_pure_dict(params)
  assert jax.tree.map(jnp.shape, variables.get("params", {})) == jax.tree.map(jnp.shape, params)
  apply = jax.jit(lambda variables: layer.apply(variables, x, nnx_method=row.method))
  assert_close(apply({**variables, "params": params}), y)


def test_checkpoint_brings_every_variable_back(tmp_path):
  modules = {name: row.build() for name, row in ROWS.items()}
  for module in modules.values():
    nnx.update(module, randomized(nnx.state(module)))
  state = {name: nnx.to_pure_dict(nnx.state(module)) for name, module in modules.items()}
  saved = {name: tree for name, tree in state.items() if tree}
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "state", saved)
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: saved))
  for name, row in ROWS.items():
    fresh = row.build()
    variables = [v for _, v in nnx.iter_graph(modules[name]) if isinstance(v, nnx.Variable)]
    assert len(jax.tree.leaves(restored.get(name, {}))) == len(variables)
    nnx.update(fresh, restored.get(name, {}))
    x = draw(row.shape(N))
    outputs = [getattr(module, row.method)(x) for module in (fresh, modules[name])]
    assert np.array_equal(*outputs)


@pytest.mark.parametrize("name", ROWS)
def test_batch_sharded_over_eight_devices_equals_one_device(name):
  x, run, params, rest, unsharded = plain(name)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
  params, rest = jax.device_put((params, rest), NamedSharding(mesh, PartitionSpec()))
  sharded = run(params, rest, x)
  assert len(sharded[0].sharding.device_set) == 8
  assert not sharded[0].sharding.is_fully_replicated
  assert_close(sharded, unsharded, rtol=2e-6)


@pytest.mark.parametrize("name", ROWS)
def test_tree_mode_equals_graph_mode(name):
  x, _, _, _, graph = plain(name)
  with nnx.set_graph_mode(False), nnx.set_graph_updates(False):
    run, params, rest = evaluator(ROWS[name], ROWS[name].build())
    tree = run(params, rest, x)
  assert_close(tree, graph)


@pytest.mark.parametrize("cls", [norms.LayerNorm, norms.RMSNorm])
def test_large_float16_rows_overflow_without_the_prenormalizer_only(cls):
  x = draw((4, 512), seed=3, dtype=jnp.float16) * 300
  exact = cls(512, rngs=nnx.Rngs(0))(x.astype(jnp.float32))
  naive = cls(512, compute_dtype=jnp.float16, rngs=nnx.Rngs(0))(x)
  assert np.all(np.abs(naive) < 1e-2 * np.abs(exact) + 1e-6)  # divided by infinity
  safe = cls(512, compute_dtype=jnp.float16, prenormalize=True, rngs=nnx.Rngs(0))(x)
  np.testing.assert_allclose(safe, exact, rtol=0, atol=1e-2)
