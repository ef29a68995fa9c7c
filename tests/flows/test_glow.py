"""Glow: its density in both forms, its options, its start from data and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import checkpoint, flows, models

SHAPE = (4, 4, 1)
TINY = {"num_levels": 2, "num_steps": 2, "width": 3, "num_classes": 3}


def _images(count, seed=0):
  return jnp.asarray(np.random.default_rng(seed).uniform(-0.5, 0.5, (count, *SHAPE)), jnp.float32)


@functools.cache
def _glow(**options):
  make = jax.jit(lambda: nnx.split(models.Glow(SHAPE, **TINY | options, rngs=nnx.Rngs(0)))[1])
  graphdef = nnx.split(
    nnx.eval_shape(lambda: models.Glow(SHAPE, **TINY | options, rngs=nnx.Rngs(0)))
  )[0]
  return nnx.merge(graphdef, make())


@functools.cache
def _trained():
  """Return a Glow away from its initial values, with a prior that matters."""
  graphdef, state = nnx.split(_glow())
  glow = nnx.merge(graphdef, state)
  rng = np.random.default_rng(1)
  move = lambda p: p + jnp.asarray(0.1 * rng.standard_normal(p.shape), p.dtype)
  nnx.update(glow, jax.tree.map(move, nnx.state(glow, nnx.Param)))
  return glow


@functools.cache
def _run():
  @jax.jit
  def run(glow, x, label, key):
    parts = glow.bijector.latents(x, label)
    samples = [glow.sample(k, 3, label, 0.0) for k in jax.random.split(key)]
    hot = glow.sample(key, 3, label, 0.5)
    return glow.log_prob(x, label), parts, samples, hot

  return run(_trained(), _images(3), jnp.array([0, 2, 3]), jax.random.key(0))


def test_density_is_that_of_latents_that_are_not_standardized():
  log_prob, (latents, log_det, log_prior), _, _ = _run()
  assert [z.shape for z in latents] == [(3, 2, 2, 2), (3, 1, 1, 8)]
  np.testing.assert_allclose(log_det + log_prior, log_prob, atol=1e-5)
  assert np.all(np.abs(log_det) > 1e-2)


def test_temperature_zero_gives_one_image_and_others_do_not():
  _, _, (one, other), hot = _run()
  np.testing.assert_array_equal(one, other)
  assert np.max(np.abs(one - hot)) > 0.05


def test_no_label_is_the_last_row():
  prior = _trained().bijector.top
  null = prior(2, jnp.float32, jnp.array([3, 3]))
  for unlabelled, labelled in zip(prior(2, jnp.float32, None), null, strict=True):
    np.testing.assert_array_equal(unlabelled, labelled)


def test_starts_from_data():
  x = _images(16)
  glow = _glow()
  graphdef, state = nnx.split(glow)

  @jax.jit
  def run(state, x):
    new = flows.init_from_data(nnx.merge(graphdef, state), x)
    squeezed = new.bijector.squeeze.forward(x)[0]
    stack = new.bijector.levels[0].layers
    graph, stacked = nnx.split(stack)
    first = nnx.merge(graph, jax.tree.map(lambda v: v[0], stacked))
    act_norm = first.bijectors[0].forward(squeezed)[0]
    return act_norm, new.bijector.levels[1].layers.bijectors[0].log_scale[...], new.log_prob(x)

  act_norm, log_scale, log_prob = run(state, x)
  np.testing.assert_allclose(jnp.mean(act_norm, (0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(jnp.std(act_norm, (0, 1, 2)), 1, atol=1e-5)
  assert np.all(log_scale != 0)
  assert np.all(np.isfinite(log_prob))


def test_options_choose_the_parts():
  options = [
    {"convolution": name, "coupling": "additive"} for name in sorted(flows.INVERTIBLE_CONVOLUTIONS)
  ]
  kinds = {
    "1x1": flows.LULinear,
    "1x1_dense": flows.InvertibleLinear,
    "cinc": flows.CInCConv,
    "cinc_full": flows.CInCConv,
    "emerging": flows.Chain,
    "periodic": flows.PeriodicConv,
    "reverse": flows.Permutation,
    "shuffle": flows.Permutation,
  }
  for option in options:
    glow = nnx.eval_shape(
      lambda o=option: models.Glow(SHAPE, **TINY, **o, param_dtype="float16", rngs=nnx.Rngs(0))
    )
    assert {p.dtype for p in jax.tree.leaves(nnx.state(glow, nnx.Param))} == {jnp.dtype("float16")}
    step = glow.bijector.levels[0].layers.bijectors
    assert type(step[1]) is kinds[option["convolution"]]
    assert type(step[2]) is flows.AdditiveGlowCoupling
    if option["convolution"] == "emerging":
      assert [type(part) for part in step[1].bijectors] == [flows.LULinear, flows.EmergingConv]
    if option["convolution"] == "cinc_full":
      assert step[1].tap == "full"
  assert type(_glow().bijector.levels[0].layers.bijectors[2]) is flows.GlowCoupling


@pytest.mark.parametrize("name", ["cinc", "emerging", "periodic"])
def test_images_come_back_through_its_convolutions(name):
  shape = (12, 12, 1)  # 3 x 3 at the last level, the least for a periodic kernel of 3
  glow = models.Glow(shape, **TINY, convolution=name, rngs=nnx.Rngs(0))
  x = jnp.asarray(np.random.default_rng(0).uniform(-0.5, 0.5, (4, *shape)), jnp.float32)
  graphdef, state = nnx.split(jax.jit(flows.init_from_data)(glow, x))

  @jax.jit
  def there_and_back(state, x):
    bijector = nnx.merge(graphdef, state).bijector
    z, log_det = bijector.forward(x)
    return log_det, *bijector.inverse(z)

  log_det, again, back = there_and_back(state, x)
  np.testing.assert_allclose(again, x, atol=1e-4)
  np.testing.assert_allclose(back, -log_det, rtol=1e-4, atol=1e-4)


def test_program_does_not_grow_with_depth():
  def size(num_steps):
    make = lambda: models.Glow(SHAPE, **TINY | {"num_steps": num_steps}, rngs=nnx.Rngs(0))
    jaxpr = jax.make_jaxpr(lambda glow, x: glow.log_prob(x))(nnx.eval_shape(make), _images(2))
    return len(str(jaxpr).splitlines())

  assert size(2) == size(7)


def test_is_built_from_json():
  spec = {"class": "normjax.models.Glow", "kwargs": {"shape": list(SHAPE), **TINY}}
  glow = nnx.eval_shape(lambda: checkpoint.build(spec, nnx.Rngs(0)))
  assert glow.bijector.latent_shapes == ((2, 2, 2), (1, 1, 8))
  assert glow.base.shape == (16,)


@pytest.mark.parametrize("name", ["glow", "multi-scale", "quad", "smooth"])
def test_no_finite_number_gives_nan(name):
  # Each with scales far from one where the conditioning part is large.
  x = jnp.array([0.0, 1.0, -1.0, 1e4, -1e4, 1e30, -1e30])
  x = jnp.stack(jnp.meshgrid(x, x), axis=-1).reshape(-1, 1, 1, 2)
  if name == "glow":
    coupling = flows.GlowCoupling(2, width=2, rngs=nnx.Rngs(0))
    coupling.network.head.conv.conv.kernel[...] -= 1.0
  elif name == "quad":
    coupling = flows.QuadCoupling(4, nnx.Linear, rngs=nnx.Rngs(0))
    for net in coupling.nets:
      net.kernel[...] -= 1.0
    x = jnp.tile(x, (1, 1, 1, 2))
  elif name == "smooth":
    coupling = flows.SmoothAffineCoupling(jnp.arange(2), width=2, depth=1, rngs=nnx.Rngs(0))
    coupling.scale.first.linear.kernel[...] = jnp.ones((1, 2))
    coupling.scale.last.kernel[...] -= 1.0
    x = jnp.clip(x.reshape(-1, 2), -1e15, 1e15)  # beyond, products of two of them are infinite
  else:
    level = lambda shape, rngs: flows.Chain([])
    coupling = flows.MultiScale((4, 4, 1), level, 2, rngs=nnx.Rngs(0))
    coupling.priors[0].conv.conv.conv.kernel[...] -= 1.0
    x = jnp.tile(x.reshape(-1, 1, 2, 1), (1, 4, 2, 1))
  latents = x.reshape(-1, 16) if name == "multi-scale" else x

  @jax.jit
  def run(x, latents):
    outputs = []
    for method, v in ((coupling.forward, x), (coupling.inverse, latents)):
      (y, log_det), vjp = jax.vjp(method, v)
      ones, zeros = jnp.ones_like, jnp.zeros_like
      outputs += [y, log_det, vjp((ones(y), zeros(log_det))), vjp((zeros(y), ones(log_det)))]
    return outputs

  assert not any(np.any(np.isnan(leaf)) for leaf in jax.tree.leaves(run(x, latents)))


def test_edge_bias_tells_the_padding():
  coupling = flows.GlowCoupling(2, width=4, edge_bias=True, rngs=nnx.Rngs(0))
  hidden = coupling.network.conv_0(jnp.zeros((1, 5, 5, 1)))
  np.testing.assert_array_equal(hidden[0, 1:4, 1:4], 0)
  assert np.all(hidden[0, 0] != 0)
  without = flows.GlowCoupling(2, width=4, rngs=nnx.Rngs(0)).network.conv_0
  np.testing.assert_array_equal(without(jnp.zeros((1, 5, 5, 1))), 0)


def test_bad_arguments_are_refused():
  def make(**options):
    shape = options.pop("shape", SHAPE)
    return nnx.eval_shape(lambda: models.Glow(shape, **TINY | options, rngs=nnx.Rngs(0)))

  for options, message in [
    ({"convolution": "2x2"}, "convolution must be one of .*'1x1'.*, got '2x2'"),
    ({"coupling": "affin"}, "coupling must be one of .*'affine'.*, got 'affin'"),
    ({"num_levels": 3}, r"2\^num_levels = 8 divides, got \(4, 4, 1\)"),
    ({"num_levels": 0}, "num_levels must be at least 1, got 0"),
    ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
    ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
    ({"width": 0}, "width must be at least 1, got 0"),
    ({"shape": (4, 4)}, "shape must be"),
  ]:
    with pytest.raises(ValueError, match=message):
      make(**options)
  with pytest.raises(ValueError, match="features must be even and at least 2, got 3"):
    flows.GlowCoupling(3, rngs=nnx.Rngs(0))


def test_labels_without_classes_are_refused():
  glow = nnx.eval_shape(
    lambda: models.Glow(SHAPE, **TINY | {"num_classes": None}, rngs=nnx.Rngs(0))
  )
  label = jnp.zeros(2, int)
  for call in (
    lambda: glow.log_prob(_images(2), label),
    lambda: glow.bijector.forward(_images(2), label),
    lambda: glow.bijector.inverse(jnp.zeros((2, 16)), label),
    lambda: glow.bijector.latents(_images(2), label),
    lambda: glow.energy(_images(2), label),
    lambda: glow.sample(jax.random.key(0), 2, label),
    lambda: flows.init_from_data(glow, _images(2), label),
  ):
    with pytest.raises(ValueError, match="cond must be None, since this Glow has no num_classes"):
      call()
