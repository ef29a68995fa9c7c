"""Networks with SPADE and FADE: what reaches the output, and how blocks are wired."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import models, norms

RNG = np.random.default_rng(0)


def draw(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def leaky(x):
  return jnp.where(x > 0, x, 0.2 * x)


def run(module, *args, **options):
  graphdef, state = nnx.split(module)
  return jax.jit(lambda state, *args: nnx.merge(graphdef, state)(*args, **options))(state, *args)


def test_blocks_add_convolutions_after_modulated_norms():
  x, layout, features = draw(2, 4, 3, 2), draw(2, 8, 6, 5), draw(2, 4, 3, 5)
  blocks = (
    (models.SPADEResBlock(2, 4, 5, hidden_features=3, rngs=nnx.Rngs(0)), layout, 2),
    (models.FADEResBlock(4, 2, 5, rngs=nnx.Rngs(0)), features, 4),
    (models.FADEResBlock(2, 2, 5, rngs=nnx.Rngs(0)), features, 2),
  )
  for block, condition, middle in blocks:
    entering, leaving = block.conv_0.in_features, block.conv_1.out_features
    assert block.conv_0.out_features == block.norm_1.num_features == middle
    value = jnp.concatenate([x, -2 * x], -1) if entering == 4 else x

    def written(b, v, condition=condition, plain=entering == leaving):
      y = b.conv_0(leaky(b.norm_0(v, condition)))
      y = b.conv_1(leaky(b.norm_1(y, condition)))
      return y + (v if plain else b.conv_s(b.norm_s(v, condition)))

    wanted = jax.jit(lambda v, block=block, f=written: f(block, v))(value)
    np.testing.assert_allclose(run(block, value, condition), wanted, rtol=1e-5, atol=1e-5)


def test_stage_takes_style_and_content_and_doubles_the_size():
  stage = models.TSITStage(3, 2, 4, rngs=nnx.Rngs(0))
  x, content, style = draw(2, 4, 4, 3), draw(2, 4, 4, 4), 5 + 3 * draw(2, 6, 6, 3)
  y = run(stage, x, content, style)
  # FADE removes moments right away, so the style lives on the skip connection.
  styled = norms.adaptive_instance_norm(x, style)
  wanted = run(stage.block, styled, content)
  np.testing.assert_allclose(y[:, ::2, 1::2], wanted, rtol=1e-5, atol=1e-5)
  without = run(stage, x, content, style, alpha=0.0)
  np.testing.assert_allclose(without[:, ::2, ::2], run(stage.block, x, content), atol=1e-5)


@pytest.fixture(scope="module")
def generator():
  return models.SPADEGenerator(
    3, 1, widths=(4, 4), hidden_features=3, norm="batch", rngs=nnx.Rngs(0)
  )


def test_generator_shows_the_layout_and_trains_every_parameter(generator):
  labels = jnp.asarray(RNG.integers(0, 3, (4, 4, 4)))
  graphdef, params, rest = nnx.split(generator, nnx.Param, ...)

  @jax.jit
  def loss(params, labels):
    merged = nnx.merge(graphdef, params, rest, copy=True)
    image = merged(labels)
    return jnp.sum(image**2), (image, nnx.state(merged, nnx.BatchStat))

  grads, (image, moved) = jax.jit(jax.grad(loss, has_aux=True))(params, labels)
  assert image.shape == (4, 4, 4, 1)
  assert jnp.max(jnp.abs(image)) < 1
  assert not np.allclose(image, loss(params, (labels + 1) % 3)[1][0])
  for path, leaf in nnx.to_flat_state(grads):
    # A bias before a norm of the batch changes nothing.
    assert jnp.max(jnp.abs(leaf[...])) > 1e-6 or path[-2:] == ("conv_0", "bias"), path
  before = jax.tree.leaves(nnx.state(generator, nnx.BatchStat))
  assert all(not np.array_equal(a, b) for a, b in zip(before, jax.tree.leaves(moved), strict=True))


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_layout_at_the_input_reaches_no_norm(norm):
  make = lambda condition: models.SPADEGenerator(
    3, 1, widths=(4, 4), hidden_features=3, norm=norm, condition=condition, upsample=False,
    rngs=nnx.Rngs(0),
  )  # fmt: skip
  plain = make("input")
  assert norms.SPADE in {type(module) for _, module in nnx.iter_modules(make("spade"))}
  labels = jnp.asarray(RNG.integers(0, 3, (2, 3, 5)))  # No doubling has to divide the size.
  image = run(plain, labels, use_running_average=False)
  assert image.shape == (2, 3, 5, 1)
  assert not np.allclose(image, run(plain, (labels + 1) % 3, use_running_average=False))
  kinds = {type(module) for _, module in nnx.iter_modules(plain)}
  assert norms.SPADE not in kinds
  assert {"instance": norms.InstanceNorm, "batch": norms.BatchNorm}[norm] in kinds


def test_bad_layouts(generator):
  with pytest.raises(ValueError, match="multiples of 2, got \\(1, 3, 4, 3\\)"):
    generator(jnp.zeros((1, 3, 4), int))
  with pytest.raises(ValueError, match="segmap must hold labels"):
    generator(jnp.zeros((1, 4, 4, 3), int))
  with pytest.raises(ValueError, match="widths must hold"):
    models.SPADEGenerator(3, 1, widths=(), rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match='condition must be "spade" or "input", got \'inputs\''):
    models.SPADEGenerator(3, 1, condition="inputs", rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match='norm must be "instance" or "batch", got \'layer\''):
    models.SPADEGenerator(3, 1, norm="layer", condition="input", rngs=nnx.Rngs(0))
