"""Transformer blocks against Flax, numpy and plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from normjax.blocks import EncoderBlock, Repeat, dot_general, softmax_attention


def _normal(seed, shape, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def _perturb(module, seed=0):
  rng = np.random.default_rng(seed)
  move = lambda v: jnp.asarray(v + 0.3 * rng.standard_normal(v.shape), v.dtype)
  nnx.update(module, jax.tree.map(move, nnx.state(module, nnx.Param)))
  return module


class LinenBlock(nn.Module):
  """The same block in the words of flax.linen."""

  num_heads: int
  hidden: int

  @nn.compact
  def __call__(self, x):
    y = nn.LayerNorm(name="attention_norm")(x)
    x = x + nn.MultiHeadDotProductAttention(self.num_heads, name="attention")(y)
    y = nn.Dense(self.hidden, name="mlp_in")(nn.LayerNorm(name="mlp_norm")(x))
    return x + nn.Dense(x.shape[-1], name="mlp_out")(nn.gelu(y))


@pytest.mark.parametrize("mlp_features", [None, 5])
def test_encoder_block_is_the_linen_block(mlp_features):
  block = _perturb(EncoderBlock(8, 2, mlp_features=mlp_features, rngs=nnx.Rngs(0)))
  x, weights = _normal(1, (2, 5, 8)), _normal(2, (2, 5, 8))
  params = nnx.to_pure_dict(nnx.state(block, nnx.Param))
  graphdef, _ = nnx.split(block)
  ours = lambda params, x: nnx.merge(graphdef, params)(x)
  reference = LinenBlock(2, mlp_features or 32)
  theirs = lambda params, x: reference.apply({"params": params}, x)

  @jax.jit
  def both(params, x):
    run = lambda f: jax.value_and_grad(lambda *a: jnp.vdot(f(*a), weights), (0, 1))(params, x)
    return (ours(params, x), run(ours)), (theirs(params, x), run(theirs))

  mine, other = both(params, x)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), mine, other)


def test_encoder_block_starts_like_a_vision_transformer():
  params = nnx.to_pure_dict(nnx.state(EncoderBlock(16, 4, rngs=nnx.Rngs(0)), nnx.Param))
  for name in ("query", "key", "value", "out"):
    np.testing.assert_array_equal(params["attention"][name]["bias"], 0)
    kernel = params["attention"][name]["kernel"]
    bound = np.sqrt(6 / (16 + 16))
    assert 0.8 * bound < np.max(np.abs(kernel)) <= bound
  for name in ("mlp_in", "mlp_out"):
    bound = np.sqrt(6 / (16 + 64))
    assert 0.8 * bound < np.max(np.abs(params[name]["kernel"])) <= bound
    assert 0 < np.std(params[name]["bias"]) < 3e-6


def test_encoder_block_computes_in_its_dtype():
  x = _normal(1, (2, 5, 8))
  wide = EncoderBlock(8, 2, rngs=nnx.Rngs(0))
  narrow = EncoderBlock(8, 2, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  y = narrow(x.astype(jnp.bfloat16))
  assert y.dtype == jnp.bfloat16
  assert narrow.mlp_in.kernel.dtype == jnp.float32
  np.testing.assert_allclose(y.astype(jnp.float32), wide(x), rtol=0, atol=0.1)


def test_heads_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match="num_heads must divide features 8, got 3"):
    EncoderBlock(8, 3, rngs=nnx.Rngs(0))


# Axes of x and of the kernel that are summed over: a dense layer, one out of heads, and odd ones.
CONTRACTIONS = {
  "dense": ((2, 5, 8), (8, 6), ((2,), (0,))),
  "heads in": ((2, 5, 8), (8, 3, 4), ((2,), (0,))),
  "heads out": ((2, 5, 3, 4), (3, 4, 6), ((2, 3), (0, 1))),
  "last axis": ((2, 8), (6, 8), ((1,), (1,))),
  "crossed": ((3, 2, 4), (4, 5, 3), ((2, 0), (0, 2))),
}


@pytest.mark.parametrize("name", CONTRACTIONS)
def test_dot_general_is_laxs(name):
  x_shape, kernel_shape, axes = CONTRACTIONS[name]
  x, kernel, numbers = _normal(0, x_shape), _normal(1, kernel_shape), (axes, ((), ()))
  weights = _normal(2, jax.lax.dot_general(x, kernel, numbers).shape)

  @jax.jit
  def run(x, kernel):
    results = []
    for product in (dot_general, jax.lax.dot_general):
      f = lambda x, kernel, product=product: product(x, kernel, numbers)
      loss = lambda x, kernel, f=f: jnp.sum(weights * f(x, kernel) ** 2)
      gradient = jax.grad(loss, argnums=(0, 1))
      directional = jax.jvp(gradient, (x, kernel), (x, kernel))[1]
      results.append((f(x, kernel), gradient(x, kernel), jax.jacfwd(f, 1)(x, kernel), directional))
    return results

  ours, theirs = run(x, kernel)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)


def test_dot_general_passes_options_on():
  x = jnp.ones((2, 3), jnp.bfloat16)
  numbers = (((1,), (0,)), ((), ()))
  y = dot_general(x, x.T, numbers, preferred_element_type=jnp.float32)
  assert y.dtype == jnp.float32


def _numpy_attention(query, key, value):
  query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
  scores = np.einsum("bnhd,bmhd->bhnm", query, key) / np.sqrt(query.shape[-1])
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  return np.einsum("bhnm,bmhd->bnhd", weights / weights.sum(-1, keepdims=True), value)


def test_softmax_attention_is_exact_in_float64():
  with jax.enable_x64(True):
    query, key, value = (
      _normal(i, (2, n, 2, 3), jnp.float64) for i, n in enumerate((4, 5, 5))
    )  # fmt: skip
    y = softmax_attention(query, key, value)
    assert y.dtype == jnp.float64
    np.testing.assert_allclose(y, _numpy_attention(query, key, value), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("dtype", "atol"), [(jnp.float32, 1e-6), (jnp.bfloat16, 3e-2)])
def test_softmax_attention_is_jaxs(dtype, atol):
  query, key, value = (_normal(i, (2, n, 2, 3), dtype) for i, n in enumerate((4, 5, 5)))
  y = softmax_attention(query, key, value)
  assert y.dtype == dtype
  theirs = jax.nn.dot_product_attention(query, key, value)
  np.testing.assert_allclose(*(a.astype(jnp.float32) for a in (y, theirs)), rtol=0, atol=atol)


def test_softmax_attention_sees_what_the_mask_shows():
  query, key, value = (_normal(i, (2, 5, 3, 4)) for i in range(3))
  mask = jnp.tri(5, dtype=bool)[None, None]
  y = softmax_attention(query, key, value, mask)
  theirs = jax.nn.dot_product_attention(query, key, value, mask=mask)
  np.testing.assert_allclose(y, theirs, rtol=0, atol=1e-5)
  np.testing.assert_allclose(y[:, 0], value[:, 0], rtol=0, atol=1e-6)  # itself alone
  with pytest.raises(ValueError, match="mask must be boolean, .* got float32"):
    softmax_attention(query, key, value, mask.astype(jnp.float32))


def test_softmax_attention_keeps_scores_wide():
  # Keys whose scores bfloat16 would round to one number: 256.5 and 256 attend very differently.
  query = jnp.array([1.0, 1.0], jnp.bfloat16).reshape(1, 1, 1, 2)
  keys = jnp.array([[360.0, 2.5], [360.0, 0.0]], jnp.bfloat16).reshape(1, 2, 1, 2)
  values = jnp.array([1.0, 0.0], jnp.bfloat16).reshape(1, 2, 1, 1)
  y = softmax_attention(query, keys, jnp.tile(values, (1, 1, 1, 2)))
  expected = 1 / (1 + np.exp(-2.5 / np.sqrt(2)))
  np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=0, atol=0.02)


class _Twist(nnx.Module):
  """A block that does not commute with another of its kind."""

  def __init__(self, rngs):
    self.kernel = nnx.Param(jax.random.normal(rngs.params(), (3, 3)))

  def __call__(self, x):
    return jnp.tanh(x @ self.kernel[...])


def test_repeat_is_a_loop():
  blocks = Repeat(_Twist, 3, rngs=nnx.Rngs(0))
  x = expected = _normal(0, (2, 3))
  kernels = blocks.blocks.kernel[...]
  assert kernels.shape == (3, 3, 3)
  assert len({float(kernel[0, 0]) for kernel in kernels}) == 3  # each block draws its own
  for kernel in kernels:
    expected = jnp.tanh(expected @ kernel)
  np.testing.assert_allclose(blocks(x), expected, rtol=1e-6)
  one = Repeat(_Twist, 1, rngs=nnx.Rngs(0))
  np.testing.assert_allclose(one(x), jnp.tanh(x @ one.blocks.kernel[0]), rtol=1e-6)


def test_repeat_traces_its_block_once():
  count = lambda length: str(
    jax.make_jaxpr(Repeat(_Twist, length, rngs=nnx.Rngs(0)))(jnp.ones((2, 3)))
  ).count("tanh")
  assert count(2) == count(7) == 1


def test_repeat_of_no_blocks_is_the_identity():
  x = jnp.ones((2, 3))
  assert Repeat(_Twist, 0, rngs=nnx.Rngs(0))(x) is x
  with pytest.raises(ValueError, match="length must be at least 0, got -1"):
    Repeat(_Twist, -1, rngs=nnx.Rngs(0))
