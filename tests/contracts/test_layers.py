"""What every layer promises, one row per layer: a new layer adds its row and nothing else."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from normjax import norms
from normjax.carried import GradCarried
from normjax.linen import to_linen
from normjax.norms._running import RunningMode
from tests.contracts.variants import variants_slow

N = 6
EVERY_OTHER = np.array([True, False, True, True, False, True])


@dataclasses.dataclass(frozen=True)
class Row:
  """How to build a layer for n features, and what it can do.

  `mask` says which mask the layer takes: of the "features" of each row, of the "positions" of the
  batch, of the "space" of each example, or none. `extra` makes the further arguments of a call for
  an input of this shape, each with the batch as its first axis. `modal` is False where a layer with
  a mode keeps no statistics with these options. `true_gradient` is False where the backward pass of
  training is not the derivative of the forward pass. `still` names state that a first training step
  may leave as it was. `wide` are options without which a float64 input is computed in a narrower
  dtype. `roundings` says how many roundings of its dtype, relative to the largest entry, a 16 bit
  output may be off.
  """

  cls: Callable[..., nnx.Module]
  args: Callable[[int], tuple] = lambda n: (n,)
  options: dict[str, Any] = dataclasses.field(default_factory=dict)
  shape: Callable[[int], tuple] = lambda n: (8, 3, n)
  extra: Callable[[tuple[int, ...]], tuple] = lambda shape: ()
  method: str = "__call__"
  modal: bool = True
  smallest: int = 1
  mask: Literal["features", "positions", "space"] | None = "features"
  same_shape: bool = True
  true_gradient: bool = True
  still: tuple[str, ...] = ()
  wide: dict[str, Any] = dataclasses.field(default_factory=dict)
  roundings: float = 1.0

  def build(self, n=N, **options):
    return self.cls(*self.args(n), **self.options, **options, rngs=nnx.Rngs(0))

  def call(self, module, x, **call):
    return getattr(module, self.method)(x, *self.extra(x.shape), **call)


def features_beside(shape):
  return (draw((*shape[:3], 5), seed=4),)


def layout_beside(shape):
  """A layout of 5 classes, larger than the input."""
  return (np.random.default_rng(4).integers(0, 5, (shape[0], 7, 9)),)


def frames_beside(shape):
  return (draw((*shape[:2], 4), seed=4),)


def hole_beside(shape):
  return (np.random.default_rng(4).random((shape[0], 7, 9, 1)) < 0.4,)


# Images, whose frequency norms have a spectrum.
IMAGES = dict(shape=lambda n: (8, 3, 4, n), mask=None)


# What the named layers of `norms.NAMES` need beside their names.
PARTICULARS = {
  "batch_norm": dict(mask="positions"),
  "batch_renorm": dict(mask="positions", options={"r_max": 1.05, "d_max": 0.05},
                       true_gradient=False),
  "group_norm": dict(mask="space", options={"num_groups": 3}, smallest=3),
  "instance_norm": dict(mask="space", options={"use_scale": True, "use_bias": True}),
  "l2_normalize": dict(options={"use_scale": True, "use_bias": True}),
  "lp_normalize": dict(options={"p": 3.0}),
  "online_norm": dict(mask="positions", true_gradient=False),
  "power_norm": dict(mask="positions", true_gradient=False),
  "power_norm_v": dict(mask="positions"),
  "dynamic_erf": dict(mask=None),
  "dynamic_tanh": dict(mask=None),
  "elementwise_layer_norm": dict(mask=None),
  "positional_norm": dict(smallest=2),
  "cc_norm": IMAGES,
  "pc_norm": IMAGES,
  "sc_norm": IMAGES,
  "region_norm_learnable": dict(shape=lambda n: (8, 4, 3, n), mask=None),
  "scale_norm": dict(options={"use_bias": True}),
  "unified_norm": dict(mask="positions", true_gradient=False, still=("skips",)),
}  # fmt: skip
NAMED = {name: Row(cls, **PARTICULARS.get(name, {})) for name, cls in norms.NAMES.items()}
# Variants, and the layers that are not in the registry.
OTHERS = {
  "AttentiveBatchNorm": Row(norms.AttentiveBatchNorm, args=lambda n: (n, 4),
                            options={"window": 2, "summary_features": 5, "score_features": 3},
                            extra=frames_beside, mask="positions"),
  "AttentiveBatchNorm, utterance": Row(norms.AttentiveBatchNorm, args=lambda n: (n, 4),
                                       options={"scheme": "utterance"},
                                       extra=frames_beside,
                                       mask="positions"),
  "BatchNorm, ghost": Row(norms.BatchNorm, options={"ghost_batch_size": 4}, mask="positions"),
  "BatchRenorm, averaged variance": Row(
    norms.BatchRenorm, options={"r_max": 1.05, "d_max": 0.05, "average": "var"}, mask="positions",
    true_gradient=False),
  "CCNorm, closed form": Row(norms.CCNorm, options={"method": "closed_form"}, **IMAGES),
  "CRMSNorm": Row(norms.CRMSNorm, args=lambda n: (n + 1,), mask=None),
  "ElementwiseLayerNorm, bound of LayerNorm": Row(
    norms.ElementwiseLayerNorm, mask=None, smallest=2,
    options={"bound": "sqrt_c_minus_1", "parametrization": "exp"}),
  "FeatureNorm, centered": Row(norms.FeatureNorm, args=lambda n: ((3, n),),
                               options={"mode": "sv", "axis": (1, 2)}),
  "FADE": Row(norms.FADE, args=lambda n: (n, 5), shape=lambda n: (8, 4, 3, n), mask=None,
              extra=features_beside, modal=False),
  "FixNorm": Row(norms.FixNorm, args=lambda n: (9, n), method="attend", mask=None,
                 same_shape=False, roundings=8),
  "LayerNorm, two axes": Row(norms.LayerNorm, args=lambda n: ((2, n),),
                             options={"axis": (1, 3)}, shape=lambda n: (8, 2, 3, n)),
  "LayerNorm, pre-normalized": Row(norms.LayerNorm, options={"prenormalize": True}, smallest=2,
                                   mask=None, wide={"compute_dtype": "float64"}),
  "OnlineNorm, layer scaling": Row(norms.OnlineNorm, mask="positions", true_gradient=False,
                                   smallest=3,
                                   options={"ecm": "ls", "ls_group_size": 3, "ecm_first": True,
                                            "method": "associative"}),
  "PowerNorm, exact warm-up": Row(norms.PowerNorm, mask="positions", still=("err",),
                                  options={"num_groups": None, "warmup_backward": "exact"}),
  "PowerNorm, two groups": Row(norms.PowerNorm, mask="positions", true_gradient=False,
                               smallest=2, options={"num_groups": 2}),
  "PositionalNorm, affine": Row(norms.PositionalNorm, smallest=2, options={
    "positions": (3,), "use_scale": True, "use_bias": True}),
  "RegionNorm": Row(norms.RegionNorm, shape=lambda n: (8, 4, 3, n), mask=None, extra=hole_beside),
  "RegionNorm, instance": Row(
    norms.RegionNorm, shape=lambda n: (8, 4, 3, n), mask=None, extra=hole_beside,
    options={"stats_axes": "instance", "masked_bias": True}),
  "SPADE, batch": Row(norms.SPADE, args=lambda n: (n, 5), shape=lambda n: (8, 4, 3, n),
                      mask="positions", extra=layout_beside,
                      options={"norm": "batch", "hidden_features": 4}),
  "RMSNorm, partial": Row(norms.RMSNorm, smallest=2,
                          options={"partial": 0.5, "epsilon_placement": "outside"}),
  # The first batch is an outlier to a window of zeros.
  "UnifiedNorm, outlier": Row(norms.UnifiedNorm, mask="positions", true_gradient=False,
                              options={"warmup_iters": 0, "outlier_filtration": True},
                              still=("err_recent",)),
  "PCNorm, closed form": Row(norms.PCNorm, options={"method": "closed_form"}, **IMAGES),
  "SCNorm, closed form": Row(norms.SCNorm, options={"method": "closed_form"}, **IMAGES),
}  # fmt: skip
ROWS = NAMED | OTHERS
MODAL = [name for name, row in ROWS.items() if issubclass(row.cls, RunningMode) and row.modal]


def draw(shape, seed=0, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def randomized(params):
  """Replace initial values: a scale of ones hides a scale that is not applied."""
  leaves, tree = jax.tree.flatten(params)
  return jax.tree.unflatten(tree, [draw(v.shape, i, v.dtype) for i, v in enumerate(leaves)])


def evaluator(row, module):
  """Return a jitted run and the state it takes.

  `run(params, rest, x, **call)` returns `y, gradients, new`: of params and x, of what the backward
  pass writes (carried increments), and the rest as the forward pass leaves it.
  """
  graphdef, params, carried, rest = nnx.split(module, nnx.Param, GradCarried, ...)

  @jax.jit
  def run(params, rest, x, **call):
    def loss(params, carried, x):
      merged = nnx.merge(graphdef, params, carried, rest[1], copy=True)
      y = row.call(merged, x, **call)
      weight = draw(y.shape, seed=1, dtype=y.dtype)
      forward = nnx.state(merged, nnx.Not(nnx.Any(nnx.Param, GradCarried)))
      return jnp.sum(y * weight), (y, forward)

    (_, (y, new)), (dparams, increments, dx) = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(
      params, rest[0], x
    )
    return y, (dparams, dx), (increments, new)

  return run, randomized(params), (carried, rest)


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
  assert set(PARTICULARS) <= set(norms.NAMES)
  public = {v for v in vars(norms).values() if isinstance(v, type) and issubclass(v, nnx.Module)}
  assert {row.cls for row in ROWS.values()} == public


@pytest.mark.parametrize("name", variants_slow(ROWS))
def test_jit_equals_eager(name):
  row = ROWS[name]
  x, _, params, _, jitted = plain(name)
  module = row.build()
  nnx.update(module, params)
  eager = row.call(module, x)
  assert_close(eager, jitted[0])
  assert (eager.shape == x.shape) == row.same_shape
  assert finite(jitted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", variants_slow(ROWS))
def test_output_has_the_dtype_of_the_input_and_state_stays_float32(name, dtype):
  x, run, params, rest, _ = plain(name)
  x = (300 * x).astype(dtype)  # squares that are no float16
  y, (dparams, dx), new = run(params, rest, x)
  assert y.dtype == dx.dtype == dtype
  for leaf in jax.tree.leaves((params, dparams, rest, new)):
    assert leaf.dtype in (jnp.float32, jnp.int32)  # counts are whole
  wide = run(params, rest, x.astype(jnp.float32))[0]
  assert_close(y, wide, rtol=ROWS[name].roundings * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_dtype_decides_the_output(row):
  for given, wanted in ((jnp.bfloat16, jnp.float32), (jnp.float32, jnp.float16)):
    graphdef, state = nnx.split(row.build(dtype=wanted))
    run = lambda x, g=graphdef, s=state: row.call(nnx.merge(g, s, copy=True), x)
    assert jax.eval_shape(run, draw(row.shape(N), dtype=given)).dtype == wanted


@pytest.mark.parametrize("name", [n for n, row in ROWS.items() if row.mask == "features"])
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
  equal = jnp.where(mask, x, x[..., :1])
  y = ROWS[name].call(ROWS[name].build(), equal, mask=mask)
  np.testing.assert_allclose(y[..., ~EVERY_OTHER], y[..., [0, 0]], rtol=1e-6)


@pytest.mark.parametrize(
  "name", [n for n, row in ROWS.items() if row.mask in ("positions", "space")]
)
def test_masked_positions_change_no_statistics_and_no_valid_output(name):
  x, run, params, rest, unmasked = plain(name)
  axis = 0 if ROWS[name].mask == "positions" else 1
  keep = np.arange(x.shape[axis]) % 3 != 1
  mask = jnp.asarray(keep).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
  valid = np.s_[keep] if axis == 0 else np.s_[:, keep]
  assert_close(run(params, rest, x, mask=jnp.ones_like(mask)), unmasked)
  assert_close(run(params, rest, x, mask=jnp.ones(x.shape[:-1], bool)), unmasked)
  y, _, state = run(params, rest, x, mask=mask)
  assert not np.allclose(y[valid], unmasked[0][valid])
  for junk in (1e4, jnp.inf, jnp.nan):
    y_junk, _, state_junk = run(params, rest, jnp.where(mask, x, junk), mask=mask)
    assert_close(y_junk[valid], y[valid])
    assert_close(state_junk[1], state[1])
  nothing = run(params, rest, x, mask=jnp.zeros_like(mask))
  assert finite(nothing)
  assert_close(nothing[2][1], rest[1])


@pytest.mark.parametrize("name", MODAL)
def test_evaluation_uses_the_running_statistics_and_leaves_them_alone(name):
  x, _, params, rest, (y, _, trained) = plain(name)
  leaves = [jax.tree.leaves_with_path(state) for state in (rest, trained)]
  kept = {path[1].key for (path, a), (_, b) in zip(*leaves, strict=True) if np.array_equal(a, b)}
  assert kept == set(ROWS[name].still), "training moves all else"
  row = ROWS[name]
  frozen, modal = row.build(use_running_average=True), row.build()
  for module in (frozen, modal):
    nnx.update(module, params, rest[1])
  shown = row.call(frozen, x)
  assert not np.allclose(shown, y)
  # An example alone gives the same: nothing of a batch enters.
  alone = frozen(x[3:4], *(v[3:4] for v in row.extra(x.shape)))
  np.testing.assert_allclose(alone, shown[3:4], rtol=1e-5, atol=1e-6)
  by_call, by_view = (
    row.call(modal, x, use_running_average=True),
    row.call(nnx.view(modal, use_running_average=True), x),
  )
  modal.eval()
  for again in (by_call, by_view, row.call(modal, x)):
    np.testing.assert_array_equal(again, shown)
  assert_close(nnx.state(modal, nnx.Not(nnx.Param)), nnx.merge_state(*rest))


@pytest.mark.parametrize("name", variants_slow(ROWS))
def test_one_feature_and_no_variance_give_finite_values_and_gradients(name):
  row = ROWS[name]
  x, run, params, rest, _ = plain(name)
  narrow, *state = evaluator(row, row.build(row.smallest))
  for value in (0.0, 3.0):
    assert finite(run(params, rest, jnp.full(x.shape, value)))
    assert finite(narrow(*state, jnp.full(row.shape(row.smallest), value)))


@pytest.mark.parametrize(
  ("name", "mode"),
  [(name, {}) for name, row in ROWS.items() if row.true_gradient]
  + [(name, {"use_running_average": True}) for name in MODAL],
)
def test_gradient_is_that_of_finite_differences(name, mode):
  row = ROWS[name]
  with jax.enable_x64(True):
    module = row.build(**row.wide, **mode)
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    params = jax.tree.map(lambda v: v.astype(jnp.float64), randomized(params))

    @jax.jit
    def f(params, x):
      return row.call(nnx.merge(graphdef, params, rest, copy=True), x)

    x = draw(row.shape(N), seed=2, dtype=jnp.float64)
    assert f(params, x).dtype == jnp.float64
    check_grads(f, (params, x), order=1, modes=["rev"], atol=1e-6, rtol=1e-6, eps=1e-5)


@pytest.mark.parametrize("name", variants_slow(ROWS))
def test_linen_equals_nnx(name):
  row = ROWS[name]
  x, _, params, rest, (y, _, (increments, new)) = plain(name)
  layer = to_linen(row.cls, *row.args(N), **row.options)
  variables = layer.init(jax.random.key(0), x, *row.extra(x.shape), nnx_method=row.method)
  params = nnx.to_pure_dict(params)
  assert jax.tree.map(jnp.shape, variables.get("params", {})) == jax.tree.map(jnp.shape, params)
  carried = variables.get(OVERWRITE_WITH_GRADIENT, {})
  assert_close(carried, nnx.to_pure_dict(rest[0]))

  @jax.jit
  def apply(carried):
    state = {**variables, "params": params, OVERWRITE_WITH_GRADIENT: carried}
    y, new = layer.apply(
      state, x, *row.extra(x.shape), nnx_method=row.method, mutable=["batch_stats"]
    )
    return jnp.sum(y * draw(y.shape, seed=1)), (y, new.get("batch_stats", {}))

  written, (linen_y, statistics) = jax.grad(apply, has_aux=True)(carried)
  assert_close(linen_y, y)
  assert_close(statistics, nnx.to_pure_dict(nnx.filter_state(new, nnx.BatchStat)))
  # What flax's TrainState takes as the new state is the old one plus our increment.
  assert_close(written, nnx.to_pure_dict(jax.tree.map(jnp.add, rest[0], increments)))


def test_checkpoint_brings_every_variable_back(tmp_path):
  modules = {name: row.build() for name, row in ROWS.items()}
  for module in modules.values():
    # Whatever is not a parameter may be a variance or a count: not negative.
    params, rest = nnx.state(module, nnx.Param), nnx.state(module, nnx.Not(nnx.Param))
    nnx.update(module, randomized(params), jax.tree.map(lambda v: v + 2, rest))
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
    again, before = (jax.tree.leaves_with_path(nnx.state(m)) for m in (fresh, modules[name]))
    for (path, u), (same, v) in zip(again, before, strict=True):
      assert path == same
      assert u.dtype == v.dtype
      assert np.array_equal(u, v)


@pytest.mark.parametrize("name", variants_slow(ROWS))
def test_batch_sharded_over_eight_devices_equals_one_device(name):
  row = ROWS[name]
  # In float64, as sums over devices round otherwise; state keeps its float32.
  with jax.enable_x64(True):
    x = draw(row.shape(N), seed=2, dtype=jnp.float64)
    run, params, rest = evaluator(row, row.build(**row.wide))
    params = jax.tree.map(lambda v: v.astype(jnp.float64), params)
    unsharded = run(params, rest, x)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    params, rest = jax.device_put((params, rest), NamedSharding(mesh, PartitionSpec()))
    sharded = run(params, rest, x)
  assert len(sharded[0].sharding.device_set) == 8
  assert not sharded[0].sharding.is_fully_replicated
  assert_close(sharded[:2], unsharded[:2], rtol=1e-10)
  assert_close(sharded[2], unsharded[2], rtol=2e-6)


@pytest.mark.parametrize("name", variants_slow(ROWS))
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
