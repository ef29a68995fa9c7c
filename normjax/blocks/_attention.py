"""Softmax attention for `nnx.MultiHeadAttention`, right in float64 and in low precision.

flax calls `jax.nn.dot_product_attention`, whose softmax is float32 for float64 inputs too.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def softmax_attention(
  query: Float[Array, "b n h d"],
  key: Float[Array, "b m h d"],
  value: Float[Array, "b m h d"],
  **_,
) -> Float[Array, "b n h d"]:
  """Attend with softmax(q k^T / sqrt(d)) v, the scores in float32 or wider.

  Args:
    query: (b, n, h, d).
    key: (b, m, h, d).
    value: (b, m, h, d).
    **_: flax's other attention options; masks and dropout are not used by the blocks here.

  Returns:
    (b, n, h, d) in the dtype of `value`.

  Example:
    >>> x = jnp.ones((2, 5, 3, 4))
    >>> softmax_attention(x, x, x).shape
    (2, 5, 3, 4)
  """
  wide = jnp.promote_types(query.dtype, jnp.float32)
  query = query / jnp.sqrt(query.shape[-1]).astype(query.dtype)
  scores = jnp.einsum("bnhd,bmhd->bhnm", query, key, preferred_element_type=wide)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  return jnp.einsum("bhnm,bmhd->bnhd", weights, value)
