"""A small Vision Transformer with any norm.

What differs from the paper: the mean of all tokens is classified, not a token of its own (Beyer,
Zhai, Kolesnikov, "Better plain ViT baselines for ImageNet-1k", 2022, arXiv 2205.01580).
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from normjax._sizes import check_sizes
from normjax.blocks import EncoderBlock, Repeat
from normjax.models._norm import make_norm


class ViT(nnx.Module):
  """Classifies images by a transformer over their patches.

  h = W patches(x) + b + positions; h <- EncoderBlock(h), `depth` times; logits = V mean(norm(h)) +
  v, the mean over tokens; x (batch, *shape) -> logits (batch, num_classes).

  Args:
    shape: (height, width, channels) of one image.
    num_classes: number of logits.
    patch_size: side of a patch; must divide height and width.
    features: width of the residual stream.
    depth: number of blocks, which are scanned.
    num_heads: attention heads; must divide `features`.
    norm: a key of `normjax.norms.NAMES`.
    norm_options: further arguments of that norm.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: if a size is below 1 or does not divide what it must, there is no such norm or
      option, or x has another shape.

  Reference:
    Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020, arXiv 2010.11929.

  Example:
    >>> model = ViT((8, 8, 1), 10, patch_size=4, features=8, num_heads=2, rngs=nnx.Rngs(0))
    >>> model(jnp.ones((2, 8, 8, 1))).shape
    (2, 10)
  """

  def __init__(
    self,
    shape: Sequence[int],
    num_classes: int,
    *,
    patch_size: int = 4,
    features: int = 64,
    depth: int = 4,
    num_heads: int = 4,
    norm: str = "layer_norm",
    norm_options: dict[str, Any] | None = None,
    rngs: nnx.Rngs,
  ):
    check_sizes(num_classes=num_classes, patch_size=patch_size, features=features, depth=depth)
    self.shape = tuple(shape)
    if len(self.shape) != 3 or self.shape[0] % patch_size or self.shape[1] % patch_size:
      raise ValueError(
        f"shape must be (height, width, channels) of sides that patch_size {patch_size} divides, "
        f"got {self.shape}"
      )
    patch = (patch_size, patch_size)
    tokens = self.shape[0] * self.shape[1] // patch_size**2
    self.patches = nnx.Conv(self.shape[2], features, patch, patch, padding="VALID", rngs=rngs)
    init = nnx.initializers.normal(0.02)
    self.positions = nnx.Param(init(rngs.params(), (1, tokens, features)))
    make = lambda rngs: EncoderBlock(
      features, num_heads, norm=norm, norm_options=norm_options, rngs=rngs
    )
    self.blocks = Repeat(make, depth, rngs=rngs)
    self.norm = make_norm(norm, features, norm_options, rngs)
    self.head = nnx.Linear(features, num_classes, rngs=rngs)

  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
    """Return the logits (batch, num_classes)."""
    if x.shape[1:] != self.shape:
      raise ValueError(f"x must have shape (batch, *{self.shape}), got {x.shape}")
    x = self.patches(x)
    x = x.reshape(len(x), -1, x.shape[-1]) + self.positions[...]
    return self.head(jnp.mean(self.norm(self.blocks(x)), axis=1))
