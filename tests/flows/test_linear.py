"""Linear layers: their matrices, their determinants, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy
from flax import nnx

from normjax import flows

LAYERS = {
  "dense": flows.InvertibleLinear,
  "lu": flows.LULinear,
  "qr": flows.QRLinear,
  "svd": flows.SVDLinear,
  "householder": flows.HouseholderLinear,
  "low_rank": functools.partial(flows.LowRankLinear, rank=2),
  "cayley": flows.RotationLinear,
  "rotation": functools.partial(flows.RotationLinear, method="exp"),
  "softplus_lu": flows.SoftplusLULinear,
  "upper": flows.TriangularLinear,
  "lower": functools.partial(flows.TriangularLinear, lower=True),
}


def _moved(layer, seed=0):
  """Return the layer with parameters away from special values."""
  rng = np.random.default_rng(seed)
  move = lambda p: p + jnp.asarray(0.3 * rng.standard_normal(p.shape), p.dtype)
  nnx.update(layer, jax.tree.map(move, nnx.state(layer, nnx.Param)))
  return layer


@pytest.mark.parametrize("name", ["dense", "lu", "qr", "svd", "householder"])
def test_starts_as_a_random_orthogonal_matrix(name):
  kernels = [LAYERS[name](5, rngs=nnx.Rngs(seed)).kernel() for seed in (0, 1)]
  np.testing.assert_allclose(kernels[0] @ kernels[0].T, np.eye(5), atol=2e-6)
  assert np.max(np.abs(kernels[0] - kernels[1])) > 0.1


def test_lu_decomposes_the_start_of_dense():
  dense, lu = (LAYERS[name](5, rngs=nnx.Rngs(0)).kernel() for name in ("dense", "lu"))
  np.testing.assert_allclose(lu, dense, atol=2e-6)


@pytest.mark.parametrize("name", ["softplus_lu", "upper", "lower"])
def test_starts_as_the_identity(name):
  np.testing.assert_allclose(LAYERS[name](5).kernel(), np.eye(5), atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_multiplies_by_its_kernel_at_every_position(name):
  layer = _moved(LAYERS[name](3, rngs=nnx.Rngs(0)))
  x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 2, 2, 3)), jnp.float32)
  z, log_det = layer.forward(x)
  bias = 0 if layer.bias is None else layer.bias[...].reshape(1, 1, 1, 3)
  np.testing.assert_allclose(z, x @ layer.kernel() + bias, atol=1e-5)
  np.testing.assert_allclose(log_det, 4 * np.linalg.slogdet(layer.kernel())[1], atol=1e-5)


def test_factors_are_multiplied_in_the_order_of_the_equations():
  low_rank, qr, svd = (_moved(LAYERS[n](3, rngs=nnx.Rngs(0))) for n in ("low_rank", "qr", "svd"))

  def orthogonal(vectors):
    mirrors = [np.eye(3) - 2 * np.outer(v, v) / (v @ v) for v in np.asarray(vectors[...])]
    return np.linalg.multi_dot(mirrors)

  u, v = (np.asarray(p[...]) for p in (low_rank.u, low_rank.v))
  np.testing.assert_allclose(low_rank.kernel(), np.diag(low_rank.s[...]) + u @ v.T, atol=1e-5)
  upper = np.triu(qr.upper[...], 1) + np.diag(qr.s[...])
  np.testing.assert_allclose(qr.kernel(), orthogonal(qr.vectors) @ upper, atol=1e-5)
  u, v = orthogonal(svd.u_vectors), orthogonal(svd.v_vectors)
  scales = np.exp(svd.log_s[...])
  np.testing.assert_allclose(svd.kernel(), u @ np.diag(scales) @ v.T, atol=1e-5)


def test_low_rank_is_a_diagonal_and_few_products():
  layer = _moved(LAYERS["low_rank"](4, rngs=nnx.Rngs(0)))
  product = np.asarray(layer.kernel()) - np.diag(layer.s[...])
  assert np.linalg.matrix_rank(product, tol=1e-5) == 2
  np.testing.assert_allclose(LAYERS["low_rank"](4, rngs=nnx.Rngs(0)).kernel(), np.eye(4), atol=1e-6)
  with pytest.raises(ValueError, match="rank must be 1 to features = 2, got 3"):
    flows.LowRankLinear(2, rank=3, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", ["cayley", "rotation"])
def test_rotations_are_orthogonal_and_keep_orientation(name):
  layer = _moved(LAYERS[name](3, rngs=nnx.Rngs(0)))
  q = np.asarray(layer.kernel(), np.float64)
  np.testing.assert_allclose(q @ q.T, np.eye(3), atol=1e-6)
  np.testing.assert_allclose(np.linalg.det(q), 1, atol=1e-6)
  skew = np.asarray(layer.weight[...] - layer.weight[...].T, np.float64)
  inverse = np.linalg.inv(np.eye(3) + skew)
  expected = {"cayley": inverse @ (np.eye(3) - skew), "rotation": scipy.linalg.expm(skew)}[name]
  np.testing.assert_allclose(q, expected, atol=1e-6)
  with pytest.raises(ValueError, match=r"method must be one of \['cayley', 'exp'\], got 'qr'"):
    flows.RotationLinear(2, method="qr", rngs=nnx.Rngs(0))


def test_discrete_cosine_is_scipys():
  x = np.random.default_rng(0).standard_normal((2, 5, 3))
  for axis in (1, -1):
    z, _ = flows.DiscreteCosine(axis=axis).forward(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(z, scipy.fft.dct(x, norm="ortho", axis=axis), atol=1e-5)
  with pytest.raises(ValueError, match="axis must not be 0"):
    flows.DiscreteCosine(axis=0)


def test_triangles_stay_triangles():
  upper = _moved(LAYERS["upper"](4)).kernel()
  lower = _moved(LAYERS["lower"](4)).kernel()
  np.testing.assert_array_equal(np.tril(upper, -1), 0)
  np.testing.assert_array_equal(np.triu(lower, 1), 0)
  assert np.all(np.triu(upper, 1)[np.triu_indices(4, 1)] != 0)


def test_log_det_of_lu_depends_on_log_s_alone():
  layer = LAYERS["lu"](4, rngs=nnx.Rngs(0))
  before = layer.log_abs_det(jnp.float32)
  layer.lower[...], layer.upper[...] = layer.lower[...] + 1, layer.upper[...] - 2
  layer.order[...] = jnp.array([3, 1, 0, 2])
  assert layer.log_abs_det(jnp.float32) == before
  np.testing.assert_allclose(np.linalg.slogdet(layer.kernel())[1], before, atol=1e-4)


def test_a_permutation_matrix_permutes_channels():
  layer = LAYERS["dense"](4, rngs=nnx.Rngs(0))
  order = np.array([2, 0, 3, 1])
  layer.weight[...] = jnp.eye(4)[:, order]
  x = jnp.arange(2 * 3 * 4.0).reshape(2, 3, 4)
  z, log_det = layer.forward(x)
  np.testing.assert_array_equal(z, flows.Permutation(order).forward(x)[0])
  np.testing.assert_array_equal(log_det, 0)


def test_vectors_of_zeros_reflect_nothing():
  layer = flows.HouseholderLinear(3, num_reflections=2, rngs=nnx.Rngs(0))
  v = layer.vectors[...].at[0].set(0)
  layer.vectors[...] = v
  expected = np.eye(3) - 2 * np.outer(v[1], v[1]) / np.sum(v[1] ** 2)
  np.testing.assert_allclose(layer.kernel(), expected, atol=1e-6)
  graphdef, state = nnx.split(layer)
  gradient = jax.grad(lambda state: jnp.sum(nnx.merge(graphdef, state).kernel()))(state)
  assert np.all(np.isfinite(gradient["vectors"][...]))


def test_bad_arguments_are_refused():
  for make in LAYERS.values():
    with pytest.raises(ValueError, match="features must be at least 1, got 0"):
      make(0, rngs=nnx.Rngs(0))
  for name in ("householder", "qr", "svd"):
    with pytest.raises(ValueError, match="num_reflections must be at least 1, got 0"):
      LAYERS[name](2, num_reflections=0, rngs=nnx.Rngs(0))
  for name in ("softplus_lu", "upper"):
    with pytest.raises(ValueError, match=r"epsilon must be in \[0, 1\), got 1"):
      LAYERS[name](2, epsilon=1)
