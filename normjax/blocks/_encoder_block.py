"""The pre-norm transformer encoder block.

Initial values are the Vision Transformer's (Dosovitskiy et al., "An Image is Worth 16x16 Words",
2020, arXiv 2010.11929): Xavier-uniform kernels, zero attention biases, MLP biases N(0, 1e-6).
"""

import inspect
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from normjax import norms
from normjax.blocks._attention import softmax_attention
from normjax.blocks._dot_general import dot_general

_xavier = nnx.initializers.xavier_uniform()

# Differentiated from its argument alone: of the several arrays of the MLP's width that its
# derivative goes through, which are half of what a block keeps, none is stored.
_gelu = jax.checkpoint(partial(jax.nn.gelu, approximate=True))


class EncoderBlock(nnx.Module):
  """Adds attention and an MLP to the residual stream, each after a norm, LayerNorm by default.

  x <- x + MHA(LN(x));  x <- x + W2 gelu(W1 LN(x) + b1) + b2,  x (b, n, features), gelu by tanh.

  Args:
    features: width of the residual stream.
    num_heads: attention heads; must divide `features`.
    mlp_features: hidden width of the MLP, 4 * features if None.
    dtype: dtype of the computation; None promotes input and parameters.
    param_dtype: dtype of the parameters.
    norm: name of the norm, a key of `normjax.norms.NAMES`.
    norm_options: further arguments of that norm.
    rngs: the stream `params`.

  Raises:
    ValueError: if `num_heads` does not divide `features`, or there is no such norm or option.

  Reference:
    Xiong et al., "On Layer Normalization in the Transformer Architecture", 2020, arXiv 2002.04745.

  Example:
    >>> import jax.numpy as jnp
    >>> block = EncoderBlock(8, num_heads=2, rngs=nnx.Rngs(0))
    >>> block(jnp.ones((2, 5, 8))).shape
    (2, 5, 8)
  """

  def __init__(
    self,
    features: int,
    num_heads: int,
    *,
    mlp_features: int | None = None,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = "float32",
    norm: str = "layer_norm",
    norm_options: dict[str, Any] | None = None,
    rngs: nnx.Rngs,
  ):
    if features % num_heads:
      raise ValueError(f"num_heads must divide features {features}, got {num_heads}")
    hidden = 4 * features if mlp_features is None else mlp_features
    options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
    dense = partial(
      nnx.Linear,
      kernel_init=_xavier,
      bias_init=nnx.initializers.normal(1e-6),
      dot_general=dot_general,
      **options,
    )
    make_norm = partial(_norm, norm, features, dtype, param_dtype, norm_options or {}, rngs)
    self.attention_norm = make_norm()
    self.attention = nnx.MultiHeadAttention(
      num_heads,
      features,
      kernel_init=_xavier,
      attention_fn=softmax_attention,
      qkv_dot_general=dot_general,
      out_dot_general=dot_general,
      decode=False,
      **options,
    )
    self.mlp_norm = make_norm()
    self.mlp_in = dense(features, hidden)
    self.mlp_out = dense(hidden, features)

  def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
    """Return the updated residual stream, (b, n, c)."""
    x = x + self.attention(self.attention_norm(x))
    return x + self.mlp_out(_gelu(self.mlp_in(self.mlp_norm(x))))


def _norm(
  name: str,
  features: int,
  dtype: DTypeLike | None,
  param_dtype: DTypeLike,
  options: dict[str, Any],
  rngs: nnx.Rngs,
) -> nnx.Module:
  """Builds a norm; layers without parameters or without a dtype of their own get none."""
  known = inspect.signature(norms.NAMES[name].__init__).parameters if name in norms.NAMES else ()
  dtypes = {"dtype": dtype, "param_dtype": param_dtype}
  return norms.make(
    name, features, rngs=rngs, **{k: v for k, v in dtypes.items() if k in known} | options
  )
