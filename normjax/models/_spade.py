"""Residual blocks and generators that a layout or another image modulates: SPADE and TSIT.

SPADE is https://arxiv.org/abs/1903.07291, TSIT https://arxiv.org/abs/2007.12072. What differs from
the official generators: their convolutions are spectrally normalized, these are not; and the image
may have any size that the upsampling steps divide.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Shaped

from normjax.models._norm import Unconditioned
from normjax.norms import FADE, NAMES, SPADE, feature_adaptive_instance_norm, nearest_resize

Norm = Literal["instance", "batch"]
Condition = Literal["spade", "input"]


class _ModulatedResBlock(nnx.Module):
  """Adds two convolutions, each after a modulated norm; a third stands in the way of new widths."""

  def __init__(
    self,
    in_features: int,
    middle: int,
    out_features: int,
    make_norm: Callable[[int], nnx.Module],
    *,
    dtype: DTypeLike | None,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    options = functools.partial(nnx.Conv, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
    self.norm_0, self.norm_1 = make_norm(in_features), make_norm(middle)
    self.conv_0 = options(in_features, middle, (3, 3))
    self.conv_1 = options(middle, out_features, (3, 3))
    wider = in_features != out_features
    self.norm_s = make_norm(in_features) if wider else nnx.data(None)
    self.conv_s = (
      options(in_features, out_features, (1, 1), use_bias=False) if wider else nnx.data(None)
    )

  def __call__(
    self,
    x: Float[Array, "b h w i"],
    condition: Shaped[Array, "b ..."],
    use_running_average: bool | None = None,
  ) -> Float[Array, "b h w o"]:
    """Return the sum of skip and branch; `condition` is what the norms take beside `x`."""
    shown = condition, use_running_average
    skip = x
    if self.conv_s is not None and self.norm_s is not None:
      skip = self.conv_s(self.norm_s(x, *shown))
    y = self.conv_0(_leaky(self.norm_0(x, *shown)))
    return skip + self.conv_1(_leaky(self.norm_1(y, *shown)))


_leaky = functools.partial(jax.nn.leaky_relu, negative_slope=0.2)


class SPADEResBlock(_ModulatedResBlock):
  """Adds two convolutions to a stream, each after a norm that a layout modulates.

  y = skip(x) + conv3(a(SPADE(conv3(a(SPADE(x)))))) with a = leaky ReLU of slope 0.2, x (b, h, w, i)
  -> y (b, h, w, o) and min(i, o) channels between; skip is the identity, or conv1(SPADE(x)) where i
  and o differ. Every SPADE sees the same layout.

  Args:
    in_features: i.
    out_features: o.
    num_classes: channels of the layout, or the number of its labels.
    hidden_features: channels between layout and modulation.
    norm: "instance" or "batch".
    dtype: dtype of the convolutions; None promotes input and parameters.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: as `normjax.norms.SPADE`.

  Reference:
    Park et al., "Semantic Image Synthesis with Spatially-Adaptive Normalization", 2019,
    arXiv 1903.07291.

  Example:
    >>> block = SPADEResBlock(4, 6, 10, hidden_features=8, rngs=nnx.Rngs(0))
    >>> block(jnp.ones((2, 8, 8, 4)), jnp.zeros((2, 32, 32), int)).shape
    (2, 8, 8, 6)
  """

  def __init__(
    self,
    in_features: int,
    out_features: int,
    num_classes: int,
    *,
    hidden_features: int = 128,
    norm: Norm = "instance",
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    make_norm = lambda features: SPADE(
      features,
      num_classes,
      hidden_features=hidden_features,
      norm=norm,
      param_dtype=param_dtype,
      rngs=rngs,
    )
    super().__init__(
      in_features,
      min(in_features, out_features),
      out_features,
      make_norm,
      dtype=dtype,
      param_dtype=param_dtype,
      rngs=rngs,
    )


class FADEResBlock(_ModulatedResBlock):
  """Adds two convolutions to a stream, each after a norm that features of its place modulate.

  y = skip(x) + conv3(a(FADE(conv3(a(FADE(x)))))) as in `SPADEResBlock`, but with i channels
  between: x (b, h, w, i) -> y (b, h, w, o), with features (b, h, w, k) for every FADE.

  Args:
    in_features: i.
    out_features: o.
    condition_features: k, the channels that modulate.
    norm: "instance" or "batch".
    dtype: dtype of the convolutions; None promotes input and parameters.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: as `normjax.norms.FADE`.

  Reference:
    Jiang et al., "TSIT: A Simple and Versatile Framework for Image-to-Image Translation", 2020,
    arXiv 2007.12072.

  Example:
    >>> block = FADEResBlock(4, 6, 5, rngs=nnx.Rngs(0))
    >>> block(jnp.ones((2, 8, 8, 4)), jnp.ones((2, 8, 8, 5))).shape
    (2, 8, 8, 6)
  """

  def __init__(
    self,
    in_features: int,
    out_features: int,
    condition_features: int,
    *,
    norm: Norm = "instance",
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    make_norm = lambda features: FADE(
      features, condition_features, norm=norm, param_dtype=param_dtype, rngs=rngs
    )
    super().__init__(
      in_features,
      in_features,
      out_features,
      make_norm,
      dtype=dtype,
      param_dtype=param_dtype,
      rngs=rngs,
    )


class TSITStage(nnx.Module):
  """Applies one scale of TSIT: style by FAdaIN, content by a FADE block, then twice the size.

  y = up(FADEResBlock(FAdaIN(x, style), content)), with x and style of i channels, content (b, h, w,
  k) at the size of x, and x (b, h, w, i) -> y (b, 2 h, 2 w, o).

  Args:
    in_features: i, the channels of the stream and of the style features.
    out_features: o.
    content_features: k.
    upsample: whether to double the size.
    norm: "instance" or "batch".
    dtype: dtype of the convolutions; None promotes input and parameters.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: as `FADEResBlock` and `normjax.norms.feature_adaptive_instance_norm`.

  Reference:
    Jiang et al., "TSIT: A Simple and Versatile Framework for Image-to-Image Translation", 2020,
    arXiv 2007.12072.

  Example:
    >>> stage = TSITStage(4, 6, 5, rngs=nnx.Rngs(0))
    >>> x, content, style = jnp.ones((2, 4, 4, 4)), jnp.ones((2, 4, 4, 5)), jnp.ones((2, 8, 8, 4))
    >>> stage(x, content, style).shape
    (2, 8, 8, 6)
  """

  def __init__(
    self,
    in_features: int,
    out_features: int,
    content_features: int,
    *,
    upsample: bool = True,
    norm: Norm = "instance",
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.upsample = upsample
    self.block = FADEResBlock(
      in_features,
      out_features,
      content_features,
      norm=norm,
      dtype=dtype,
      param_dtype=param_dtype,
      rngs=rngs,
    )

  def __call__(
    self,
    x: Float[Array, "b h w i"],
    content: Float[Array, "b h w k"],
    style: Float[Array, "b h2 w2 i"],
    *,
    alpha: ArrayLike = 1.0,
    use_running_average: bool | None = None,
  ) -> Float[Array, "b h3 w3 o"]:
    """Return the stream at the next scale; `alpha` in [0, 1] is the strength of the style."""
    x = feature_adaptive_instance_norm(x, style, alpha=alpha)
    x = self.block(x, content, use_running_average)
    return _doubled(x) if self.upsample else x


def _doubled(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
  return nearest_resize(x, (2 * x.shape[1], 2 * x.shape[2]))


class SPADEGenerator(nnx.Module):
  """Draws an image from a layout, with a SPADE block at every scale.

  The layout, at the smallest size, goes through a convolution; then come blocks with a doubling
  between any two, a leaky ReLU, a convolution and tanh: (b, h, w, k) -> (b, h, w, o) in (-1, 1).
  Without the doublings all blocks work at the layout's size, and the first convolution sees all of
  it: there a network that knows the layout from its input alone can be compared fairly.

  Args:
    num_classes: k, channels of the layout, or the number of its labels.
    out_features: o, channels of the image.
    widths: channels that enter each block, from the smallest size to the image's.
    hidden_features: channels between layout and modulation.
    norm: "instance" or "batch".
    condition: "spade", or "input" for blocks whose norms have a scale and a bias for each channel
      and do not see the layout.
    upsample: whether the size doubles between blocks.
    dtype: dtype of the convolutions; None promotes input and parameters.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: as `SPADEResBlock`, if `condition` or `norm` is another word, if there is no width,
      or if the doublings do not divide the size of the layout.

  Reference:
    Park et al., "Semantic Image Synthesis with Spatially-Adaptive Normalization", 2019,
    arXiv 1903.07291.

  Example:
    >>> generator = SPADEGenerator(11, 1, widths=(8, 8), hidden_features=4, rngs=nnx.Rngs(0))
    >>> generator(jnp.zeros((2, 8, 8), int)).shape
    (2, 8, 8, 1)
  """

  def __init__(
    self,
    num_classes: int,
    out_features: int,
    *,
    widths: Sequence[int] = (64, 32, 16),
    hidden_features: int = 128,
    norm: Norm = "instance",
    condition: Condition = "spade",
    upsample: bool = True,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    if not widths:
      raise ValueError(f"widths must hold the channels of at least one block, got {widths}")
    if condition not in ("spade", "input"):
      raise ValueError(f'condition must be "spade" or "input", got {condition!r}')
    if norm not in ("instance", "batch"):
      raise ValueError(f'norm must be "instance" or "batch", got {norm!r}')
    self.num_classes, self.upsample = num_classes, upsample
    convolution = functools.partial(
      nnx.Conv, kernel_size=(3, 3), dtype=dtype, param_dtype=param_dtype, rngs=rngs
    )
    self.stem = convolution(num_classes, widths[0])
    spade = functools.partial(
      SPADE,
      num_classes=num_classes,
      hidden_features=hidden_features,
      norm=norm,
      param_dtype=param_dtype,
      rngs=rngs,
    )
    plain = lambda features: Unconditioned(
      NAMES[f"{norm}_norm"](features, param_dtype=param_dtype, rngs=rngs)
    )
    self.blocks = nnx.List(
      _ModulatedResBlock(
        entering,
        min(entering, leaving),
        leaving,
        spade if condition == "spade" else plain,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
      )
      for entering, leaving in zip(widths, (*widths[1:], widths[-1]), strict=True)
    )
    self.head = convolution(widths[-1], out_features)

  def __call__(
    self, segmap: Shaped[Array, "b h w *k"], use_running_average: bool | None = None
  ) -> Float[Array, "b h w o"]:
    """Return the image of a layout, given as channels or as integer labels (b, h, w)."""
    segmap = jnp.asarray(segmap)
    if jnp.issubdtype(segmap.dtype, jnp.integer):
      if segmap.ndim != 3:
        raise ValueError(f"segmap must hold labels (b, h, w), got shape {segmap.shape}")
      segmap = jax.nn.one_hot(segmap, self.num_classes)
    size, step = segmap.shape[1:3], 2 ** (len(self.blocks) - 1) if self.upsample else 1
    if segmap.ndim != 4 or any(side % step or side < step for side in size):
      raise ValueError(
        f"segmap must have shape (b, h, w) or (b, h, w, {self.num_classes}) with h and w multiples "
        f"of {step}, got {segmap.shape}"
      )
    x = self.stem(nearest_resize(segmap, [side // step for side in size]))
    for i, block in enumerate(self.blocks):
      x = _doubled(x) if i and self.upsample else x
      x = block(x, segmap, use_running_average)
    return jnp.tanh(self.head(_leaky(x)))
