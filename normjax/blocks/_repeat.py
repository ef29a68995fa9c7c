"""A chain of identical blocks under `lax.scan`: compile time does not grow with its length."""

from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, Float


class Repeat(nnx.Module):
  """Applies `length` blocks of one structure in turn: x <- f_L( ... f_1(x)), x of any fixed shape.

  Args:
    make: `make(rngs)` builds one block; it is traced once, whatever the length.
    length: the number of blocks, at least 1.
    rngs: the random streams; every block gets its own split of each.

  Raises:
    ValueError: if `length` is below 1.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax.blocks import EncoderBlock
    >>> blocks = Repeat(lambda rngs: EncoderBlock(8, 2, rngs=rngs), 3, rngs=nnx.Rngs(0))
    >>> blocks(jnp.ones((2, 5, 8))).shape
    (2, 5, 8)
  """

  def __init__(self, make: Callable[[nnx.Rngs], nnx.Module], length: int, *, rngs: nnx.Rngs):
    if length < 1:
      raise ValueError(f"length must be at least 1, got {length}")

    @nnx.split_rngs(splits=length)
    @nnx.vmap
    def create(rngs):
      return make(rngs)

    self.blocks = create(rngs)

  def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the output of the last block, in the shape of `x`."""
    graphdef, state = nnx.split(self.blocks)
    body = lambda x, block: (nnx.merge(graphdef, block)(x), None)
    return jax.lax.scan(body, x, nnx.to_pure_dict(state))[0]
