"""Element-wise norms: Dynamic Tanh, Derf, elementwise layer norm, and putting them in a model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import norms
from normjax.blocks import Repeat

RNG = np.random.default_rng(0)
FUNCTIONS = {
  "dynamic_tanh": (lambda x, *a: norms.dynamic_tanh(x, 0.7, *a), 0.7, 1.0),
  "dynamic_erf": (lambda x, *a: norms.dynamic_erf(x, 0.7, None, *a), 1.4 / np.sqrt(np.pi), 1.0),
} | {
  f"eln {bound}": (
    functools.partial(
      lambda x, *a, bound: norms.elementwise_layer_norm(x, 2.5, *a, bound=bound), bound=bound
    ),
    peak / np.sqrt(2.5),
    peak,
  )
  for bound, peak in (("unit", 1.0), ("sqrt_c", 2.0), ("sqrt_c_minus_1", np.sqrt(3.0)))
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_odd_monotone_bounded_and_linear_at_zero(name):
  f, slope, peak = FUNCTIONS[name]
  with jax.enable_x64(True):
    f = jax.jit(f)
    x = jnp.broadcast_to(jnp.linspace(-5, 5, 101)[:, None], (101, 4))
    scale, bias = jnp.array([1.0, -2.0, 0.5, 3.0]), jnp.array([0.0, 1.0, -1.0, 2.0])
    y = f(x)
    np.testing.assert_allclose(f(-x), -y, rtol=1e-14)
    assert np.all(np.diff(y, axis=0) > 0)
    assert np.max(np.abs(f(x, scale, bias) - bias[None]) / np.abs(scale)) < peak
    small = jnp.full((1, 4), 1e-5)
    wanted = scale * slope * 1e-5 + bias
    np.testing.assert_allclose(f(small, scale, bias)[0], wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jacobian_is_diagonal(name):
  f = FUNCTIONS[name][0]
  with jax.enable_x64(True):
    x = jnp.asarray(RNG.normal(size=(2, 4)))
    jacobian = jax.jit(jax.jacrev(f))(x).reshape(8, 8)
    assert np.all(np.diag(jacobian) > 0)
    assert np.count_nonzero(jacobian) == 8


def test_erf_is_accurate_near_and_far_from_zero_with_second_derivatives():
  special = pytest.importorskip("scipy.special")
  with jax.enable_x64(True):
    x = np.concatenate([np.logspace(-12, 0.8, 60), [0.49999, 0.5, 0.50001, np.inf]])
    x = np.concatenate([-x, [0], x])
    f = jax.jit(lambda x: norms.dynamic_erf(x, 1.0))
    np.testing.assert_allclose(f(jnp.asarray(x)), special.erf(x), rtol=2e-15)
    v = jnp.asarray([-0.9, 0.2, 1.3])
    second = jax.jit(jax.hessian(lambda v: jnp.sum(norms.dynamic_erf(v, 1.0))))(v)
    wanted = -4 / np.sqrt(np.pi) * v * np.exp(-(v**2))
    np.testing.assert_allclose(np.diag(second), wanted, rtol=1e-13)


def test_gradient_of_alpha_sums_over_everything_and_over_shards():
  x, g = (jnp.asarray(RNG.normal(size=(8, 3, 4)), jnp.float32) for _ in range(2))
  scale = jnp.arange(1.0, 5.0)
  grad = jax.jit(jax.grad(lambda a: jnp.sum(norms.dynamic_tanh(x, a, scale) * g)))
  wanted = np.sum(g * scale[None, None] * x / np.cosh(0.7 * x) ** 2)
  got = grad(jnp.array([0.7]))
  assert got.shape == (1,)
  np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_alpha_per_site_and_parameters_from_outside():
  x = jnp.asarray(RNG.normal(size=(2, 4)), jnp.float32)
  site = norms.DynamicTanh(4, alpha_init=0.05, use_bias=False, rngs=nnx.Rngs(0))
  assert jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(site))) == {
    "alpha": (1,),
    "scale": (4,),
  }
  np.testing.assert_array_equal(site(x), norms.dynamic_tanh(x, 0.05))
  np.testing.assert_array_equal(
    site(x, alpha=0.3, scale=2 * jnp.ones(4), bias=jnp.ones(4)),
    2 * norms.dynamic_tanh(x, 0.3) + 1,
  )
  derf = norms.DynamicErf(4, rngs=nnx.Rngs(0))
  np.testing.assert_array_equal(
    derf(x, alpha=0.3, shift=jnp.array([0.1])), norms.dynamic_erf(x, 0.3, 0.1)
  )
  eln = norms.ElementwiseLayerNorm(4, rngs=nnx.Rngs(0))
  np.testing.assert_array_equal(
    eln(x, b=3.0, bias=jnp.ones(4)), norms.elementwise_layer_norm(x, 3.0) + 1
  )


@pytest.mark.parametrize("parametrization", ["softplus", "exp"])
@pytest.mark.parametrize(
  ("options", "b"),
  [({}, 4.0), ({"bound": "sqrt_c"}, 6.0), ({"b_init": 1e-4}, 1e-4), ({"b_init": 800.0}, 800.0)],
)
def test_first_value_of_b(parametrization, options, b):
  norm = norms.ElementwiseLayerNorm(6, parametrization=parametrization, **options, rngs=nnx.Rngs(0))
  x = jnp.asarray(RNG.normal(size=(2, 6)), jnp.float32)
  wanted = norms.elementwise_layer_norm(x, b, bound=options.get("bound", "unit"))
  np.testing.assert_allclose(norm(x), wanted, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_elementwise_layer_norm_of_huge_and_infinite_entries(dtype):
  largest = float(jnp.finfo(dtype).max)
  x = jnp.array([jnp.inf, -jnp.inf, largest, -largest, 0.0, 300.0], dtype)
  f = lambda x, b: norms.elementwise_layer_norm(x, b, bound="sqrt_c")
  for b in (1e-30, 2.0, 1e6):
    y, vjp = jax.vjp(f, x, jnp.float32(b))
    root = np.sqrt(6)
    wanted = [root, -root, root, -root, 0, root * 300 / np.sqrt(300.0**2 + b)]
    np.testing.assert_allclose(y.astype(jnp.float32), wanted, rtol=float(jnp.finfo(dtype).eps))
    assert all(np.all(np.isfinite(v.astype(jnp.float32))) for v in vjp(jnp.ones_like(y)))


def test_wrong_arguments_are_refused():
  x, rngs = jnp.ones((2, 4)), nnx.Rngs(0)
  for call, message in (
    (lambda: norms.dynamic_tanh(x, jnp.ones(4)), "alpha must be one number"),
    (lambda: norms.dynamic_erf(x, 1.0, jnp.ones((1, 1))), "shift must be one number"),
    (lambda: norms.elementwise_layer_norm(x, jnp.ones(2)), "b must be one number"),
    (lambda: norms.dynamic_tanh(x, 1.0, jnp.ones(3)), "scale must have shape"),
    (lambda: norms.dynamic_tanh(jnp.ones(3, int), 1.0), "x must be floating"),
    (lambda: norms.elementwise_layer_norm(x, 1.0, bound="c"), "bound must be"),
    (
      lambda: norms.elementwise_layer_norm(x[:, :1], 1.0, bound="sqrt_c_minus_1"),
      "bound must not be 'sqrt_c_minus_1' for a single channel",
    ),
    (lambda: norms.DynamicTanh(4, alpha_init=0.0, rngs=rngs), "alpha_init must be finite and > 0"),
    (lambda: norms.DynamicTanh(4, alpha_init=np.nan, rngs=rngs), "alpha_init must be finite"),
    (lambda: norms.DynamicErf(4, alpha_init=np.inf, rngs=rngs), "alpha_init must be finite"),
    (lambda: norms.ElementwiseLayerNorm(4, b_init=-1.0, rngs=rngs), "b_init must be finite"),
    (lambda: norms.ElementwiseLayerNorm(4, bound="x", rngs=rngs), "bound must be"),
    (
      lambda: norms.ElementwiseLayerNorm(4, parametrization="square", rngs=rngs),
      "parametrization must be",
    ),
    (lambda: norms.DynamicTanh(3, rngs=rngs)(x), "x must have 3 entries"),
  ):
    with pytest.raises(ValueError, match=message):
      call()


# -- replace_layer_norms ---------------------------------------------------------------------------


class _Block(nnx.Module):
  def __init__(self, rngs):
    self.attention_norm = norms.LayerNorm(4, rngs=rngs)
    self.mlp_norm = norms.LayerNorm(4, rngs=rngs)

  def __call__(self, x):
    return x + jnp.roll(self.attention_norm(x), 1, axis=1) + self.mlp_norm(x)


class _Model(nnx.Module):
  """Stacked blocks, a list, a dict and flax's own norm: every place a norm can be in."""

  def __init__(self, rngs):
    self.blocks = Repeat(_Block, 3, rngs=rngs)
    self.listed = nnx.List([norms.LayerNorm(4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)])
    self.named = nnx.Dict(last=nnx.LayerNorm(4, rngs=rngs))
    self.kept = norms.RMSNorm(4, rngs=rngs)

  def __call__(self, x):
    x = self.listed[1](self.listed[0](self.blocks(x)))
    return self.kept(self.named["last"](x))


def _leaves(model):
  return {
    "/".join(map(str, path)): v[...] for path, v in nnx.to_flat_state(nnx.state(model, nnx.Param))
  }


@pytest.fixture(scope="module")
def model():
  model = _Model(nnx.Rngs(0))
  draw = lambda v: jnp.asarray(RNG.normal(size=v.shape), v.dtype)
  nnx.update(model, jax.tree.map(draw, nnx.state(model, nnx.Param)))
  return model


@pytest.mark.parametrize("keep_affine", [True, False])
def test_every_layer_norm_is_replaced_and_the_model_stays_as_it_was(model, keep_affine):
  before = _leaves(model)
  seen = []

  def make(path, n):
    seen.append("/".join(map(str, path)))
    return norms.DynamicTanh(n, alpha_init=0.1 * len(seen), rngs=nnx.Rngs(0))

  new = norms.replace_layer_norms(model, make, keep_affine=keep_affine)
  sites = ["blocks/blocks/attention_norm", "blocks/blocks/mlp_norm", "listed/0", "named/last"]
  assert sorted(seen) == sites
  after = _leaves(new)
  assert after.keys() - before.keys() == {f"{site}/alpha" for site in sites}
  assert before.keys() <= after.keys()
  assert _leaves(model).keys() == before.keys()
  for path, value in before.items():
    np.testing.assert_array_equal(_leaves(model)[path], value)
    own = path.rsplit("/", 1)[0] in sites
    if keep_affine or not own:
      np.testing.assert_array_equal(after[path], value)
    else:
      np.testing.assert_array_equal(after[path], float(path.endswith("scale")))
  for i, site in enumerate(seen):
    shape = (3, 1) if site.startswith("blocks") else (1,)
    assert after[f"{site}/alpha"].shape == shape
    np.testing.assert_allclose(after[f"{site}/alpha"], 0.1 * (i + 1), rtol=1e-6)
  x = jnp.asarray(RNG.normal(size=(2, 3, 4)), jnp.float32)
  assert np.all(np.isfinite(new(x)))
  assert not np.allclose(new(x), model(x))
  # A write to the new model does not reach the old one.
  new.listed[1].kernel[...] += 1
  np.testing.assert_array_equal(model.listed[1].kernel[...], before["listed/1/kernel"])


def test_some_norms_may_stay(model):
  make = lambda path, n: (
    norms.RMSNorm(n, rngs=nnx.Rngs(0)) if path[-1] == "attention_norm" else None
  )
  new = norms.replace_layer_norms(model, make, keep_affine=False)
  assert type(new.blocks.blocks.attention_norm) is norms.RMSNorm
  assert type(new.blocks.blocks.mlp_norm) is norms.LayerNorm


def test_a_norm_alone_is_replaced():
  norm = norms.LayerNorm(4, rngs=nnx.Rngs(0))
  new = norms.replace_layer_norms(
    norm, lambda path, n: norms.ElementwiseLayerNorm(n, rngs=nnx.Rngs(0))
  )
  assert type(new) is norms.ElementwiseLayerNorm


def test_what_cannot_be_replaced_is_refused():
  rms = lambda path, n: norms.RMSNorm(n, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="make must give a layer with a bias"):
    norms.replace_layer_norms(norms.LayerNorm(4, rngs=nnx.Rngs(0)), rms)
  for norm in (
    norms.LayerNorm((2, 4), axis=(1, 2), rngs=nnx.Rngs(0)),
    nnx.LayerNorm(4, reduction_axes=(1, 2), rngs=nnx.Rngs(0)),
  ):
    with pytest.raises(ValueError, match="layer norms of the last axis only"):
      norms.replace_layer_norms(nnx.Dict(norm=norm), rms)


# -- What the paper shows: closer to layer norm than its approximation -----------------------------


@pytest.mark.parametrize("c", [50, 768])
def test_elementwise_layer_norm_is_closer_to_layer_norm_than_tanh_is(c):
  optimize = pytest.importorskip("scipy.optimize")
  with jax.enable_x64(True):
    others = np.random.default_rng(c).normal(size=c - 1)
    sweep = np.linspace(-8, 8, 401) * np.sqrt(c)
    rows = np.concatenate([sweep[:, None], np.broadcast_to(others, (401, c - 1))], 1)
    exact = np.asarray(norms.layer_norm(jnp.asarray(rows), epsilon=0.0)[:, 0])
    entry = jnp.asarray(sweep)[:, None]

    @jax.jit
    def tanh(alpha):
      return np.sqrt(c - 1) * norms.dynamic_tanh(entry, alpha)[:, 0]

    @jax.jit
    def eln(b):
      return np.sqrt(c - 1) * norms.elementwise_layer_norm(entry, b)[:, 0]

    def fitted(f, low, high):
      rmse = lambda log: float(np.sqrt(np.mean((np.asarray(f(np.exp(log))) - exact) ** 2)))
      found = optimize.minimize_scalar(rmse, bounds=(np.log(low), np.log(high)), method="bounded")
      return np.exp(found.x), found.fun

    _, tanh_rmse = fitted(tanh, 1e-4, 10.0)
    b, eln_rmse = fitted(eln, 1.0, 1e4)
    assert eln_rmse < tanh_rmse / 3
    np.testing.assert_allclose(b, c * np.var(others), rtol=0.05)
