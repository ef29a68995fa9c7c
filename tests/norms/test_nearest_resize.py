"""Nearest-neighbour resizing by the floor of the index."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import norms


@pytest.mark.parametrize(("old", "new"), [(8, 3), (3, 8), (5, 5), (14, 46), (46, 14), (1, 3)])
def test_source_of_each_entry_is_the_floor(old, new):
  x = np.arange(2 * old * 2 * 3).reshape(2, old, 2, 3)
  y = norms.nearest_resize(x, (new, 1))
  wanted = np.stack([x[:, i * old // new, :1] for i in range(new)], 1)
  np.testing.assert_array_equal(y, wanted)
  assert y.dtype == x.dtype or jax.dtypes.canonicalize_dtype(x.dtype) == y.dtype


def test_half_pixel_centers_pick_other_sources():
  x = jnp.arange(8.0).reshape(1, 8, 1)
  centers = jax.image.resize(x, (1, 3, 1), "nearest")
  assert not np.array_equal(norms.nearest_resize(x, (3,)), centers)


def test_gradient_adds_up_over_copies():
  dx = jax.grad(lambda x: jnp.sum(norms.nearest_resize(x, (5,)) ** 2) / 2)(jnp.ones((1, 2, 1)))
  assert dx.ravel().tolist() == [3.0, 2.0]


@pytest.mark.parametrize(
  ("shape", "size"), [((1, 2, 2, 1), (2,)), ((1, 2, 1), (0,)), ((1, 2), ()), ((1, 0, 1), (2,))]
)
def test_bad_sizes(shape, size):
  with pytest.raises(ValueError, match="size must be one positive int per spatial axis"):
    norms.nearest_resize(jnp.ones(shape), size)
