"""A multilayer perceptron with a norm in every hidden layer."""

import math
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from normjax._sizes import check_sizes
from normjax.blocks import Repeat
from normjax.models._norm import make_norm


class _Hidden(nnx.Module):
  """A hidden layer: relu(norm(W x + b))."""

  def __init__(self, features, width, norm, norm_options, rngs):
    init = nnx.initializers.he_normal()
    self.linear = nnx.Linear(features, width, kernel_init=init, rngs=rngs)
    self.norm = make_norm(norm, width, norm_options, rngs)

  def __call__(self, x):
    return jax.nn.relu(self.norm(self.linear(x)))


class MLP(nnx.Module):
  """Classifies arrays of any shape, flattened, by hidden layers of one width with a norm in each.

  h <- relu(norm(W h + b)), `depth` times, then logits = W h + b; x (batch, *shape) -> logits
  (batch, num_classes). Kernels are He-normal.

  Args:
    shape: shape of one example.
    num_classes: number of logits.
    width: features of each hidden layer.
    depth: number of hidden layers; those after the first are scanned.
    norm: a key of `normjax.norms.NAMES`, or None for no norm.
    norm_options: further arguments of that norm.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: if a size is below 1, there is no such norm or option, or x has another shape.

  Example:
    >>> import jax.numpy as jnp
    >>> model = MLP((8, 8, 1), 10, width=16, norm="layer_norm", rngs=nnx.Rngs(0))
    >>> model(jnp.ones((2, 8, 8, 1))).shape
    (2, 10)
  """

  def __init__(
    self,
    shape: tuple[int, ...],
    num_classes: int,
    *,
    width: int = 128,
    depth: int = 2,
    norm: str | None = "batch_norm",
    norm_options: dict[str, Any] | None = None,
    rngs: nnx.Rngs,
  ):
    check_sizes(num_classes=num_classes, width=width, depth=depth)
    self.shape = tuple(shape)
    make = lambda features, rngs: _Hidden(features, width, norm, norm_options, rngs)
    self.first = make(math.prod(self.shape), rngs)
    self.others = Repeat(lambda rngs: make(width, rngs), depth - 1, rngs=rngs)
    self.head = nnx.Linear(width, num_classes, rngs=rngs)

  def __call__(self, x: Float[Array, "b ..."]) -> Float[Array, "b k"]:
    """Return the logits (batch, num_classes)."""
    if x.shape[1:] != self.shape:
      raise ValueError(f"x must have shape (batch, *{self.shape}), got {x.shape}")
    return self.head(self.others(self.first(x.reshape(len(x), -1))))
