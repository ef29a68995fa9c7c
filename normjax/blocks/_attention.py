"""Softmax attention for `nnx.MultiHeadAttention` that keeps float64 and low-precision inputs right.

flax's default calls `jax.nn.dot_product_attention`, whose softmax is float32 even for float64 inputs.
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
  """
  wide = jnp.promote_types(query.dtype, jnp.float32)
  query = query / jnp.sqrt(query.shape[-1]).astype(query.dtype)
  scores = jnp.einsum("bnhd,bmhd->bhnm", query, key, preferred_element_type=wide)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  return jnp.einsum("bhnm,bmhd->bnhd", weights, value)
