"""From levels to densities and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import flows

# (levels, low, num_levels) of the unit interval, Glow, TarFlow, Jet and 17-level digits.
CONVENTIONS = [(256, 0, 256), (256, -0.5, 256), (128, -1, 256), (127.5, -1, 256), (8.5, -1, 17)]


@pytest.mark.parametrize(("levels", "low", "num_levels"), CONVENTIONS)
def test_quantize_undoes_dequantize(levels, low, num_levels):
  image = jnp.tile(jnp.arange(num_levels, dtype=jnp.uint8)[None], (50, 1))
  noise = jax.random.uniform(jax.random.key(0), image.shape, minval=1e-4, maxval=1 - 1e-4)
  x = flows.dequantize(image, noise, levels=levels, low=low)
  assert x.dtype == jnp.float32
  again = flows.quantize(x, num_levels=num_levels, levels=levels, low=low)
  assert again.dtype == jnp.uint8
  np.testing.assert_array_equal(again, image)


def test_equation_and_dtypes():
  image, noise = np.array([[0, 3]], np.int64), np.array([[0.25, 0.5]])
  with jax.enable_x64(True):
    x = flows.dequantize(image, noise, levels=8.5, low=-1.0)
    assert x.dtype == jnp.float64
    np.testing.assert_allclose(x, [[-1 + 0.25 / 8.5, -1 + 3.5 / 8.5]], rtol=1e-15)
  # Eight bits of mantissa can't hold 200 and its noise: the sum is taken, and returned, in float32.
  narrow = flows.dequantize(jnp.array([200], jnp.uint8), jnp.array([0.5], jnp.bfloat16))
  assert narrow.dtype == jnp.float32
  np.testing.assert_allclose(narrow, 200.5 / 256)


def test_quantize_clips_to_the_levels():
  x = jnp.array([-5.0, -1e-6, 0.0, 0.999, 1.0, 5.0])
  np.testing.assert_array_equal(flows.quantize(x), [0, 0, 0, 255, 255, 255])
  wide = flows.quantize(x, num_levels=1000, levels=1000.0)
  assert wide.dtype == jnp.int32
  np.testing.assert_array_equal(wide, [0, 0, 0, 999, 999, 999])


def test_floats_pass_only_if_flagged_and_whole():
  noise = jnp.full((2,), 0.5)
  whole = jnp.array([3.0, 255.0])
  expected = flows.dequantize(whole.astype(jnp.uint8), noise)
  np.testing.assert_array_equal(flows.dequantize(whole, noise, integral=True), expected)
  traced = jax.jit(lambda image: flows.dequantize(image, noise, integral=True))
  np.testing.assert_allclose(traced(whole), expected, rtol=1e-6)
  with pytest.raises(ValueError, match="integer dtype, got float32: pass integral=True"):
    flows.dequantize(whole, noise)
  for fractions in (jnp.array([3.0, 0.5]), jnp.array([3.0, jnp.nan])):
    with pytest.raises(ValueError, match="whole numbers under integral=True"):
      flows.dequantize(fractions, noise, integral=True)


def test_bad_arguments_are_refused():
  image, noise = jnp.zeros((2, 3), jnp.uint8), jnp.zeros((2, 3))
  for bad in (noise[:1], noise[:, :1], noise[0]):
    with pytest.raises(ValueError, match=r"noise must have image's shape \(2, 3\)"):
      flows.dequantize(image, bad)
  with pytest.raises(ValueError, match="noise must be floating"):
    flows.dequantize(image, image)
  with pytest.raises(ValueError, match="integer dtype, got bool"):
    flows.dequantize(image.astype(bool), noise, integral=True)
  for levels in (0.0, -1.0):
    with pytest.raises(ValueError, match="levels must be above 0"):
      flows.dequantize(image, noise, levels=levels)
    with pytest.raises(ValueError, match="levels must be above 0"):
      flows.quantize(noise, levels=levels)
    with pytest.raises(ValueError, match="levels must be above 0"):
      flows.bits_per_dim(noise[0], (3,), levels)
  with pytest.raises(ValueError, match="num_levels must be at least 1"):
    flows.quantize(noise, num_levels=0)
  with pytest.raises(ValueError, match="x must be floating"):
    flows.quantize(image)
  with pytest.raises(ValueError, match=r"log_prob must have shape \(b,\)"):
    flows.bits_per_dim(noise, (3,), 256.0)
  with pytest.raises(ValueError, match="b >= 1"):
    flows.bits_per_dim(jnp.zeros(0), (3,), 256.0)
  with pytest.raises(ValueError, match="log_prob must be floating"):
    flows.bits_per_dim(image[0], (3,), 256.0)
  with pytest.raises(ValueError, match="shape must be"):
    flows.bits_per_dim(noise[0], 3, 256.0)


def test_bits_per_dim_is_per_example():
  log_prob = jnp.array([0.0, -6 * np.log(2.0), 6 * np.log(4.0)])
  np.testing.assert_allclose(flows.bits_per_dim(log_prob, [2, 3], 8.0), [3.0, 4.0, 1.0], rtol=1e-6)


def test_uniform_noise_bounds_the_likelihood_of_the_levels():
  # One pixel of two levels, p(x) = 2x on [0, 1): E_u[log p] - log 2 <= log P(q), P = (1/4, 3/4).
  noise = (np.arange(20_000) + 0.5) / 20_000
  for level, probability in ((0, 0.25), (1, 0.75)):
    image = jnp.full(noise.shape, level, jnp.uint8)
    x = flows.dequantize(image, jnp.asarray(noise, jnp.float32), levels=2.0)
    bits = flows.bits_per_dim(jnp.log(2 * x), (1,), 2.0)
    exact = -np.log2(probability)
    assert exact < np.mean(bits) < exact + 0.5
