"""Likelihoods of dependent data: exact joints, unbiased mini-batches, and their toy data."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from normjax import flows

BLOCKS = jnp.array([0, 1, 0, 2, 0, 1])
RHO = jnp.array([0.7, 0.3, 0.5])


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def _latents(n=6, p=2):
  return jnp.asarray(np.random.default_rng(0).standard_normal((n, p)))


def _relationship():
  root = np.random.default_rng(1).standard_normal((6, 9))
  gram = root @ root.T
  return gram / np.sqrt(np.outer(np.diag(gram), np.diag(gram)))


def _normal(z, cov):
  mean = np.zeros(len(z))
  return sum(scipy.stats.multivariate_normal.logpdf(column, mean, cov) for column in np.array(z.T))


def _block_cov(rho=RHO):
  same = BLOCKS[:, None] == BLOCKS[None]
  return jnp.where(same, rho[BLOCKS][:, None], 0) * (1 - jnp.eye(6)) + jnp.eye(6)


@pytest.mark.usefixtures("x64")
def test_joints_are_dense_normal_densities():
  z, rho = _latents(), RHO.astype(float)
  joint = jnp.sum(flows.block_log_prob(z, BLOCKS, rho))
  np.testing.assert_allclose(joint, _normal(z, _block_cov(rho)), rtol=1e-12)
  matrix = _relationship()
  relationship = flows.decompose_relationship(matrix)
  for lam in (0.0, 0.3, 1.0):
    expected = _normal(z, lam * jnp.eye(6) + (1 - lam) * matrix)
    joint = jnp.sum(flows.relationship_log_prob(z, relationship, lam))
    np.testing.assert_allclose(joint, expected, rtol=1e-10)
    rotated = relationship[1].T @ z
    np.testing.assert_allclose(
      flows.rotated_log_prob(rotated, relationship[0], lam), expected, rtol=1e-10
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["block", "relationship"])
def test_mean_over_all_batches_is_exact_with_its_gradients(kind):
  z, relationship = _latents(), flows.decompose_relationship(_relationship())
  parameter = RHO.astype(float) if kind == "block" else jnp.asarray(0.4)

  def log_prob(z, parameter, index=None):
    if kind == "block":
      return flows.block_log_prob(z, BLOCKS, parameter, index=index)
    return flows.relationship_log_prob(z, relationship, parameter, index=index)

  batches = jnp.array(list(itertools.combinations(range(6), 3)))
  one = lambda z, parameter, index: jnp.mean(log_prob(z[index], parameter, index))
  estimate = lambda z, parameter: jnp.mean(
    jax.vmap(one, in_axes=(None, None, 0))(z, parameter, batches)
  )
  exact = lambda z, parameter: jnp.mean(log_prob(z, parameter))
  both = [jax.jit(jax.value_and_grad(f, (0, 1)))(z, parameter) for f in (estimate, exact)]
  for actual, expected in zip(*map(jax.tree.leaves, both), strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_without_dependence_it_is_the_ordinary_likelihood():
  z = _latents()
  expected = flows.StandardNormal((2,)).log_prob(z)
  relationship = flows.decompose_relationship(_relationship())
  for index in (None, jnp.array([4, 1, 0])):
    rows = slice(None) if index is None else index
    blocks, known = jax.jit(
      lambda z, index: (
        flows.block_log_prob(z, BLOCKS, 0.0, index=index),
        flows.relationship_log_prob(z, relationship, 1.0, index=index),
      )
    )(z[rows], index)
    np.testing.assert_allclose(blocks, expected[rows], rtol=1e-12)
    np.testing.assert_allclose(known, expected[rows], rtol=1e-12)
  alone = flows.block_log_prob(z[2:3], jnp.arange(6), 0.9, index=jnp.array([2]))
  np.testing.assert_allclose(alone, expected[2:3], rtol=1e-12)


def test_examples_may_be_in_any_order():
  z, order = _latents(), jnp.array([3, 0, 5, 1, 2, 4])
  before = flows.block_log_prob(z, BLOCKS, RHO)
  after = flows.block_log_prob(z[order], BLOCKS[order], RHO)
  np.testing.assert_allclose(after, before[order], rtol=1e-5)


def test_one_rho_is_shared_and_extremes_stay_finite():
  z = _latents()
  shared = flows.block_log_prob(z, BLOCKS, 0.6)
  np.testing.assert_allclose(shared, flows.block_log_prob(z, BLOCKS, jnp.full(3, 0.6)), rtol=1e-6)
  for raw in (-200.0, 200.0):
    loss = lambda raw: jnp.sum(flows.block_log_prob(z, BLOCKS, flows.sigmoid_correlation(raw)))
    value, gradient = jax.jit(jax.value_and_grad(loss))(raw)
    assert np.isfinite(value)
    assert np.isfinite(gradient)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"index": jnp.array([0, 0])}, "index must hold different examples"),
    ({"index": jnp.array([0, 6])}, r"index must be in \[0, 6\)"),
    ({"index": jnp.array([0])}, "index must be ints"),
    ({"rho": 1.0}, r"rho must be in \[0, 1\)"),
    ({"rho": -0.1}, r"rho must be in \[0, 1\)"),
    ({"rho": jnp.array([0.1, 0.2])}, r"block_id must be in \[0, 2\)"),
    ({"block_id": jnp.ones(6)}, "block_id must be ints"),
    ({"index": None}, "z must have all 6 rows"),
    ({"z": jnp.ones((1, 2)), "index": jnp.array([0])}, "z must have at least 2 rows"),
    ({"z": jnp.ones((2,))}, "z must have shape"),
  ],
)
def test_bad_arguments_are_refused(options, message):
  given = {"z": jnp.ones((2, 2)), "block_id": BLOCKS, "rho": 0.5, "index": jnp.array([0, 1])}
  with pytest.raises(ValueError, match=message):
    flows.block_log_prob(**given | options)


@pytest.mark.parametrize(
  ("matrix", "message"),
  [
    (np.ones((2, 3)), "square"),
    ([[1.0, 0.5], [0.4, 1.0]], "symmetric"),
    ([[1.0, 0.5], [0.5, 2.0]], "unit diagonal"),
    ([[1.0, 1.5], [1.5, 1.0]], "no negative eigenvalue"),
  ],
)
def test_bad_relationships_are_refused(matrix, message):
  with pytest.raises(ValueError, match=f"matrix must .*{message}"):
    flows.decompose_relationship(matrix)


def test_bad_weights_are_refused():
  relationship = flows.decompose_relationship(np.eye(2))
  for lam in (-0.1, 1.1):
    with pytest.raises(ValueError, match=r"lam must be in \[0, 1\]"):
      flows.relationship_log_prob(jnp.ones((2, 1)), relationship, lam)
  with pytest.raises(ValueError, match="a row per eigenvalue"):
    flows.rotated_log_prob(jnp.ones((3, 1)), relationship[0], 0.5)
  with pytest.raises(ValueError, match=r"relationship must have shapes \(2,\) and \(2, 2\), got"):
    flows.relationship_log_prob(jnp.ones((2, 1)), (relationship[0], jnp.eye(3)), 0.5)
  twins = flows.decompose_relationship(np.ones((2, 2)))
  with pytest.raises(ValueError, match="lam must be above 0, since the relationship is singular"):
    flows.relationship_log_prob(jnp.ones((2, 1)), twins, 0.0)


def test_blocks_and_normals_have_their_correlations():
  draw = jax.jit(lambda key: flows.dependent_blocks(key, 500, max_size=50))
  block_id, rho = draw(jax.random.key(0))
  sizes = np.bincount(block_id)
  assert block_id.shape == rho.shape == (500,)
  assert np.all(np.diff(block_id) >= 0)
  assert np.all(sizes >= 1)
  assert sizes[:-1].max() == 50  # a heavy tail reaches the limit
  assert 0.5 <= rho.min() < 0.55 < 0.95 < rho.max() < 0.99
  pairs, rho = jnp.repeat(jnp.arange(20_000), 2), jnp.full(20_000, 0.8)
  z = jax.jit(flows.dependent_normals)(jax.random.key(1), pairs, rho)
  z = np.asarray(z).reshape(-1, 2, 2)
  np.testing.assert_allclose(np.mean(z**2, axis=0), 1, atol=0.05)
  np.testing.assert_allclose(np.mean(z[:, 0] * z[:, 1], axis=0), 0.8, atol=0.04)
  np.testing.assert_allclose(np.mean(z[:, 0, 0] * z[:, 1, 1]), 0, atol=0.04)


@pytest.mark.parametrize(
  ("name", "log_volume"),
  [("abs", -1.5), ("crescent", -1), ("crescent_cubed", 0), ("sign", -1.5), ("sine", -1)],
)
def test_warps_change_volume_by_a_constant(name, log_volume):
  z = _latents().astype(jnp.float32)
  jacobian = jax.vmap(jax.jacfwd(lambda z: flows.DEPENDENT_WARPS[name](z[None])[0]))(z)
  np.testing.assert_allclose(np.linalg.slogdet(jacobian)[1], log_volume, atol=1e-5)
