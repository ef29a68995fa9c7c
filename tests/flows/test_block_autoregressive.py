"""Block neural autoregressive flows: structure, slopes, extremes, implicit gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import flows

EXTREMES = np.array([0, 1e-38, 1e-30, 1e-7, 0.5, 1, 9, 1e4, 1e30], np.float32)
EXTREMES = jnp.asarray(np.concatenate([-EXTREMES, EXTREMES]).reshape(-1, 2))


def _layer(dim, **options):
  """Return a layer whose parameters all differ from where they start."""
  layer = flows.BlockAutoregressive(dim, rngs=nnx.Rngs(0), **options)
  rng = np.random.default_rng(0)
  move = lambda p: p + 0.3 * jnp.asarray(rng.standard_normal(p.shape), p.dtype)
  nnx.update(layer, jax.tree.map(move, nnx.state(layer, nnx.Param)))
  return layer


def _dense(linear, h):
  """Apply a `BlockLinear` row by row, as the definition says, in float64."""
  kernel, log_gain, bias = (
    np.asarray(v[...], np.float64) for v in (linear.kernel, linear.log_gain, linear.bias)
  )
  out = np.zeros((h.shape[0], *bias.shape))
  for i, o in np.ndindex(*bias.shape):
    row = np.concatenate([kernel[i, o, :i].ravel(), np.exp(kernel[i, o, i])])
    row = np.exp(log_gain[i, o]) * row / np.linalg.norm(row)
    out[:, i, o] = h[:, : i + 1].reshape(h.shape[0], -1) @ row + bias[i, o]
  return out


def _leaky(h):
  near = np.clip(h, -3, 3)
  return np.tanh(near) + (h - near) / np.cosh(3) ** 2


def test_forward_is_the_network_of_the_definition():
  layer = _layer(3, width=2, depth=0)
  x = np.random.default_rng(1).standard_normal((4, 3)) * 3
  expected = _dense(layer.last.linear, _leaky(_dense(layer.first, x[..., None])))[..., 0]
  z, _ = jax.jit(layer.forward)(jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(z, expected, rtol=1e-5, atol=1e-5)


def test_a_latent_depends_on_the_features_up_to_its_own_and_grows_with_it():
  layer = _layer(3, width=2, depth=2)
  x = jnp.asarray(np.random.default_rng(1).standard_normal((8, 3)), jnp.float32)
  alone = lambda v: jax.tree.map(lambda y: y[0], layer.forward(v[None]))
  jacobian, log_det = jax.jit(jax.vmap(jax.jacfwd(alone, has_aux=True)))(x)
  np.testing.assert_array_equal(jacobian, np.tril(jacobian))
  slopes = np.diagonal(jacobian, axis1=1, axis2=2)
  assert np.all(slopes > 0)
  np.testing.assert_allclose(np.sum(np.log(slopes), axis=1), log_det, rtol=1e-5, atol=1e-5)
  assert np.all(jacobian[:, 1, 0] != 0)


def test_a_new_layer_is_nearly_the_identity_on_standard_data_and_its_units_differ():
  x = jnp.asarray(np.random.default_rng(1).standard_normal((256, 2)), jnp.float32)

  @jax.jit
  def run():
    layer = flows.BlockAutoregressive(2, width=32, depth=2, rngs=nnx.Rngs(0))
    units = layer.first(x[:1, :, None], jnp.zeros((1, 2, 1)))[0]
    return *layer.forward(x), jnp.diff(jnp.sort(units[0, 0]))

  z, log_det, apart = run()
  # The excess of -log p per feature over that of the identity; of steps of 32 units, 18.
  assert np.mean(np.sum((z**2 - x**2) / 2, axis=1) - log_det) / 2 < 0.12
  assert np.all(apart > 0.1)


def test_no_finite_number_gives_nan_and_the_inverse_has_its_derivatives():
  layer = _layer(2, width=3, depth=1)

  @jax.jit
  def run(x):
    outputs = []
    for direction in (layer.forward, layer.inverse):
      (y, log_det), vjp = jax.vjp(direction, x)
      outputs += [y, log_det, *vjp((jnp.ones_like(y), jnp.ones_like(log_det)))]
    there_and_back = lambda z: layer.forward(layer.inverse(z)[0])[0]
    z, vjp = jax.vjp(there_and_back, x)
    return outputs, z, vjp(jnp.cos(x))[0]

  outputs, z, z_bar = run(EXTREMES)
  assert all(np.all(np.isfinite(output)) for output in outputs)
  scale = np.max(np.abs(EXTREMES), axis=1, keepdims=True)
  assert np.all(np.abs(z - EXTREMES) < 1e-4 * scale + 1e-5)
  moderate = scale[:, 0] < 10
  np.testing.assert_allclose(z_bar[moderate], np.cos(EXTREMES[moderate]), rtol=0, atol=1e-3)


def test_bad_options_are_refused():
  for options, match in (({"width": 0}, "width must be"), ({"depth": -1}, "depth must be")):
    with pytest.raises(ValueError, match=match):
      flows.BlockAutoregressive(2, rngs=nnx.Rngs(0), **options)
