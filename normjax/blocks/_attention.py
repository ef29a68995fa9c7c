"""Softmax attention for `nnx.MultiHeadAttention`, right in float64 and in low precision.

flax calls `jax.nn.dot_product_attention`, whose softmax is float32 for float64 inputs too.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def softmax_attention(
  query: Float[Array, "b n h d"],
  key: Float[Array, "b m h d"],
  value: Float[Array, "b m h d"],
  mask: Bool[Array, "#b #h #n #m"] | None = None,
  **_,
) -> Float[Array, "b n h d"]:
  """Attend with softmax(q k^T / sqrt(d)) v, the scores in float32 or wider.

  Args:
    query: (b, n, h, d).
    key: (b, m, h, d).
    value: (b, m, h, d).
    mask: booleans of four axes, each of the scores' size or 1; True where a query sees a key. A
      query that sees none attends to all alike.
    **_: flax's other attention options; dropout is not used by the blocks here.

  Returns:
    (b, n, h, d) in the dtype of `value`.

  Raises:
    ValueError: if `mask` is not boolean (numbers would be ambiguous: added or multiplied).

  Example:
    >>> x = jnp.ones((2, 5, 3, 4))
    >>> softmax_attention(x, x, x).shape
    (2, 5, 3, 4)
  """
  if mask is not None and mask.dtype != bool:
    raise ValueError(f"mask must be boolean, True where a query sees a key, got {mask.dtype}")
  wide = jnp.promote_types(query.dtype, jnp.float32)
  query = query / jnp.sqrt(query.shape[-1]).astype(query.dtype)
  scores = jnp.einsum("bnhd,bmhd->bhnm", query, key, preferred_element_type=wide)
  if mask is not None:
    scores = jnp.where(mask, scores, jnp.finfo(wide).min)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  return jnp.einsum("bhnm,bmhd->bnhd", weights, value)
