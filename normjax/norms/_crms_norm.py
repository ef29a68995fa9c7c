"""RMS normalization of a zero-mean vector stored without its last entry.

A vector of mean zero is known from all entries but one, so a residual stream of zero mean needs
one channel less ("Pre-RMSNorm and Pre-CRMSNorm Transformers", https://arxiv.org/abs/2305.14858).
There is no scale and no bias, as in the authors' code: fold them into the next linear layer. And
no mask: the missing entry is a function of all the others.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from normjax.norms._affine import check_features
from normjax.norms._arguments import (
  as_floating,
  check_epsilon,
  floating_dtype,
  prepare,
  single_axis,
  statistics_dtype,
)


def compress(x: ArrayLike, *, axis: int = -1) -> Float[Array, "..."]:
  """Drop the last entry of zero-mean vectors.

  x (..., c) with mean zero along `axis` -> x[..., :-1] (..., c - 1).

  Args:
    x: floating vectors whose mean along `axis` is zero; this is not checked.
    axis: the axis of the vectors, at least 2 long.

  Returns:
    The stored entries.

  Raises:
    ValueError: if x is not floating or the axis has fewer than 2 entries.

  Reference:
    Jiang et al., "Pre-RMSNorm and Pre-CRMSNorm Transformers", 2023, arXiv 2305.14858.

  Example:
    >>> compress(jnp.array([1.0, 2.0, -3.0]))
    Array([1., 2.], dtype=float32)
  """
  x = as_floating(x)
  axis = single_axis(axis, x.shape, "compress")
  if x.shape[axis] < 2:
    raise ValueError(f"axis must hold at least 2 entries to drop one, got shape {x.shape}")
  return jax.lax.slice_in_dim(x, 0, x.shape[axis] - 1, axis=axis)


def decompress(x: ArrayLike, *, axis: int = -1) -> Float[Array, "..."]:
  """Append the entry that gives the vectors mean zero.

  x (..., c - 1) -> concatenate(x, -sum(x)) (..., c).

  Args:
    x: the stored entries.
    axis: the axis of the vectors.

  Returns:
    The full vectors, in the dtype of x.

  Raises:
    ValueError: if x is not floating or the axis is empty.

  Reference:
    Jiang et al., "Pre-RMSNorm and Pre-CRMSNorm Transformers", 2023, arXiv 2305.14858.

  Example:
    >>> decompress(jnp.array([1.0, 2.0]))
    Array([ 1.,  2., -3.], dtype=float32)
  """
  x = as_floating(x)
  axis = single_axis(axis, x.shape, "decompress")
  wide = x.astype(statistics_dtype(x))
  missing = -jnp.sum(wide, axis, keepdims=True)
  return jnp.concatenate([x, missing.astype(x.dtype)], axis)


def crms_norm(
  x: Float[Array, "*shape"],
  *,
  axis: int = -1,
  epsilon: float = 1e-6,
  dtype: DTypeLike | None = None,
) -> Float[Array, "*shape"]:
  """Divide compressed zero-mean vectors by the root mean square of the full ones.

  y = x / sqrt((sum(x^2) + sum(x)^2) / c + epsilon), with x (..., c - 1) -> y (..., c - 1). So
  decompress(crms_norm(x)) = rms_norm(decompress(x)).

  Args:
    x: floating input, the first c - 1 entries of vectors of mean zero.
    axis: the axis of the vectors.
    epsilon: added to the mean square. 0 is allowed; a row of zeros then gives NaN.
    dtype: dtype of the output; the default is that of x.

  Returns:
    The normalized vectors, compressed as x.

  Raises:
    ValueError: if x is not floating, stores no entry or epsilon < 0.

  Reference:
    Jiang et al., "Pre-RMSNorm and Pre-CRMSNorm Transformers", 2023, arXiv 2305.14858.

  Example:
    >>> crms_norm(jnp.array([2.0, -2.0, 2.0]), epsilon=0.0)
    Array([ 1., -1.,  1.], dtype=float32)
  """
  x, _ = prepare(x, axis, epsilon)
  axis = single_axis(axis, x.shape, "crms_norm")
  wide = x.astype(statistics_dtype(x))
  missing = jnp.sum(wide, axis, keepdims=True)
  squares = jnp.sum(wide * wide, axis, keepdims=True) + missing * missing
  y = wide * jax.lax.rsqrt(squares / (x.shape[axis] + 1) + epsilon)
  return y.astype(floating_dtype(x.dtype if dtype is None else dtype, "dtype"))


class CRMSNorm(nnx.Module):
  """Divides compressed zero-mean vectors by the root mean square of the full ones.

  y = x / sqrt((sum(x^2) + sum(x)^2) / c + epsilon), with x (..., c - 1): `crms_norm`. It has no
  parameters.

  Args:
    num_features: c, the width of the full vectors; the input has one entry less.
    axis: the axis of the vectors.
    epsilon: added to the mean square.
    dtype: dtype of the output; the default is that of the input.
    rngs: not used; accepted as by every norm.

  Raises:
    ValueError: as `crms_norm`; if num_features < 2, or the input has not num_features - 1 entries.

  Reference:
    Jiang et al., "Pre-RMSNorm and Pre-CRMSNorm Transformers", 2023, arXiv 2305.14858.

  Example:
    >>> norm = CRMSNorm(4, rngs=nnx.Rngs(0))
    >>> norm(jnp.ones((2, 3))).shape
    (2, 3)
  """

  def __init__(
    self,
    num_features: int,
    *,
    axis: int = -1,
    epsilon: float = 1e-6,
    dtype: DTypeLike | None = None,
    rngs: nnx.Rngs | None = None,
  ):
    del rngs
    check_epsilon(epsilon)
    if num_features < 2:
      raise ValueError(f"num_features must be >= 2, one of them is not stored, got {num_features}")
    self.num_features, self.axis = num_features, axis
    self.epsilon, self.dtype = epsilon, dtype

  def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Normalize the compressed `x`."""
    check_features(x, self.num_features - 1, self.axis)
    return crms_norm(x, axis=self.axis, epsilon=self.epsilon, dtype=self.dtype)
