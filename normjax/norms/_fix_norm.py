"""FixNorm: word embeddings of unit length (https://arxiv.org/abs/1910.05895).

The rows of the table are normalized whenever they are used, at the input and in the tied output
alike, and the gradient passes through the normalization: it is orthogonal to the rows.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from normjax.norms._affine import make_param, new_param, value_or
from normjax.norms._arguments import (
  as_floating,
  check_epsilon,
  floating_dtype,
  statistics_dtype,
)
from normjax.norms._l2_normalize import l2_normalize


def fix_norm(
  table: Float[Array, "v d"], *, epsilon: float = 1e-12, dtype: DTypeLike | None = None
) -> Float[Array, "v d"]:
  """Give every row of an embedding table length 1.

  E = table / max(||row||_2, epsilon), (v, d) -> (v, d).

  Args:
    table: the embeddings, one row per token.
    epsilon: smallest divisor. 0 is allowed; a row of zeros then gives NaN.
    dtype: dtype of the output; the default is that of the table.

  Returns:
    The table of unit rows.

  Raises:
    ValueError: if the table is not a floating matrix or epsilon < 0.

  Reference:
    Nguyen and Salazar, "Transformers without Tears: Improving the Normalization of
    Self-Attention", 2019, arXiv 1910.05895.

  Example:
    >>> print(fix_norm(jnp.array([[3.0, 4.0], [0.0, 2.0]])))
    [[0.6 0.8]
     [0.  1. ]]
  """
  table = as_floating(table, "table")
  if table.ndim != 2:
    raise ValueError(f"table must have shape (tokens, features), got {table.shape}")
  return l2_normalize(table, epsilon=epsilon, dtype=dtype)


def fix_norm_embed(
  table: Float[Array, "v d"],
  tokens: Int[Array, "*batch"],
  *,
  epsilon: float = 1e-12,
  dtype: DTypeLike | None = None,
) -> Float[Array, "*batch d"]:
  """Look tokens up in a table of normalized embeddings.

  y = sqrt(d) fix_norm(table)[tokens], (...) -> (..., d): rows of root mean square 1.

  Args:
    table: the embeddings, not normalized.
    tokens: integer indices; one that is not in the table gives NaN.
    epsilon: smallest divisor.
    dtype: dtype of the output; the default is that of the table.

  Returns:
    The embeddings of the tokens.

  Raises:
    ValueError: if tokens are not integers, or as `fix_norm`.

  Reference:
    Nguyen and Salazar, "Transformers without Tears: Improving the Normalization of
    Self-Attention", 2019, arXiv 1910.05895.

  Example:
    >>> print(fix_norm_embed(jnp.array([[3.0, 3.0], [0.0, 2.0]]), jnp.array([0, 0])))
    [[1. 1.]
     [1. 1.]]
  """
  table = as_floating(table, "table")
  tokens = jnp.asarray(tokens)
  if not jnp.issubdtype(tokens.dtype, jnp.integer):
    raise ValueError(f"tokens must be integers, got {tokens.dtype}")
  rows = fix_norm(table, epsilon=epsilon, dtype=statistics_dtype(table))
  rows = jnp.take(rows, tokens, axis=0) * table.shape[1] ** 0.5  # (*batch, d)
  return rows.astype(floating_dtype(table.dtype if dtype is None else dtype, "dtype"))


def fix_norm_logits(
  table: Float[Array, "v d"],
  features: Float[Array, "*batch d"],
  bias: ArrayLike | None = None,
  *,
  epsilon: float = 1e-12,
  dtype: DTypeLike | None = None,
) -> Float[Array, "*batch v"]:
  """Score features against a table of normalized embeddings.

  y = features fix_norm(table)^T + bias, (..., d) -> (..., v).

  Args:
    table: the embeddings, not normalized.
    features: floating features as wide as the table.
    bias: one number per token, (v,). None: no bias.
    epsilon: smallest divisor.
    dtype: dtype of the output; the default is that of the features.

  Returns:
    The logits of every token.

  Raises:
    ValueError: if the features or the bias do not fit the table, or as `fix_norm`.

  Reference:
    Nguyen and Salazar, "Transformers without Tears: Improving the Normalization of
    Self-Attention", 2019, arXiv 1910.05895.

  Example:
    >>> print(fix_norm_logits(jnp.array([[3.0, 0.0], [0.0, 2.0]]), jnp.array([5.0, 6.0])))
    [5. 6.]
  """
  features = as_floating(features, "features")
  wide = statistics_dtype(features)
  rows = fix_norm(table, epsilon=epsilon, dtype=features.dtype)
  if features.shape[-1:] != rows.shape[1:]:
    raise ValueError(f"features must have {rows.shape[1]} entries, got shape {features.shape}")
  logits = jnp.einsum("...d,vd->...v", features, rows, preferred_element_type=wide)
  if bias is not None:
    if jnp.shape(bias) != rows.shape[:1]:
      raise ValueError(f"bias must have shape {rows.shape[:1]}, got {jnp.shape(bias)}")
    logits = logits + jnp.reshape(bias, (1,) * (logits.ndim - 1) + (-1,)).astype(wide)
  return logits.astype(floating_dtype(features.dtype if dtype is None else dtype, "dtype"))


def _small_uniform(key, shape, dtype=None, out_sharding=None):
  """Draw from U(-0.01, 0.01), as the authors do."""
  dtype = jnp.float32 if dtype is None else dtype
  return jax.random.uniform(key, shape, dtype, -0.01, 0.01, out_sharding=out_sharding)


class FixNorm(nnx.Module):
  """Embeds tokens by rows of unit length, and scores features against the same rows.

  y = sqrt(d) E[tokens] and logits = features E^T + bias with E = fix_norm(embedding). It stands in
  for `nnx.Embed`, and `attend` for its method of that name.

  Args:
    num_embeddings: number of tokens.
    features: width d of the embeddings.
    epsilon: smallest divisor.
    use_bias: whether the logits have a `bias` (zeros at first).
    dtype: dtype of the outputs; the default is that of the table and of the features.
    param_dtype: dtype of the parameters.
    embedding_init: initializer of `embedding`; the default is U(-0.01, 0.01).
    bias_init: initializer of `bias`.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: as `fix_norm_embed` and `fix_norm_logits`.

  Reference:
    Nguyen and Salazar, "Transformers without Tears: Improving the Normalization of
    Self-Attention", 2019, arXiv 1910.05895.

  Example:
    >>> embed = FixNorm(10, 4, rngs=nnx.Rngs(0))
    >>> embed.attend(embed(jnp.array([7]))).argmax()
    Array(7, dtype=int32)
  """

  def __init__(
    self,
    num_embeddings: int,
    features: int,
    *,
    epsilon: float = 1e-12,
    use_bias: bool = True,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    embedding_init: Initializer = _small_uniform,
    bias_init: Initializer = nnx.initializers.zeros,
    rngs: nnx.Rngs,
  ):
    check_epsilon(epsilon)
    self.num_embeddings, self.features = num_embeddings, features
    self.epsilon, self.dtype = epsilon, dtype
    shape = (num_embeddings, features)
    self.embedding = new_param(embedding_init, shape, param_dtype, rngs)
    self.bias = make_param(use_bias, bias_init, num_embeddings, param_dtype, rngs)

  def __call__(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch d"]:
    """Embed the tokens."""
    return fix_norm_embed(self.embedding[...], tokens, epsilon=self.epsilon, dtype=self.dtype)

  def attend(self, features: Float[Array, "*batch d"]) -> Float[Array, "*batch v"]:
    """Return the logits of the features."""
    bias = value_or(None, self.bias)
    return fix_norm_logits(
      self.embedding[...], features, bias, epsilon=self.epsilon, dtype=self.dtype
    )
