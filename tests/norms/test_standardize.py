"""The fast path of the common norms: derivatives, transformations, devices, memory, digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from normjax import norms
from normjax.norms._standardize import standardize
from normjax.norms._statistics import Reduction, shifted_moments

RNG = np.random.default_rng(0)
X, SCALE, BIAS, WEIGHT = (RNG.normal(size=s) for s in ((3, 2, 6), 6, 6, (3, 2, 6)))
EPSILON = 1e-2
# The reduced axes, and how many channels share statistics.
KINDS = {"rows": ((2,), 1), "batch": ((0, 1), 1), "channels": ((1,), 1), "groups": ((1,), 3)}


def functions(kind, center, gain, shift):
  """Return the fast path and the plain formula, both of (x, *affine)."""
  present = (gain, shift)
  axes, group_size = KINDS[kind]

  def fast(x, *affine):
    left = iter(affine)
    scale, bias = (next(left) if there else None for there in present)
    reduction = Reduction(axes, x.shape, group_size=group_size)
    return standardize(x, scale, bias, reduction, epsilon=EPSILON, center=center, dtype=x.dtype)[0]

  def plain(x, *affine):
    left = iter(affine)
    scale, bias = (next(left) if there else None for there in present)
    rows = kind == "rows"
    split = x if rows else x.reshape(*x.shape[:2], -1, group_size)
    over = axes if rows else (*axes, 3)
    c = split - jnp.mean(split, over, keepdims=True) if center else split
    y = (c / jnp.sqrt(jnp.mean(c * c, over, keepdims=True) + EPSILON)).reshape(x.shape)
    y = y if scale is None else y * scale.reshape(1, 1, -1)
    return y if bias is None else y + bias.reshape(1, 1, -1)

  affine = [jnp.asarray(v) for v, there in ((SCALE, gain), (BIAS, shift)) if there]
  return fast, plain, affine


@pytest.mark.parametrize(
  ("kind", "center", "gain", "shift"),
  [
    ("rows", True, True, True),
    pytest.param("rows", False, True, False, marks=pytest.mark.slow),
    pytest.param("rows", True, False, True, marks=pytest.mark.slow),
    ("batch", True, True, True),
    pytest.param("channels", True, False, True, marks=pytest.mark.slow),
    ("groups", True, True, True),
  ],
)
def test_derivatives_of_two_orders_are_those_of_the_plain_formula(kind, center, gain, shift):
  with jax.enable_x64(True):
    fast, plain, affine = functions(kind, center, gain, shift)
    x = jnp.asarray(X)
    everything = tuple(range(1 + len(affine)))

    def results(f):
      loss = lambda *v: jnp.sum(jnp.sin(f(*v)) * WEIGHT)
      gradients = jax.grad(loss, everything)
      squared = lambda *v: sum(jnp.sum(g**2) for g in gradients(*v))
      lanes = jax.vmap(lambda row, *v: f(row[None], *v)[0], (0, *[None] * len(affine)))
      return {
        "value": f(x, *affine),
        "gradients": gradients(x, *affine),
        "forward": jax.jacfwd(f)(x, *affine),
        "second": jax.grad(squared, everything)(x, *affine),
        "lanes": jax.grad(lambda *v: jnp.sum(lanes(*v) ** 3), everything)(x, *affine),
        "affine only": jax.grad(loss, everything[1:])(x, *affine),
      }

    got, wanted = (jax.jit(results, static_argnums=0)(f) for f in (fast, plain))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.max(np.abs(b)))
    check_grads(jax.jit(fast), (x, *affine), order=2, modes=["fwd", "rev"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "center"), [("rows", True), ("rows", False), ("groups", True)])
def test_parameters_gather_gradients_from_all_devices(kind, center):
  fast, _, affine = functions(kind, center, True, True)
  x, *affine = (jnp.asarray(v, jnp.float32) for v in (np.tile(X, (4, 1, 1)), *affine))
  gradients = lambda *v: jax.grad(lambda *v: jnp.sum(fast(*v) ** 3), (0, 1, 2))(*v)
  mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
  rows, whole = PartitionSpec("data"), PartitionSpec()
  sharded = jax.jit(
    jax.shard_map(
      gradients, mesh=mesh, in_specs=(rows, whole, whole), out_specs=(rows, whole, whole)
    )
  )(x, *affine)
  for a, b in zip(sharded, jax.jit(gradients)(x, *affine), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)


def compiled_gradients(layer, x):
  """Compile the output of a layer and its gradients."""
  graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

  def run(params, x, ct):
    call = lambda params, x: nnx.merge(graphdef, params, rest, copy=True)(x)
    y, vjp = jax.vjp(call, params, x)
    return y, vjp(ct)

  return jax.jit(run).lower(params, x, x).compile()


LAYERS = {
  "layer_norm": lambda c: norms.LayerNorm(c, rngs=nnx.Rngs(0)),
  "rms_norm": lambda c: norms.RMSNorm(c, rngs=nnx.Rngs(0)),
  "group_norm": lambda c: norms.GroupNorm(c, rngs=nnx.Rngs(0)),
  "batch_norm": lambda c: norms.BatchNorm(c, rngs=nnx.Rngs(0)),
  "instance_norm": lambda c: norms.InstanceNorm(c, use_scale=True, use_bias=True, rngs=nnx.Rngs(0)),
}
only_cpu = pytest.mark.skipif(
  jax.default_backend() != "cpu", reason="passes are kept apart on CPU only"
)


# `numbers` counts the entries of statistics: five for each, and little more; x itself has 8 MiB or
# more.
@pytest.mark.usefixtures("optimized")
@only_cpu
@pytest.mark.parametrize(
  ("name", "shape", "numbers"),
  [
    *((n, (4096, 1024), 5 * 4096) for n in ("layer_norm", "rms_norm")),
    *((n, (65536, 64), 5 * 65536) for n in ("layer_norm", "rms_norm")),
    *((n, (32, 32, 32, 64), 8 * 32 * 64) for n in ("group_norm", "instance_norm")),
    ("batch_norm", (32, 32, 32, 64), 8 * 64),
  ],
)
def test_gradients_need_no_temporaries_of_the_size_of_the_input(name, shape, numbers):
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  compiled = compiled_gradients(LAYERS[name](shape[-1]), x)
  assert compiled.memory_analysis().temp_size_in_bytes <= 4 * numbers + 4096


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("name", LAYERS)
def test_no_device_gathers_a_sharded_batch(name):
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  shape = (16, 16, 16, 32)
  sharding = NamedSharding(mesh, PartitionSpec("data"))
  x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
  compiled = compiled_gradients(LAYERS[name](32), x)
  assert "all-gather" not in compiled.as_text()
  assert "all-to-all" not in compiled.as_text()
  assert compiled.output_shardings[0].is_equivalent_to(sharding, 4)


@pytest.mark.parametrize("outlier", [0, 200])
def test_a_sample_that_is_not_like_the_rest_costs_few_digits(outlier):
  """One entry of 3000 beside thousands of entries near 10^4 moves the sample far or not at all."""
  x = 1e4 + np.random.default_rng(1).normal(size=(4, 512)).astype(np.float32)
  x[:, outlier] -= 3000
  shift, mean, variance = shifted_moments(jnp.asarray(x), Reduction((1,), x.shape))
  exact = x.astype(np.float64)
  np.testing.assert_allclose(variance, exact.var(1, keepdims=True), rtol=1e-5)
  found = np.asarray(shift, np.float64) + np.asarray(mean, np.float64)
  np.testing.assert_allclose(found, exact.mean(1, keepdims=True), rtol=0, atol=3e-4)


def test_images_of_a_large_mean_keep_their_digits():
  x = 3000 + np.random.default_rng(2).normal(size=(2, 16, 16, 8)).astype(np.float32)
  x[:, :, :1] += 5  # the sample is the first column of each image
  exact = x.astype(np.float64)
  for name, axes in (("instance_norm", (1, 2)), ("batch_norm", (0, 1, 2))):
    c = exact - exact.mean(axes, keepdims=True)
    y = c / np.sqrt((c * c).mean(axes, keepdims=True) + 1e-5)
    atol = 1e-6 * np.max(np.abs(y))
    np.testing.assert_allclose(LAYERS[name](8)(jnp.asarray(x)), y, rtol=0, atol=atol)
