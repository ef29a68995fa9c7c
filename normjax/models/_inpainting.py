"""The inpainting generator of Region Normalization (https://arxiv.org/abs/1911.10375).

The encoder knows where the hole is and normalizes with that mask (RN-B); features of later layers
mix both regions, and there the layers find regions themselves (RN-L). The hole goes in as ones.
Any other norm can stand at all these places, which shows what the region norms are worth.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from normjax._sizes import check_sizes
from normjax.blocks import Repeat
from normjax.models._norm import Unconditioned, make_norm
from normjax.norms import LearnableRegionNorm, RegionNorm


class _DilatedBlock(nnx.Module):
  """Adds two convolutions, the first dilated, each before a norm that sees no mask."""

  def __init__(self, features: int, make_norm, convolution, rngs: nnx.Rngs):
    make = functools.partial(convolution, features, features, (3, 3), rngs=rngs)
    self.conv_0, self.conv_1 = make(kernel_dilation=2), make()
    self.norm_0, self.norm_1 = make_norm(features, rngs=rngs), make_norm(features, rngs=rngs)

  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    y = jax.nn.relu(self.norm_0(self.conv_0(x)))
    return x + self.norm_1(self.conv_1(y)).astype(x.dtype)


class InpaintingGenerator(nnx.Module):
  """Fills the holes of images, with region norms from end to end or with another norm.

  conv7, conv4 and conv4 of stride 2, each with RN-B and ReLU; residual blocks of a dilated conv3
  and a conv3 with RN-L; two conv3 with pixel shuffle, RN-L and ReLU; conv7 and (tanh + 1) / 2:
  images (b, h, w, c) -> (b, h, w, c) in (0, 1).

  Args:
    image_features: c.
    features: channels of the first convolution; the next two double them.
    num_blocks: residual blocks.
    norm: "region" for RN-B and RN-L, or a key of `normjax.norms.NAMES` for one norm at all places,
      which knows nothing of the hole; None: no norm.
    norm_options: further arguments of that other norm.
    threshold: importance from which RN-L takes a pixel for foreground.
    dtype: dtype of the convolutions; None promotes input and parameters.
    param_dtype: dtype of the parameters; another norm than "region" has it among its options.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: if a size is out of range, there is no such norm or option, images are not
      (b, h, w, c) with sides that are multiples of 4 and at least 12, or the mask is not boolean of
      shape (b, h, w, 1).

  Reference:
    Yu et al., "Region Normalization for Image Inpainting", 2020, arXiv 1911.10375.

  Example:
    >>> generator = InpaintingGenerator(1, features=2, num_blocks=1, rngs=nnx.Rngs(0))
    >>> generator(jnp.ones((2, 12, 12, 1)), jnp.zeros((2, 12, 12, 1), bool)).shape
    (2, 12, 12, 1)
  """

  def __init__(
    self,
    image_features: int = 3,
    *,
    features: int = 64,
    num_blocks: int = 8,
    norm: str | None = "region",
    norm_options: dict[str, Any] | None = None,
    threshold: float = 0.8,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    check_sizes(image_features=image_features, features=features)
    check_sizes(0, num_blocks=num_blocks)
    self.image_features = image_features
    convolution = functools.partial(
      nnx.Conv, padding="REFLECT", dtype=dtype, param_dtype=param_dtype
    )
    if norm == "region":
      if norm_options:
        raise ValueError(f'norm_options must be empty with norm="region", got {norm_options!r}')
      masked = functools.partial(RegionNorm, param_dtype=param_dtype, rngs=rngs)
      plain = functools.partial(LearnableRegionNorm, threshold=threshold, param_dtype=param_dtype)
    else:
      plain = lambda width, rngs: make_norm(norm, width, norm_options, rngs)
      masked = lambda width: Unconditioned(plain(width, rngs=rngs))
    half = functools.partial(
      convolution, kernel_size=(4, 4), strides=2, padding=((1, 1), (1, 1)), rngs=rngs
    )
    n = features
    self.encoder = nnx.List(
      [convolution(image_features + 1, n, (7, 7), rngs=rngs), half(n, 2 * n), half(2 * n, 4 * n)]
    )
    self.encoder_norms = nnx.List(masked(width) for width in (n, 2 * n, 4 * n))
    make = lambda rngs: _DilatedBlock(4 * n, plain, convolution, rngs)
    self.blocks = Repeat(make, num_blocks, rngs=rngs)
    self.decoder = nnx.List(
      convolution(2 * width, 4 * width, (3, 3), rngs=rngs) for width in (2 * n, n)
    )
    self.decoder_norms = nnx.List(plain(width, rngs=rngs) for width in (2 * n, n))
    self.head = convolution(n, image_features, (7, 7), rngs=rngs)

  def __call__(
    self, images: Float[Array, "b h w c"], mask: Bool[Array, "b h w 1"]
  ) -> Float[Array, "b h w c"]:
    """Return whole images; what `images` hold where `mask` is True (the hole) does not matter."""
    _check(images, mask, self.image_features)
    x = jnp.where(mask, jnp.ones_like(images), images)
    x = jnp.concatenate([x, mask.astype(x.dtype)], -1)
    for conv, norm in zip(self.encoder, self.encoder_norms, strict=True):
      x = jax.nn.relu(norm(conv(x), mask))
    x = self.blocks(x)
    for conv, norm in zip(self.decoder, self.decoder_norms, strict=True):
      x = jax.nn.relu(norm(_shuffled(conv(x))))
    return (jnp.tanh(self.head(x)) + 1) / 2


def _check(images: Array, mask: Array, image_features: int) -> None:
  if (
    images.ndim != 4
    or images.shape[-1] != image_features
    or any(side % 4 or side < 12 for side in images.shape[1:3])
  ):
    raise ValueError(
      f"images must have shape (b, h, w, {image_features}) with h and w multiples of 4 from 12 on, "
      f"got {images.shape}"
    )
  if mask.dtype != jnp.bool_ or mask.shape != (*images.shape[:3], 1):
    raise ValueError(
      f"mask must be boolean of shape {(*images.shape[:3], 1)}, got {mask.dtype} of {mask.shape}"
    )


def _shuffled(x: Float[Array, "b h w c4"]) -> Float[Array, "b h2 w2 c"]:
  """Returns twice the size with a quarter of the channels, in torch's order of pixel shuffle."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, c // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
  return x.reshape(b, 2 * h, 2 * w, c // 4)
