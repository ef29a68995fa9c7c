"""The residual network for small images (He et al., section 4.2), with any norm.

What differs from the paper: shortcuts that change the shape are 1x1 convolutions with a norm, as in
most code since, and not padded identities; the stem may have a stride.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from normjax._sizes import check_sizes
from normjax.blocks import Repeat
from normjax.models._norm import make_norm


class _Basic(nnx.Module):
  """Two 3x3 convolutions beside a shortcut: relu(norm(conv(relu(norm(conv(x))))) + x)."""

  def __init__(self, features, width, stride, norm, norm_options, rngs):
    make = lambda: make_norm(norm, width, norm_options, rngs)
    bias = norm is None
    self.conv1 = _conv(features, width, 3, stride, bias, rngs)
    self.norm1 = make()
    self.conv2 = _conv(width, width, 3, 1, bias, rngs)
    self.norm2 = make()
    same = stride == 1 and features == width
    self.shortcut = None if same else _conv(features, width, 1, stride, bias, rngs)
    self.shortcut_norm = None if same else make()

  def __call__(self, x):
    y = self.norm2(self.conv2(jax.nn.relu(self.norm1(self.conv1(x)))))
    if self.shortcut is not None and self.shortcut_norm is not None:
      x = self.shortcut_norm(self.shortcut(x))
    return jax.nn.relu(y + x)


def _conv(features: int, width: int, size: int, stride: int, bias: bool, rngs: nnx.Rngs):
  return nnx.Conv(
    features,
    width,
    (size, size),
    (stride, stride),
    use_bias=bias,
    kernel_init=nnx.initializers.he_normal(),
    rngs=rngs,
  )


class ResNet(nnx.Module):
  """Classifies images by stages of residual blocks, each half as high and twice as wide.

  h = relu(norm(conv3x3(x))); stage s has `depths[s]` basic blocks of width * 2^s channels, the
  first of them with stride 2 for s > 0; logits = W mean(h) + b over positions; x (batch, height,
  width, in_features) -> logits (batch, num_classes). Kernels are He-normal; convolutions have a
  bias only without a norm. ResNet-20 is `width=16, depths=(3, 3, 3)`.

  Args:
    in_features: channels of the images.
    num_classes: number of logits.
    width: channels of the first stage.
    depths: blocks of each stage; those of equal shape are scanned.
    stem_stride: stride of the first convolution.
    norm: a key of `normjax.norms.NAMES`, or None for no norm.
    norm_options: further arguments of that norm.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: if a size is below 1, there is no stage, no such norm or option, or x has another
      rank or number of channels.

  Reference:
    He et al., "Deep Residual Learning for Image Recognition", 2015, arXiv 1512.03385.

  Example:
    >>> model = ResNet(1, 10, width=4, depths=(1, 2), norm="layer_norm", rngs=nnx.Rngs(0))
    >>> model(jnp.ones((2, 8, 8, 1))).shape
    (2, 10)
  """

  def __init__(
    self,
    in_features: int,
    num_classes: int,
    *,
    width: int = 16,
    depths: Sequence[int] = (3, 3, 3),
    stem_stride: int = 1,
    norm: str | None = "batch_norm",
    norm_options: dict[str, Any] | None = None,
    rngs: nnx.Rngs,
  ):
    check_sizes(in_features=in_features, num_classes=num_classes, width=width)
    check_sizes(stem_stride=stem_stride)
    if not depths or min(depths) < 1:
      raise ValueError(f"depths must be one or more numbers of at least 1, got {tuple(depths)}")
    self.in_features = in_features
    self.stem = _conv(in_features, width, 3, stem_stride, norm is None, rngs)
    self.stem_norm = make_norm(norm, width, norm_options, rngs)
    stages, features = [], width
    for stage, depth in enumerate(depths):
      wide, stride = width * 2**stage, min(stage + 1, 2)
      blocks = []
      if stage:
        blocks, depth = [_Basic(features, wide, stride, norm, norm_options, rngs)], depth - 1
      same = lambda rngs, wide=wide: _Basic(wide, wide, 1, norm, norm_options, rngs)
      blocks += [Repeat(same, depth, rngs=rngs)] if depth else []
      stages.append(nnx.List(blocks))
      features = wide
    self.stages = nnx.List(stages)
    self.head = nnx.Linear(features, num_classes, rngs=rngs)

  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
    """Return the logits (batch, num_classes)."""
    if x.ndim != 4 or x.shape[-1] != self.in_features:
      raise ValueError(f"x must have shape (b, h, w, {self.in_features}), got {x.shape}")
    x = jax.nn.relu(self.stem_norm(self.stem(x)))
    for stage in self.stages:
      for block in stage:
        x = block(x)
    return self.head(jnp.mean(x, axis=(1, 2)))
