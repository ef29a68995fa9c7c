"""Likelihoods of dependent examples, https://arxiv.org/abs/2209.14933: known relationships.

The correlation of the latents' rows is C = lam I + (1 - lam) G with a known G, such as the kinship
of people. One eigendecomposition of G serves every lam. The authors keep C^-1 as a dense matrix;
here products with it go through the eigenvectors, which gives lam a gradient everywhere.
"""

import math
from typing import cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from normjax.flows._checks import is_concrete
from normjax.flows._dependent_data import batch_weight, check_latents


def decompose_relationship(
  matrix: Float[ArrayLike, "n n"],
) -> tuple[Float[Array, "n"], Float[Array, "n n"]]:
  """Decompose a relationship matrix, once for all uses of it.

  G = Q diag(e) Q^T; rounding errors down to e = -1e-6 are set to 0

  Args:
    matrix: G (n, n), symmetric, with a unit diagonal and no negative eigenvalue. It is decomposed
      in float64 by NumPy, outside of any jit.

  Returns:
    `(eigenvalues, eigenvectors)`: e (n,) ascending, none below 0, and Q (n, n) with the vectors in
    columns, in the default float dtype of JAX.

  Raises:
    ValueError: if G is not square, not symmetric, without a unit diagonal, or indefinite.

  Reference:
    Kirchler, Lippert, Kloft, "Training Normalizing Flows from Dependent Data", 2022,
    arXiv 2209.14933.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> eigenvalues, _ = flows.decompose_relationship(jnp.array([[1.0, 0.5], [0.5, 1.0]]))
    >>> eigenvalues
    Array([0.5, 1.5], dtype=float32)
  """
  dense = np.asarray(matrix, np.float64)
  if dense.ndim != 2 or dense.shape[0] != dense.shape[1] or not dense.size:
    raise ValueError(f"matrix must be square, got shape {dense.shape}")
  if not np.allclose(dense, dense.T, rtol=0, atol=1e-6):
    raise ValueError("matrix must be symmetric, got differences from its transpose above 1e-6")
  if not np.allclose(np.diag(dense), 1, rtol=0, atol=1e-6):
    raise ValueError(f"matrix must have a unit diagonal, got {np.diag(dense)}")
  eigenvalues, eigenvectors = np.linalg.eigh(dense)
  if eigenvalues[0] < -1e-6:
    raise ValueError(f"matrix must have no negative eigenvalue, got {eigenvalues[0]}")
  as_float = lambda array: jnp.asarray(array, float)
  return as_float(np.maximum(eigenvalues, 0)), as_float(eigenvectors)


def relationship_log_prob(
  z: Float[Array, "b p"],
  relationship: tuple[Float[Array, "n"], Float[Array, "n n"]],
  lam: Float[ArrayLike, ""],
  *,
  index: Int[Array, "b"] | None = None,
) -> Float[Array, "b"]:
  """Return what each latent contributes to the log-density of data of known relationships.

  l_i = -(p/2) log(2 pi) - p logdet(C) / (2 n) - (A_ii z_i.z_i + w sum_{j != i} A_ij z_i.z_j) / 2,
  C = lam I + (1 - lam) G,  A = C^-1,  j over the batch,  w = (n - 1) / (b - 1)

  The sum over all data is log p(z), as for `block_log_prob`; so are the rules for mini-batches.

  Args:
    z: latents (b, p) of the batch, minus the location of the base.
    relationship: e (n,) and Q (n, n) of G, as `decompose_relationship` returns them.
    lam: weight of what each example has for itself, in [0, 1]; above 0 if G is singular. 1 makes
      the examples independent.
    index: which of the n examples the rows of z are, all different; None: all, in order.

  Returns:
    l (b,), float32 or wider.

  Raises:
    ValueError: if shapes or dtypes do not fit, an index is out of range or stands there twice, lam
      is out of range or 0 where G is singular (if these can be looked at), or the batch is a single
      example.

  Reference:
    Kirchler, Lippert, Kloft, "Training Normalizing Flows from Dependent Data", 2022,
    arXiv 2209.14933.

  Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> relationship = flows.decompose_relationship(jnp.array([[1.0, 0.5], [0.5, 1.0]]))
    >>> one = flows.relationship_log_prob(jnp.array([[1.0], [2.0]]), relationship, 1.0)
    >>> bool(jnp.allclose(one, jax.scipy.stats.norm.logpdf(jnp.array([1.0, 2.0]))))
    True
  """
  z = check_latents(z)
  eigenvalues, eigenvectors = relationship
  n = eigenvalues.size
  if eigenvectors.shape != (n, n):
    raise ValueError(
      f"relationship must have shapes {(n,)} and {(n, n)}, got {eigenvalues.shape} and "
      f"{eigenvectors.shape}"
    )
  weight = batch_weight(z, n, index, unrelated=False)
  spectrum = _spectrum(eigenvalues, lam, z.dtype)
  vectors = eigenvectors.astype(z.dtype)
  rows = vectors if index is None else vectors[index]  # (b, n)
  weighted = rows / spectrum[None]
  diagonal = jnp.sum(weighted * rows, axis=1)
  squares = jnp.sum(z**2, axis=1)
  products = jnp.sum(z * (weighted @ (rows.T @ z)), axis=1) - diagonal * squares
  log_det = jnp.sum(jnp.log(spectrum)) / n
  quadratic = diagonal * squares + weight * products
  return -0.5 * (z.shape[1] * (math.log(2 * math.pi) + log_det) + quadratic)


def rotated_log_prob(
  rotated: Float[Array, "n p"], eigenvalues: Float[Array, "n"], lam: Float[ArrayLike, ""]
) -> Float[Array, ""]:
  """Return the joint log-density of latents as a cheap function of the weight `lam`.

  log p = -(n p / 2) log(2 pi) - (p/2) sum_k log c_k - sum_k |R_k|^2 / (2 c_k),
  c = lam + (1 - lam) e,  R (n, p) = Q^T z

  It is the objective of the stage that learns `lam`: the flow stands still, R is computed once.

  Args:
    rotated: R (n, p) = Q^T z of the latents of all data.
    eigenvalues: e (n,).
    lam: weight of what each example has for itself, in [0, 1].

  Returns:
    log p, a scalar: the sum of `relationship_log_prob` over all data.

  Raises:
    ValueError: if shapes do not fit, or lam is out of range, or 0 where an eigenvalue is (if they
      can be looked at).

  Reference:
    Kirchler, Lippert, Kloft, "Training Normalizing Flows from Dependent Data", 2022,
    arXiv 2209.14933.

  Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> eigenvalues, vectors = flows.decompose_relationship(jnp.array([[1.0, 0.9], [0.9, 1.0]]))
    >>> rotated = vectors.T @ jnp.array([[2.0], [2.0]])  # they look related
    >>> bool(jax.grad(flows.rotated_log_prob, 2)(rotated, eigenvalues, 0.5) < 0)
    True
  """
  rotated = check_latents(rotated)
  if eigenvalues.shape != rotated.shape[:1]:
    raise ValueError(
      f"rotated must have a row per eigenvalue {eigenvalues.shape}, got {rotated.shape}"
    )
  spectrum = _spectrum(eigenvalues, lam, rotated.dtype)
  quadratic = jnp.sum(jnp.sum(rotated**2, axis=1) / spectrum)
  log_det = jnp.sum(jnp.log(spectrum))
  return -0.5 * (rotated.size * math.log(2 * math.pi) + rotated.shape[1] * log_det + quadratic)


def _spectrum(eigenvalues, lam, dtype) -> Float[Array, "n"]:
  """Return the eigenvalues of C."""
  lam = jnp.asarray(lam, dtype)
  if lam.ndim:
    raise ValueError(f"lam must be a scalar, got shape {lam.shape}")
  if is_concrete(lam) and not 0 <= cast(float, lam) <= 1:
    raise ValueError(f"lam must be in [0, 1], got {lam}")
  spectrum = lam + (1 - lam) * eigenvalues.astype(dtype)
  if is_concrete(spectrum) and not np.all(spectrum > 0):
    raise ValueError(f"lam must be above 0, since the relationship is singular, got {lam}")
  return spectrum
