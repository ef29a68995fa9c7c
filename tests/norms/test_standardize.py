"""The fast path of layer and RMS norm: derivatives, transformations, no large temporary."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec
from jax.test_util import check_grads

from normjax.norms import LayerNorm, RMSNorm
from normjax.norms._standardize import standardize
from normjax.norms._statistics import Reduction

RNG = np.random.default_rng(0)
X, SCALE, BIAS, WEIGHT = (RNG.normal(size=s) for s in ((3, 2, 5), 5, 5, (3, 2, 5)))
EPSILON = 1e-2


def functions(center, gain, shift):
  """Return the fast path and the plain formula, both of (x, *affine)."""
  present = (gain, shift)

  def fast(x, *affine):
    left = iter(affine)
    scale, bias = (next(left) if there else None for there in present)
    reduction = Reduction((x.ndim - 1,), x.shape)
    return standardize(x, scale, bias, reduction, epsilon=EPSILON, center=center, dtype=x.dtype)[0]

  def plain(x, *affine):
    left = iter(affine)
    scale, bias = (next(left) if there else None for there in present)
    c = x - jnp.mean(x, -1, keepdims=True) if center else x
    y = c / jnp.sqrt(jnp.mean(c * c, -1, keepdims=True) + EPSILON)
    y = y if scale is None else y * scale.reshape(1, 1, -1)
    return y if bias is None else y + bias.reshape(1, 1, -1)

  affine = [jnp.asarray(v) for v, there in ((SCALE, gain), (BIAS, shift)) if there]
  return fast, plain, affine


@pytest.mark.parametrize(
  ("center", "gain", "shift"), [(True, True, True), (False, True, False), (True, False, True)]
)
def test_derivatives_of_two_orders_are_those_of_the_plain_formula(center, gain, shift):
  with jax.enable_x64(True):
    fast, plain, affine = functions(center, gain, shift)
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
    check_grads(fast, (x, *affine), order=2, modes=["fwd", "rev"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("center", [True, False])
def test_parameters_gather_gradients_from_all_devices(center):
  fast, _, affine = functions(center, True, True)
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


@pytest.mark.usefixtures("optimized")
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="passes are kept apart on CPU only")
@pytest.mark.parametrize(
  ("cls", "shape"), [*itertools.product((LayerNorm, RMSNorm), ((4096, 1024), (65536, 64)))]
)
def test_gradients_need_no_temporaries_of_the_size_of_the_input(cls, shape):
  graphdef, state = nnx.split(cls(shape[-1], rngs=nnx.Rngs(0)))

  def run(state, x, ct):
    y, vjp = jax.vjp(lambda state, x: nnx.merge(graphdef, state)(x), state, x)
    return y, vjp(ct)

  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  compiled = jax.jit(run).lower(state, x, x).compile()
  # Five numbers of each row, and little more; x itself has 16 MiB.
  assert compiled.memory_analysis().temp_size_in_bytes <= 5 * 4 * shape[0] + 4096
