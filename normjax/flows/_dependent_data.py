"""Likelihoods of dependent examples, https://arxiv.org/abs/2209.14933: equicorrelated blocks.

Latents z (n, p) of all data are matrix normal: columns independent, rows with a correlation matrix
C of unit diagonal. Each row alone is still N(0, I), so the density of a new, independent example is
that of the ordinary flow. With A = C^-1, example i of a mini-batch of b contributes

  l_i = -(p/2) log(2 pi) - (p/2) logdet_i - (A_ii z_i.z_i + w sum_{j != i} A_ij z_i.z_j) / 2,

j over the batch, w = (n - 1) / (b - 1), and logdet_i its share of log det C. Over uniform draws
without replacement the mean of l_i is an unbiased estimate of log p(z) / n, with unbiased
gradients; over all data w = 1 and the sum is exact. As in the authors' code, a block shares its
log-determinant among its members. Ours sums over blocks instead of building C^-1.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from normjax.flows._checks import check_above_zero, check_vectors, is_concrete
from normjax.flows._widened import widened

# rho = 1 has no inverse: correlations are clipped to what single precision can tell from it.
MAX_CORRELATION = 1 - 1e-6


def sigmoid_correlation(raw: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
  """Map a real parameter to a correlation (or a weight in [0, 1)) by the logistic function.

  rho = min(sigmoid(raw), 1 - 1e-6), any shape

  Args:
    raw: the parameter; 0 is a correlation of one half.

  Returns:
    rho, in the shape of `raw`.

  Reference:
    Kirchler, Lippert, Kloft, "Training Normalizing Flows from Dependent Data", 2022,
    arXiv 2209.14933.

  Example:
    >>> from normjax import flows
    >>> float(flows.sigmoid_correlation(0.0))
    0.5
  """
  return jnp.minimum(jax.nn.sigmoid(jnp.asarray(raw, float)), MAX_CORRELATION)


def hard_sigmoid_correlation(
  raw: Float[ArrayLike, "..."], *, bound: float = 3.0, margin: float = 0.01
) -> Float[Array, "..."]:
  """Map a real parameter to a correlation (or a weight in [0, 1]) by a clipped line.

  rho = clip(raw / (2 bound) + 1/2, 0, 1 - margin), any shape

  Args:
    raw: the parameter; 0 is a correlation of one half, -bound is none.
    bound: where the line reaches 0 and 1, above 0.
    margin: distance kept from 1; 0 is right for the weight `lam` of a relationship.

  Returns:
    rho, in the shape of `raw`.

  Raises:
    ValueError: if `bound` is not above 0 and finite, or `margin` not in [0, 1).

  Reference:
    Kirchler, Lippert, Kloft, "Training Normalizing Flows from Dependent Data", 2022,
    arXiv 2209.14933.

  Example:
    >>> from normjax import flows
    >>> [round(float(flows.hard_sigmoid_correlation(raw)), 2) for raw in (-4.0, 0.0, 4.0)]
    [0.0, 0.5, 0.99]
  """
  check_above_zero(bound=bound)
  if not 0 <= margin < 1:
    raise ValueError(f"margin must be in [0, 1), got {margin}")
  return jnp.clip(jnp.asarray(raw, float) / (2 * bound) + 0.5, 0, 1 - margin)


def block_log_prob(
  z: Float[Array, "b p"],
  block_id: Int[ArrayLike, "n"],
  rho: Float[ArrayLike, "..."],
  *,
  index: Int[Array, "b"] | None = None,
) -> Float[Array, "b"]:
  """Return what each latent contributes to the log-density of data in equicorrelated blocks.

  l_i as in a mini-batch of b, with C = (1 - rho) I + rho 1 1^T in a block of m examples:
  A_ii = (1 + (m - 2) rho) / D, A_ij = -rho / D, D = (1 - rho)(1 + (m - 1) rho),
  logdet_i = [log(1 + (m - 1) rho) + (m - 1) log(1 - rho)] / m

  The sum over all data is log p(z); add the flow's log-determinants for that of x. Time is linear
  in n, b and the number of blocks. Draw mini-batches uniformly: drawing whole blocks makes the
  estimate wrong, since w no longer fits.

  Args:
    z: latents (b, p) of the batch, minus the location of the base.
    block_id: block 0, 1, ... of each of all n examples. Example i has no relation to others unless
      they share its number.
    rho: correlation within blocks, in [0, 1): a scalar, or one per block (k,), of which those
      without members are ignored. Values closer to 1 than 1e-6 are clipped.
    index: which of the n examples the rows of z are, all different; None: all, in order.

  Returns:
    l (b,), float32 or wider.

  Raises:
    ValueError: if shapes or dtypes do not fit, an index is out of range or stands there twice, rho
      is out of range (if these can be looked at), or the batch is a single example of related ones.

  Reference:
    Kirchler, Lippert, Kloft, "Training Normalizing Flows from Dependent Data", 2022,
    arXiv 2209.14933.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> z = jnp.array([[1.0], [1.0], [-2.0]])
    >>> log_prob = flows.block_log_prob(z, jnp.array([0, 0, 1]), 0.5).sum()
    >>> dense = jnp.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> normal = jax.scipy.stats.multivariate_normal.logpdf(z[:, 0], jnp.zeros(3), dense)
    >>> bool(abs(log_prob - normal) < 1e-5)
    True
  """
  z = check_latents(z)
  block_id, rho = jnp.asarray(block_id), jnp.asarray(rho, z.dtype)
  if block_id.ndim != 1 or not jnp.issubdtype(block_id.dtype, jnp.integer):
    raise ValueError(f"block_id must be ints (n,), got {block_id.dtype} {block_id.shape}")
  if rho.ndim > 1:
    raise ValueError(f"rho must be a scalar or (k,), one per block, got shape {rho.shape}")
  # NumPy looks at what is known while jit traces the rest.
  if is_concrete(rho) and not np.all((np.asarray(rho) >= 0) & (np.asarray(rho) < 1)):
    raise ValueError(f"rho must be in [0, 1), got {rho}")
  n, num_blocks = block_id.size, (rho.size if rho.ndim else block_id.size)
  alone = False
  if is_concrete(block_id):
    known = np.asarray(block_id)
    if not np.all((known >= 0) & (known < num_blocks)):
      raise ValueError(
        f"block_id must be in [0, {num_blocks}) (rho's length, or n under one rho), got {block_id}"
      )
    alone = np.unique(known).size == n
  weight = batch_weight(z, n, index, unrelated=alone)

  sizes = jax.ops.segment_sum(jnp.ones_like(block_id), block_id, num_blocks)
  members = block_id if index is None else block_id[index]  # (b,)
  rho = jnp.clip(jnp.broadcast_to(rho, (num_blocks,))[members], 0, MAX_CORRELATION)
  m = sizes[members].astype(z.dtype)
  log_det = (jnp.log1p((m - 1) * rho) + (m - 1) * jnp.log1p(-rho)) / m
  scale = (1 - rho) * (1 + (m - 1) * rho)  # D
  diagonal = jnp.where(m == 1, 1, (1 + (m - 2) * rho) / scale)
  off_diagonal = jnp.where(m == 1, 0, -rho / scale)
  squares = jnp.sum(z**2, axis=1)
  sums = jax.ops.segment_sum(z, members, num_blocks)[members]
  products = jnp.sum(z * sums, axis=1) - squares  # sum_{j != i} z_i.z_j within the block
  quadratic = diagonal * squares + weight * off_diagonal * products
  return -0.5 * (z.shape[1] * (math.log(2 * math.pi) + log_det) + quadratic)


def check_latents(z) -> Array:
  """Return latents (b, p) in float32 or wider."""
  z = jnp.asarray(z)
  check_vectors("z", z)
  return widened(z)


def batch_weight(z: Array, n: int, index: Array | None, *, unrelated: bool) -> float:
  """Return w = (n - 1) / (b - 1) of a batch `z` of `n` examples after a check of its indices."""
  b = z.shape[0]
  if index is None:
    if b != n:
      raise ValueError(f"z must have all {n} rows without an index, got {b}")
    return 1.0
  if index.shape != (b,) or not jnp.issubdtype(index.dtype, jnp.integer):
    raise ValueError(
      f"index must be ints ({b},), one per row of z, got {index.dtype} {index.shape}"
    )
  if b > n:
    raise ValueError(f"index must hold different examples, got {b} of {n}")
  if is_concrete(index):
    if not np.all((np.asarray(index) >= 0) & (np.asarray(index) < n)):
      raise ValueError(f"index must be in [0, {n}), got {index}")
    if np.unique(index).size < b:
      raise ValueError(f"index must hold different examples, got {index}")
  if b > 1 or n == 1:
    return (n - 1) / max(b - 1, 1)
  if not unrelated:
    raise ValueError("z must have at least 2 rows: one alone tells nothing about its relations")
  return 0.0
