"""Flows as densities: conventions of bits per dimension, total mass, sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import flows
from tests.flows.affine_coupling import alternating_orders, random_coupling

SHAPE = (4, 4, 1)


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def _conditional_flow():
  coupling = random_coupling(nnx.Rngs(0), jnp.arange(4), cond_dim=3)
  return flows.Flow(coupling, flows.StandardNormal((4,)))


def _image_flow(bijectors):
  return flows.Flow(flows.Chain(bijectors), flows.Logistic(SHAPE))


def _pixels(levels=256):
  rng = np.random.default_rng(0)
  image = rng.integers(0, levels, (3, *SHAPE)).astype(np.uint8)
  return jnp.asarray(image), jnp.asarray(rng.uniform(size=image.shape))


def test_identity_flow_has_the_density_of_its_base():
  x = jax.random.normal(jax.random.key(0), (3, *SHAPE))
  flow = flows.Flow(flows.Chain([]), flows.StandardNormal(SHAPE))
  expected = -0.5 * np.sum(np.square(x), axis=(1, 2, 3)) - 8 * np.log(2 * np.pi)
  np.testing.assert_allclose(flow.log_prob(x), expected, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_affine_maps_leave_bits_per_dim_unchanged():
  image, noise = _pixels()
  flow = _image_flow([])
  x = flows.dequantize(image, noise)
  expected = flows.bits_per_dim(flow.log_prob(x), SHAPE, 256.0)
  for scale, shift in ((3.0, -0.7), (-0.25, 10.0)):
    # Undoing y = scale x + shift gives the density of y; its bins are |scale| wider.
    moved = _image_flow([flows.ElementwiseAffine(loc=shift, scale=scale)])
    log_prob = moved.log_prob(scale * x + shift)
    actual = flows.bits_per_dim(log_prob, SHAPE, 256.0 / abs(scale))
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_levels", [256, 17])
def test_pixel_conventions_give_equal_bits_per_dim(num_levels):
  image, noise = _pixels(num_levels)
  unit = _image_flow([flows.Logit(0.05)])  # any model of [0, 1), not invariant to shifts
  reference = flows.dequantize(image, noise, levels=num_levels)
  expected = flows.bits_per_dim(unit.log_prob(reference), SHAPE, num_levels)
  for levels, low in ((num_levels, -0.5), (num_levels / 2, -1.0), ((num_levels - 1) / 2, -1.0)):
    x = flows.dequantize(image, noise, levels=levels, low=low)
    to_unit = flows.ElementwiseAffine(loc=low, scale=num_levels / levels)
    model = _image_flow([to_unit, flows.Logit(0.05)])
    actual = flows.bits_per_dim(model.log_prob(x), SHAPE, levels)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    # And the correction is needed: with another convention's levels the number is another one.
    wrong = flows.bits_per_dim(model.log_prob(x), SHAPE, 2 * levels)
    np.testing.assert_allclose(wrong, expected + 1, rtol=1e-12)


@pytest.mark.parametrize("num_levels", [256, 17])
def test_bits_per_dim_of_the_uniform_density_is_log2_of_the_levels(num_levels):
  image, noise = _pixels(num_levels)
  x = flows.dequantize(image, noise.astype(jnp.float32), levels=num_levels / 2, low=-1.0)
  box = flows.Uniform(SHAPE, low=-1.0, high=1.0)
  bits = flows.bits_per_dim(box.log_prob(x), SHAPE, num_levels / 2)
  assert bits.shape == (3,)
  np.testing.assert_allclose(bits, np.log2(num_levels), rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_affine_flow_of_a_normal_is_a_diagonal_normal():
  loc, scale = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
  flow = flows.Flow(flows.ElementwiseAffine(loc, scale), flows.StandardNormal((2,)))
  normal = flows.DiagonalNormal((2,), param_dtype="float64")
  normal.loc[...], normal.log_scale[...] = loc, jnp.log(scale)
  x = jax.random.normal(jax.random.key(0), (5, 2))
  np.testing.assert_allclose(flow.log_prob(x), normal.log_prob(x), rtol=1e-12)


def _jet():
  jet = flows.Jet(
    (1, 1, 2), depth=3, block_depth=1, emb_dim=8, num_heads=2, patch_size=1, kinds=("channels",),
    rngs=nnx.Rngs(0),
  )  # fmt: skip
  rng = np.random.default_rng(0)
  move = lambda p: jnp.asarray(p + 0.5 * rng.standard_normal(p.shape), p.dtype)
  nnx.update(jet, jax.tree.map(move, nnx.state(jet, nnx.Param)))
  return jet


# Two-dimensional flows of every layer type.
PLANE = {
  "Chain": lambda: flows.Chain([
    random_coupling(nnx.Rngs(0), jnp.array([0, 1])),
    random_coupling(nnx.Rngs(1), jnp.array([1, 0])),
  ]),
  "ElementwiseAffine": lambda: flows.ElementwiseAffine([0.3, -2.0], [-0.4, 1.5]),
  "Inverted": lambda: flows.Inverted(random_coupling(nnx.Rngs(2), jnp.array([1, 0]))),
  "Jet": _jet,
  "Logit": lambda: flows.Logit(0.0),
  "Scan": lambda: flows.Scan(random_coupling, 3, alternating_orders(2, 3), rngs=nnx.Rngs(3)),
}  # fmt: skip


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
  "name", [pytest.param(n, marks=pytest.mark.slow) if n == "Jet" else n for n in PLANE]
)
def test_density_integrates_to_one(name):
  shape = (1, 1, 2) if name == "Jet" else (2,)
  flow = flows.Flow(PLANE[name](), flows.StandardNormal(shape))
  steps = 600
  t = (np.arange(steps) + 0.5) / steps
  if name == "Logit":
    x, weight = t, np.full(steps, 1 / steps)
  else:
    angle = np.pi * (t - 0.5)  # x = tan(angle) covers the whole line
    x, weight = np.tan(angle), np.pi / steps / np.cos(angle) ** 2
  grid = np.stack(np.meshgrid(x, x, indexing="ij"), axis=-1).reshape(-1, *shape)
  density = np.exp(jax.jit(flow.log_prob)(jnp.asarray(grid)))
  mass = np.sum(density.reshape(steps, steps) * weight[:, None] * weight[None])
  np.testing.assert_allclose(mass, 1, rtol=0, atol=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sample_and_log_prob_agree_with_sample_and_log_prob_of_it(temperature):
  flow = _conditional_flow()
  cond = jax.random.normal(jax.random.key(1), (6, 3))
  key = jax.random.key(2)
  x, log_prob = flow.sample_and_log_prob(key, 6, cond, temperature)
  np.testing.assert_array_equal(x, flow.sample(key, 6, cond, temperature))
  # The density is the model's own, at temperature 1.
  np.testing.assert_allclose(log_prob, flow.log_prob(x, cond), rtol=1e-5)


def test_samples_are_the_inverse_of_tempered_latents():
  flow = _conditional_flow()
  cond = jax.random.normal(jax.random.key(1), (6, 3))
  x = flow.sample(jax.random.key(2), 6, cond, temperature=0.3)
  z = flow.base.sample(jax.random.key(2), 6)
  np.testing.assert_allclose(flow.bijector.forward(x, cond)[0], 0.3 * z, atol=1e-5)
  still = flow.sample(jax.random.key(2), 6, cond, temperature=0.0)
  np.testing.assert_allclose(flow.bijector.forward(still, cond)[0], 0, atol=1e-6)


def test_samples_have_the_moments_of_the_density():
  flow = flows.Flow(flows.ElementwiseAffine([1.0, -3.0], [2.0, 0.5]), flows.StandardNormal((2,)))
  x = flow.sample(jax.random.key(0), 20_000, temperature=0.5)
  np.testing.assert_allclose(np.mean(x, axis=0), [1.0, -3.0], atol=0.03)
  np.testing.assert_allclose(np.std(x, axis=0), [1.0, 0.25], rtol=0.02)


def test_cond_reaches_the_base():
  class Shifted(flows.Distribution):
    def log_prob(self, z, cond=None):
      return -jnp.sum((z - cond) ** 2, axis=1)

    def sample(self, key, n, cond=None, temperature=1.0):
      return cond + temperature * jnp.ones((n, 1))

  flow = flows.Flow(flows.ElementwiseAffine(0.0, 2.0), Shifted())
  cond = jnp.array([[1.0], [3.0]])
  np.testing.assert_allclose(flow.sample(jax.random.key(0), 2, cond, 0.5), [[3.0], [7.0]])
  expected = -np.array([1.0, 9.0]) - np.log(2)
  np.testing.assert_allclose(flow.log_prob(jnp.zeros((2, 1)), cond), expected, rtol=1e-6)


def test_a_flow_is_the_base_of_another():
  inner = flows.Flow(flows.ElementwiseAffine(1.0, 2.0), flows.StandardNormal((2,)))
  outer = flows.Flow(flows.ElementwiseAffine(-5.0, 0.1), inner)
  x, log_prob = outer.sample_and_log_prob(jax.random.key(0), 3)
  both = flows.Chain([flows.ElementwiseAffine(-5.0, 0.1), flows.ElementwiseAffine(1.0, 2.0)])
  expected = flows.Flow(both, flows.StandardNormal((2,))).log_prob(x)
  np.testing.assert_allclose(log_prob, expected, rtol=1e-5)


def test_bad_arguments_are_refused():
  flow = flows.Flow(flows.Chain([]), flows.StandardNormal((2,)))
  key = jax.random.key(0)
  for sample in (flow.sample, flow.sample_and_log_prob):
    with pytest.raises(ValueError, match="n must be"):
      sample(key, 0)
    with pytest.raises(ValueError, match="temperature must be"):
      sample(key, 1, temperature=-1.0)
  with pytest.raises(ValueError, match=r"must have shape \(b, 2\)"):
    flow.log_prob(jnp.zeros((4, 3)))
  with pytest.raises(ValueError, match="b >= 1"):
    flow.log_prob(jnp.zeros((0, 2)))
  with pytest.raises(ValueError, match="use flows.dequantize"):
    flow.log_prob(jnp.zeros((1, 2), jnp.uint8))
  with pytest.raises(ValueError, match="bijector must be"):
    flows.Flow(flow, flow.base)
  with pytest.raises(ValueError, match="base must be"):
    flows.Flow(flow.bijector, flow.bijector)


@pytest.mark.parametrize("graph", [True, False])
def test_trains_in_both_nnx_modes(graph):
  with nnx.set_graph_mode(graph), nnx.set_graph_updates(graph):
    coupling = random_coupling(nnx.Rngs(0), jnp.arange(4))
    flow = flows.Flow(flows.Chain([coupling]), flows.DiagonalNormal((4,)))
    graphdef, params, rest = nnx.split(flow, nnx.Param, ...)
    x = jax.random.normal(jax.random.key(0), (32, 4)) * 2 + 1
    loss = lambda params: -jnp.mean(nnx.merge(graphdef, params, rest).log_prob(x))
    step = jax.jit(jax.value_and_grad(loss))
    losses = []
    for _ in range(5):
      value, gradient = step(params)
      losses.append(value)
      params = jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient)
  assert np.all(np.diff(losses) < 0)
