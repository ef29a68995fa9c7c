"""The causal transformer of TarFlow: all tokens at once, or one by one with a cache.

Both directions of an autoregressive flow need the same function. `forward` knows every token and
takes them in parallel under a causal mask; `inverse` makes them one after the other, and keeps the
keys and values of those that it has, so that a token costs one row of attention and no mask hides
anything. The block is not `blocks.EncoderBlock`: initial values, the exact GELU and the cache
differ.
"""

from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from normjax.blocks import Repeat, dot_general, softmax_attention
from normjax.norms import LayerNorm

# Differentiated from its argument alone, like that of `blocks.EncoderBlock`.
_gelu = jax.checkpoint(partial(jax.nn.gelu, approximate=False))

# Keys and values (depth, b, n, heads, head_dim) of the tokens seen so far.
Cache = tuple[Array, Array]


def uniform_linear(
  in_features: int, out_features: int, *, dtype: DTypeLike | None, param_dtype, rngs: nnx.Rngs
) -> nnx.Linear:
  """Return a linear layer with kernel and bias uniform on +-1 / sqrt(in_features)."""
  bound = in_features**-0.5
  init = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
  return nnx.Linear(
    in_features, out_features, kernel_init=init, bias_init=init, dtype=dtype,
    param_dtype=param_dtype, dot_general=dot_general, rngs=rngs,
  )  # fmt: skip


class CausalLayer(nnx.Module):
  """Adds causal attention and an MLP to the residual stream, each after a LayerNorm.

  x <- x + Attn(LN(x));  x <- x + W2 gelu(W1 LN(x) + b1) + b2,  x (b, n, features), gelu exact.
  """

  def __init__(self, features, head_dim, *, dtype, param_dtype, rngs):
    self.head_dim = head_dim
    norm = partial(LayerNorm, features, epsilon=1e-5, param_dtype=param_dtype, rngs=rngs)
    linear = partial(uniform_linear, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
    self.attention_norm = norm()
    self.qkv = linear(features, 3 * features)  # queries of all heads, then keys, then values
    self.attention_out = linear(features, features)
    self.mlp_norm = norm()
    self.mlp_in = linear(features, 4 * features)
    self.mlp_out = linear(4 * features, features)

  def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
    """Update all tokens; token i sees those up to itself."""
    query, keys, values = self._heads(x)
    past = jnp.tri(x.shape[1], dtype=bool)
    return self._update(x, query, keys, values, past[None, None])

  def step(
    self, x: Float[Array, "b 1 c"], cache: Cache, index: Int[Array, ""], temperature: float | Array
  ) -> tuple[Float[Array, "b 1 c"], Cache]:
    """Update token `index` alone, which sees the cached ones and enters the cache."""
    query, *new = self._heads(x)
    # Dividing the queries divides the scores.
    query = query / jnp.asarray(temperature, query.dtype)
    write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=index, axis=1)
    keys, values = map(write, cache, new)
    # What is not written yet is no token.
    written = jnp.arange(keys.shape[1]) <= index
    return self._update(x, query, keys, values, written[None, None, None]), (keys, values)

  def _heads(self, x):
    split = jnp.split(self.qkv(self.attention_norm(x)), 3, axis=-1)
    return [part.reshape(*part.shape[:2], -1, self.head_dim) for part in split]

  def _update(self, x, query, keys, values, mask):
    attended = softmax_attention(query, keys, values, mask)
    x = x + self.attention_out(attended.reshape(x.shape))
    return x + self.mlp_out(_gelu(self.mlp_in(self.mlp_norm(x))))


class CausalTransformer(nnx.Module):
  """Applies `depth` causal layers in turn, under `lax.scan` in both ways of running them."""

  def __init__(self, features, head_dim, depth, *, dtype, param_dtype, rngs):
    self.depth, self.head_dim = depth, head_dim
    make = lambda rngs: CausalLayer(
      features, head_dim, dtype=dtype, param_dtype=param_dtype, rngs=rngs
    )
    self.layers = Repeat(make, depth, rngs=rngs)

  def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
    """Return all tokens; output i depends on inputs 0 to i."""
    return self.layers(x)

  def empty_cache(self, x: Float[Array, "b 1 c"], length: int) -> Cache:
    """Return a cache for `length` tokens like `x`, none of them written."""
    shape = (self.depth, x.shape[0], length, x.shape[-1] // self.head_dim, self.head_dim)
    return jnp.zeros(shape, x.dtype), jnp.zeros(shape, x.dtype)

  def step(
    self,
    x: Float[Array, "b 1 c"],
    cache: Cache,
    index: Int[Array, ""],
    temperature: float | Array,
  ) -> tuple[Float[Array, "b 1 c"], Cache]:
    """Return token `index` and the cache with it; its scores are divided by `temperature`."""
    graphdef, state = nnx.split(self.layers.blocks)

    def body(x, layer):
      state, cache = layer
      module = cast(CausalLayer, nnx.merge(graphdef, state))
      return module.step(x, cache, index, temperature)

    return jax.lax.scan(body, x, (nnx.to_pure_dict(state), cache))
