"""Bijectors that only move entries: where each entry goes, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import flows


@pytest.mark.parametrize("order", ["channel_major", "subpixel_major"])
def test_squeeze_puts_pixels_where_its_equation_says(order):
  x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
  z, log_det = flows.Squeeze(2, order=order).forward(x)
  assert z.shape == (2, 2, 3, 12)
  for c in range(3):
    for dy in range(2):
      for dx in range(2):
        channel = (2 * c + dy) * 2 + dx if order == "channel_major" else (2 * dy + dx) * 3 + c
        np.testing.assert_array_equal(z[..., channel], x[:, dy::2, dx::2, c])
  np.testing.assert_array_equal(log_det, 0)


def test_permutations_gather_on_their_axis():
  x = jnp.arange(2 * 3 * 4.0).reshape(2, 3, 4)
  layer = flows.Permutation([2, 0, 1], axis=1)
  np.testing.assert_array_equal(layer.forward(x)[0], x[:, np.array([2, 0, 1])])
  np.testing.assert_array_equal(flows.Permutation.reverse(4).forward(x)[0], x[:, :, ::-1])
  orders = [flows.Permutation.random(50, rngs=nnx.Rngs(seed)).order[...] for seed in (0, 1)]
  assert np.any(orders[0] != orders[1])
  np.testing.assert_array_equal(np.sort(orders[0]), np.arange(50))


def test_permutations_of_a_scan_are_saved_but_not_trained():
  make = flows.INVERTIBLE_CONVOLUTIONS["shuffle"]
  scan = flows.Scan(lambda rngs: make(20, rngs=rngs), 3, rngs=nnx.Rngs(0))
  assert scan.layers.order[...].shape == (3, 20)
  assert len(np.unique(scan.layers.order[...], axis=0)) == 3
  assert not jax.tree.leaves(nnx.state(scan, nnx.Param))


def test_bad_arguments_are_refused():
  for order in ([0, 2], [0, 0, 1], [0.0, 1.0], [[0, 1]], []):
    with pytest.raises(ValueError, match="order must be a permutation"):
      flows.Permutation(order)
  with pytest.raises(ValueError, match="axis must not be 0"):
    flows.Permutation([0, 1], axis=0)
  for axis in (2, -2):
    with pytest.raises(ValueError, match="with 2 entries on axis"):
      flows.Permutation([0, 1], axis=axis).forward(jnp.ones((2, 2)))
  with pytest.raises(ValueError, match="factor must be at least 1, got 0"):
    flows.Squeeze(0)
  with pytest.raises(ValueError, match="order must be one of .*, got 'tf'"):
    flows.Squeeze(order="tf")
  with pytest.raises(ValueError, match=r"latent_shape must have as many entries .* got \(5,\)"):
    flows.Reshape((2, 3), (5,))
