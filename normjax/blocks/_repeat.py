"""A chain of identical blocks under `lax.scan`: compile time does not grow with its length."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, PyTree

from normjax.carried import GradCarried


class Repeat(nnx.Module):
  """Applies `length` blocks of one structure in turn: x <- f_L( ... f_1(x)), x of any fixed shape.

  What a block writes while it runs (running statistics, counts of random streams) is kept for each
  block; what no block writes stays the Variable that it was.

  Args:
    make: `make(rngs)` builds one block; it is traced once, whatever the length.
    length: the number of blocks; none is the identity.
    rngs: the random streams; every block gets its own split of each.

  Raises:
    ValueError: if `length` is below 0.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax.blocks import EncoderBlock
    >>> blocks = Repeat(lambda rngs: EncoderBlock(8, 2, rngs=rngs), 3, rngs=nnx.Rngs(0))
    >>> blocks(jnp.ones((2, 5, 8))).shape
    (2, 5, 8)
  """

  def __init__(self, make: Callable[[nnx.Rngs], nnx.Module], length: int, *, rngs: nnx.Rngs):
    if length < 0:
      raise ValueError(f"length must be at least 0, got {length}")

    @nnx.split_rngs(splits=length)
    @nnx.vmap
    def create(rngs):
      return make(rngs)

    self.blocks = create(rngs) if length else None

  def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the output of the last block, in the shape of `x`."""
    if self.blocks is None:
      return x
    graphdef, *states = nnx.split(self.blocks, _READ, ...)
    parts: Any = states
    read, kept = map(nnx.to_pure_dict, parts)
    paths: list[Any] = []

    def body(x: Any, block: Any) -> Any:
      read, kept = block
      module: Any = nnx.merge(graphdef, read, kept)
      y = module(x)
      after: Any = nnx.split(module, _READ, ...)[2]
      after = nnx.to_pure_dict(after)
      before, after = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (kept, after))
      paths[:] = [path for path in before if after[path] is not before[path]]
      return y, [after[path] for path in paths]

    x, written = jax.lax.scan(body, x, (read, kept))
    if paths:
      new = dict(zip(paths, written, strict=True))
      kept = jax.tree_util.tree_map_with_path(lambda path, old: new.get(path, old), kept)
      _write(states[1], kept, self.blocks)
    return x


# The forward pass only reads these; increments of carried state leave as cotangents.
_READ = nnx.Any(nnx.Param, GradCarried)


def _write(state: nnx.State, values: PyTree, module: nnx.Module) -> None:
  nnx.replace_by_pure_dict(state, values)
  nnx.update(module, state)
