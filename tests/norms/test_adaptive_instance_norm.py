"""AdaIN, cross-modal and content-aware AdaIN: the moments of one array for another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import norms

RNG = np.random.default_rng(0)


def draw(*shape, dtype=jnp.float32):
  return jnp.asarray(RNG.normal(size=shape), dtype)


CONTENT, STYLE = 3 * draw(2, 4, 5, 3) - 1, draw(2, 3, 6, 3) + 2
adain = jax.jit(norms.adaptive_instance_norm, static_argnames=("epsilon", "ddof", "dtype"))
statistics = functools.partial(norms.instance_statistics, epsilon=0.0)


def assert_close(a, b, rtol=1e-5):
  np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("ddof", [0, 1])
def test_statistics_are_numpys(ddof):
  mean, std = norms.instance_statistics(CONTENT, epsilon=0.5, ddof=ddof)
  assert_close(mean, np.mean(CONTENT, (1, 2), keepdims=True))
  assert_close(std**2 - 0.5, np.var(CONTENT, (1, 2), keepdims=True, ddof=ddof))
  mask = RNG.random((2, 4, 5)) < 0.6
  mean, std = norms.instance_statistics(CONTENT, jnp.asarray(mask), epsilon=0.0, ddof=ddof)
  for i in range(2):
    inside = np.asarray(CONTENT[i])[mask[i]]
    assert_close(mean[i, 0, 0], inside.mean(0))
    assert_close(std[i, 0, 0], inside.std(0, ddof=ddof))


def test_output_has_the_moments_of_style():
  y = adain(CONTENT, STYLE, epsilon=0.0)
  for got, wanted in zip(statistics(y), statistics(STYLE), strict=True):
    assert_close(got, wanted)
  assert_close(adain(y, STYLE, epsilon=0.0), y)
  assert_close(adain(CONTENT, CONTENT), CONTENT)
  damped = statistics(adain(CONTENT, STYLE, epsilon=4.0))[1]
  _, std_c = statistics(CONTENT)
  _, std_s = norms.instance_statistics(STYLE, epsilon=4.0)
  assert_close(damped, std_s * std_c / jnp.sqrt(std_c**2 + 4))


def test_alpha_blends_and_may_be_traced():
  full = adain(CONTENT, STYLE)
  assert_close(adain(CONTENT, STYLE, alpha=0.25), 0.25 * full + 0.75 * CONTENT)
  np.testing.assert_array_equal(adain(CONTENT, STYLE, alpha=0.0), CONTENT)
  assert norms.feature_adaptive_instance_norm is norms.adaptive_instance_norm


def test_masks_say_what_counts_and_what_changes():
  inside = np.zeros((2, 4, 5), bool)
  inside[:, :2, :3] = True
  used = np.zeros((2, 3, 6, 1), bool)
  used[:, 1:, ::2] = True
  y = adain(CONTENT, STYLE, content_mask=inside, style_mask=used)
  np.testing.assert_array_equal(y[~inside], CONTENT[~inside])
  cut = adain(CONTENT[:, :2, :3], STYLE[:, 1:, ::2])
  assert_close(y[:, :2, :3], cut)
  larger = np.repeat(np.repeat(inside, 2, 1), 3, 2)
  np.testing.assert_array_equal(
    y, adain(CONTENT, STYLE, content_mask=larger, style_mask=np.repeat(used, 2, 1))
  )
  # What is masked may be anything, and one mask may serve the whole batch.
  junk = jnp.where(used, STYLE, jnp.nan)
  np.testing.assert_array_equal(
    y, adain(CONTENT, junk, content_mask=inside[:1], style_mask=used[:1])
  )


def test_example_with_one_valid_pixel_comes_back_with_a_finite_gradient():
  mask = np.ones((2, 4, 5), bool)
  mask[1] = False
  mask[1, 2, 2] = True
  for masks in ({"content_mask": mask}, {"style_mask": mask}):
    f = lambda c, s, masks=masks: adain(c, s, epsilon=0.0, **masks)
    y, vjp = jax.vjp(f, CONTENT, STYLE)
    np.testing.assert_array_equal(y[1], CONTENT[1])
    assert_close(y[0], adain(CONTENT, STYLE, epsilon=0.0)[0])
    dcontent, dstyle = vjp(jnp.ones_like(y))
    np.testing.assert_array_equal(dcontent[1], 1)
    np.testing.assert_array_equal(dstyle[1], 0)
    assert jnp.all(jnp.isfinite(dcontent))
    assert jnp.all(jnp.isfinite(dstyle))


@pytest.mark.parametrize(
  "norm",
  [
    lambda c, s: adain(c, s, epsilon=0.0),
    norms.cross_modal_adaptive_instance_norm,
    lambda c, s: norms.content_aware_adaptive_instance_norm(
      c, s, content_weight=0.0, style_weight=1.0, epsilon=0.0
    ),
  ],
)
def test_constant_channel_becomes_the_mean_of_style(norm):
  content, style = jnp.full((2, 4, 3), 0.3), draw(2, 5, 3)
  y, vjp = jax.vjp(norm, content, style)
  assert_close(y, jnp.broadcast_to(jnp.mean(style, 1, keepdims=True), y.shape), rtol=1e-3)
  assert all(jnp.all(jnp.isfinite(v)) for v in vjp(jnp.ones_like(y)))
  assert all(jnp.all(jnp.isfinite(v)) for v in jax.vjp(norm, style, content)[1](style))


def test_kin_agree():
  tokens, image = CONTENT.reshape(2, -1, 3), STYLE.reshape(2, -1, 3)
  as_images = adain(tokens[:, :, None], image[:, :, None], epsilon=0.0)[:, :, 0]
  assert_close(norms.cross_modal_adaptive_instance_norm(tokens, image), as_images)
  aware = functools.partial(norms.content_aware_adaptive_instance_norm, CONTENT, STYLE)
  only_style = aware(content_weight=0.0, style_weight=1.0, epsilon=0.0)
  assert_close(only_style, adain(CONTENT, STYLE, epsilon=0.0))
  assert_close(aware(content_weight=1.0, style_weight=0.0, epsilon=0.0), CONTENT)
  with pytest.warns(UserWarning, match="content_weight \\+ style_weight is 1.5 and not 1"):
    twice = aware(content_weight=0.5, style_weight=1.0, epsilon=0.0)
  mean = 0.5 * statistics(CONTENT)[0] + statistics(STYLE)[0]
  assert_close(statistics(twice)[0], mean)


@pytest.mark.parametrize(
  "norm",
  [
    norms.adaptive_instance_norm,
    norms.cross_modal_adaptive_instance_norm,
    norms.content_aware_adaptive_instance_norm,
  ],
)
def test_dtypes(norm):
  norm = jax.jit(norm, static_argnames="dtype")
  c, s = (300 * draw(2, 8, 3, dtype=jnp.float16) for _ in range(2))
  y = norm(c, s)
  wide = norm(c.astype(jnp.float32), s.astype(jnp.float32))
  assert y.dtype == jnp.float16
  np.testing.assert_allclose(y, wide, rtol=1e-3, atol=0.5)
  assert norm(c, s, dtype="float32").dtype == jnp.float32
  assert_close(norm(c, s, dtype="float32"), wide)
  # Large means lose no digits of the deviations.
  far = 1e4 + draw(2, 8, 3)
  near, far = (y - np.mean(y, 1, keepdims=True) for y in (norm(far - 1e4, s), norm(far, s)))
  np.testing.assert_allclose(far, near, rtol=0, atol=1e-3 * np.max(np.abs(near)))


@pytest.mark.parametrize(
  ("error", "content", "style", "options"),
  [
    ("style must have the rank", (2, 4, 3), (1, 4, 3), {}),
    ("style must have the rank", (2, 4, 3), (2, 4, 2), {}),
    ("style must have the rank", (2, 4, 3), (2, 4, 1, 3), {}),
    ("content must have shape", (2, 3), (2, 3), {}),
    ("style must have more than 1 positions .* ddof=0 takes one", (2, 4, 3), (2, 1, 3), {}),
    ("content must have more than 1 positions", (2, 1, 3), (2, 4, 3), {}),
    ("content must have more than 0 positions", (2, 0, 3), (2, 4, 3), {"ddof": 0}),
    ("alpha must be a number in", (2, 4, 3), (2, 4, 3), {"alpha": 1.5}),
    ("alpha must be a number in", (2, 4, 3), (2, 4, 3), {"alpha": float("nan")}),
    ("alpha must be a number in", (2, 4, 3), (2, 4, 3), {"alpha": jnp.ones(2)}),
    ("epsilon must be >= 0", (2, 4, 3), (2, 4, 3), {"epsilon": -1.0}),
    ("ddof must be 0", (2, 4, 3), (2, 4, 3), {"ddof": 2}),
    ("dtype must be a floating", (2, 4, 3), (2, 4, 3), {"dtype": jnp.int32}),
    ("mask must be boolean", (2, 4, 3), (2, 4, 3), {"content_mask": jnp.ones((2, 4))}),
    ("mask must have the shape", (2, 4, 3), (2, 4, 3), {"style_mask": jnp.ones((3, 4), bool)}),
    ("mask must have the shape", (2, 4, 3), (2, 4, 3), {"style_mask": jnp.ones(4, bool)}),
  ],
)
def test_bad_arguments(error, content, style, options):
  with pytest.raises(ValueError, match=error):
    norms.adaptive_instance_norm(jnp.ones(content), jnp.ones(style), **options)


def test_other_bad_arguments():
  with pytest.raises(ValueError, match="content must be floating, got int32"):
    norms.adaptive_instance_norm(jnp.ones((2, 4, 3), jnp.int32), jnp.ones((2, 4, 3)))
  with pytest.raises(ValueError, match="content must be tokens"):
    norms.cross_modal_adaptive_instance_norm(CONTENT, STYLE)
  with pytest.raises(ValueError, match="epsilon must be >= 0"):
    norms.content_aware_adaptive_instance_norm(CONTENT, STYLE, epsilon=-1.0)
  with pytest.raises(ValueError, match="mask must have the shape"):
    norms.instance_statistics(CONTENT, jnp.ones((2, 8, 5), bool))
  assert norms.adaptive_instance_norm(CONTENT, STYLE[:, :1, :1], ddof=0).shape == CONTENT.shape
