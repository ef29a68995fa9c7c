"""The inpainting generator: what reaches the output, and what is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import models, norms
from normjax.models._inpainting import _shuffled

RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.random((2, 16, 12, 1)), jnp.float32)
HOLE = jnp.zeros((2, 16, 12, 1), bool).at[:, 4:11, 3:9].set(True)


@pytest.fixture(scope="module")
def generator():
  return models.InpaintingGenerator(1, features=2, num_blocks=2, threshold=0.5, rngs=nnx.Rngs(0))


def test_hole_is_hidden_and_every_parameter_trained(generator):
  graphdef, params = nnx.split(generator)

  @jax.jit
  def run(params, images, hole):
    y, vjp = jax.vjp(lambda p, x: nnx.merge(graphdef, p)(x, hole), params, images)
    return y, *vjp(jnp.sin(7 * jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

  y, grads, dimages = run(params, IMAGES, HOLE)
  assert y.shape == IMAGES.shape
  assert 0 < jnp.min(y) < jnp.max(y) < 1
  again = run(params, jnp.where(HOLE, jnp.nan, IMAGES), HOLE)
  np.testing.assert_array_equal(again[0], y)
  inside = np.asarray(HOLE)
  np.testing.assert_array_equal(dimages[inside], 0)
  assert np.count_nonzero(dimages[~inside]) > 0.9 * np.sum(~inside)
  assert not np.allclose(run(params, IMAGES, ~HOLE)[0], y)
  for path, leaf in nnx.to_flat_state(grads):
    # A bias before a norm of each region changes nothing within it.
    before_norm = path[-1] == "bias" and path[-2] != "head"
    assert np.max(np.abs(leaf[...])) > 1e-7 or before_norm, path


def test_another_norm_stands_at_all_places():
  options = {"num_groups": 2}
  make = lambda **arguments: models.InpaintingGenerator(
    1, features=2, num_blocks=2, rngs=nnx.Rngs(0), **arguments
  )
  generator = make(norm="group_norm", norm_options=options)
  kinds = [type(module) for _, module in nnx.iter_modules(generator)]
  assert kinds.count(norms.GroupNorm) == 3 + 2 + 2  # encoder, one block for all, decoder
  assert not {norms.RegionNorm, norms.LearnableRegionNorm} & set(kinds)
  graphdef, params = nnx.split(generator)
  run = jax.jit(lambda params, images: nnx.merge(graphdef, params)(images, HOLE))
  y = run(params, IMAGES)
  assert y.shape == IMAGES.shape
  np.testing.assert_array_equal(run(params, jnp.where(HOLE, jnp.nan, IMAGES)), y)
  with pytest.raises(ValueError, match="norm_options must be empty with norm=.region"):
    make(norm_options=options)
  with pytest.raises(ValueError, match="did you mean 'group_norm'"):
    make(norm="groupnorm")


def test_norms_with_running_statistics_have_their_modes():
  generator = models.InpaintingGenerator(
    1, features=2, num_blocks=1, norm="batch_norm", rngs=nnx.Rngs(0)
  )
  generator.eval()
  graphdef, state = nnx.split(generator)
  run = jax.jit(lambda state, x, hole: nnx.merge(graphdef, state)(x, hole))
  # In evaluation mode an image does not depend on the others of its batch.
  alone = run(state, IMAGES.at[1].set(0), HOLE)[0]
  np.testing.assert_array_equal(alone, run(state, IMAGES, HOLE)[0])


def test_pixel_shuffle_spreads_channels_over_pixels():
  x = jnp.arange(8.0).reshape(1, 1, 1, 8)
  np.testing.assert_array_equal(_shuffled(x)[0, ..., 0], [[0, 1], [2, 3]])
  np.testing.assert_array_equal(_shuffled(x)[0, ..., 1], [[4, 5], [6, 7]])


def test_bad_arguments(generator):
  with pytest.raises(ValueError, match="images must have shape"):
    generator(IMAGES[:, :14], HOLE[:, :14])
  with pytest.raises(ValueError, match="images must have shape"):
    generator(IMAGES[:, :8], HOLE[:, :8])
  with pytest.raises(ValueError, match="mask must be boolean"):
    generator(IMAGES, HOLE.astype(int))
  with pytest.raises(ValueError, match="num_blocks must be at least 0, got -1"):
    models.InpaintingGenerator(num_blocks=-1, features=1, rngs=nnx.Rngs(0))
