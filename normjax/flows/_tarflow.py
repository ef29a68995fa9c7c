"""TarFlow, a transformer autoregressive flow (https://arxiv.org/abs/2412.06329).

What differs from the authors' implementation: `log_det` is the sum over dimensions, theirs the
mean; the bias of the last projection starts at zero like its kernel, so that a new flow is exactly
the identity; the entries of a patch stand in the order (row, column, channel), theirs in (channel,
row, column); the label -1 means "no label" in sampling too, where theirs takes the last class.

Blocks take the tokens in turn in reading order and reversed. With an odd `depth` one of the two
orders has a block more, so that the first and the last token are not treated alike.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from normjax._sizes import check_sizes
from normjax.flows._bijector import Bijector
from normjax.flows._checks import as_labels, check_batch
from normjax.flows._patches import check_patches, from_patches, to_patches
from normjax.flows._scan import Scan
from normjax.flows._tarflow_block import AutoregressiveBlock
from normjax.flows._tarflow_guidance import Condition, Guidance, check_guidance
from normjax.flows._widened import widened

_MEMORY_MODES = ("store", "remat")


class TarFlow(Bijector):
  """Maps images to latents of the same shape by autoregressive transformers over their patches.

  Per block, on tokens x (b, n, f), n = H W / ps^2, f = ps^2 C, in the order of the block:
    o = transformer(x) (b, n, 2 f), causal;  (a_i, b_i) = o_{i-1},  a_0 = b_0 = 0;
    z_i = (x_i - b_i) exp(-a_i);  log_det -= sum(a).
  At initialization every block is the identity and log_det is 0.

  `forward` is parallel over tokens, and grows no entry beyond 1e30. `inverse` computes one token
  after the other, with cached keys and values: n steps for each block. It multiplies by exp(a) and
  feeds the result back, which overflows for latents or parameters far from the trained ones: such
  an example's `log_det` is NaN, and `guided_inverse` returns a flag.

  Args:
    shape: (H, W, C) of the images.
    depth: number of blocks.
    block_depth: transformer layers in each block.
    emb_dim: width of the transformers.
    head_dim: width of an attention head; must divide `emb_dim`.
    patch_size: side of the square patches; must divide H and W, and leave 2 tokens at least.
    num_classes: K, for class labels (b,) in 0..K-1 as `cond`; -1, or no cond, means "no label" and
      has the mean embedding of all classes.
    volume_preserving: predict shifts only; a = 0 and log_det = 0 throughout. See
      `tracked_variance` for the spread of its latents.
    memory: what gradients of `forward` keep: "store" (every activation) or "remat" (a block's
      input). There is no "reversible": it would rebuild inputs token by token.
    dtype: dtype of the transformers; scales, latents and log_det stay float32 or wider.
    param_dtype: dtype of the parameters.
    rngs: the stream `params`.

  Raises:
    ValueError: if the patch size does not divide the image or leaves one token, `head_dim` does not
      divide `emb_dim`, sizes are out of range, or `memory` is unknown.

  Reference:
    Zhai et al., "Normalizing Flows are Capable Generative Models", 2024, arXiv 2412.06329.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from normjax.flows import TarFlow
    >>> flow = TarFlow((8, 8, 1), depth=2, block_depth=1, emb_dim=16, head_dim=8, patch_size=4,
    ...                rngs=nnx.Rngs(0))
    >>> z, log_det = flow.forward(jnp.ones((3, 8, 8, 1)))
    >>> z.shape, log_det.shape
    ((3, 8, 8, 1), (3,))
  """

  def __init__(
    self,
    shape: Sequence[int],
    *,
    depth: int = 8,
    block_depth: int = 8,
    emb_dim: int = 768,
    head_dim: int = 64,
    patch_size: int = 2,
    num_classes: int | None = None,
    volume_preserving: bool = False,
    memory: str = "remat",
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.shape, self.patch_size = check_patches(shape, patch_size), patch_size
    check_sizes(depth=depth, block_depth=block_depth, emb_dim=emb_dim, num_classes=num_classes)
    if head_dim < 1 or emb_dim % head_dim:
      raise ValueError(f"head_dim must divide emb_dim {emb_dim}, got {head_dim}")
    if memory == "reversible":
      raise ValueError(
        "memory='reversible' rebuilds a block's input by its inverse, which here takes a step for "
        "every token: choose 'remat', which recomputes in parallel"
      )
    if memory not in _MEMORY_MODES:
      raise ValueError(f"memory must be one of {_MEMORY_MODES}, got {memory!r}")
    height, width, channels = self.shape
    num_tokens = height * width // patch_size**2
    if num_tokens < 2:
      raise ValueError(
        f"patch_size must leave at least 2 tokens, got one of {height} x {width}: a block leaves "
        "its first token as it is, so nothing would be modelled"
      )
    self.num_classes, self.null_label = num_classes, -1
    param_dtype = jnp.dtype(param_dtype)

    def make(rngs, order):
      return AutoregressiveBlock(
        order, patch_size**2 * channels, block_depth=block_depth, emb_dim=emb_dim,
        head_dim=head_dim, num_classes=num_classes, volume_preserving=volume_preserving,
        dtype=dtype, param_dtype=param_dtype, rngs=rngs,
      )  # fmt: skip

    reading = np.arange(num_tokens)
    orders = np.stack([reading[::-1] if k % 2 else reading for k in range(depth)])
    self.blocks = Scan(make, depth, jnp.asarray(orders), memory=memory, rngs=rngs)

  @property
  def constant_logdet(self):
    """Whether the blocks only shift."""
    return self.blocks.constant_logdet

  def forward(
    self, x: Float[Array, "b h w c"], cond: Int[Array, "b"] | None = None
  ) -> tuple[Float[Array, "b h w c"], Float[Array, "b"]]:
    """Return `(z, log_det)` of images `x`; see the class for `cond`."""
    return self._run(self.blocks.forward, x, Condition(self._label("x", x, cond)))

  def inverse(
    self, z: Float[Array, "b h w c"], cond: Int[Array, "b"] | None = None
  ) -> tuple[Float[Array, "b h w c"], Float[Array, "b"]]:
    """Return `(x, log_det)` of latents `z`; `log_det` is NaN where `x` is not finite."""
    x, log_det = self._run(self.blocks.inverse, z, Condition(self._label("z", z, cond)))
    return x, jnp.where(_are_finite(x), log_det, jnp.nan)

  def guided_inverse(
    self,
    z: Float[Array, "b h w c"],
    cond: Int[Array, "b"] | None = None,
    *,
    guidance: float | Array = 0.0,
    guide_what: str = "ab",
    annealed: bool = False,
    attention_temperature: float | Array = 1.0,
  ) -> tuple[Float[Array, "b h w c"], Bool[Array, "b"]]:
    """Sample with guidance: every prediction is pushed away from a weaker one.

    a <- a + g (a - a_weak), b likewise; g = guidance, annealed times i / (n - 1) for token i.

    The weaker prediction has no label, and its attention scores are divided by
    `attention_temperature`, which alone makes a contrast in models without labels.

    Args:
      z: latents, drawn from the base.
      cond: labels, as in `inverse`.
      guidance: the weight, at least 0; 0 is plain sampling.
      guide_what: what is guided, a part of "ab": log-scales (a), shifts (b).
      annealed: let the weight grow along the sequence.
      attention_temperature: above 1, the weaker prediction attends more evenly.

    Returns:
      `(x, finite)`: images, and which of them (b,) are finite in all entries.

    Raises:
      ValueError: if an option is out of range, or nothing makes the second prediction weaker.
    """
    options = Guidance(guidance, guide_what, annealed, attention_temperature)
    options = check_guidance(options, has_contrast=cond is not None)
    x, _ = self._run(self.blocks.inverse, z, Condition(self._label("z", z, cond), options))
    return x, _are_finite(x)

  def _run(self, direction, x, cond):
    x = widened(x)
    tokens, log_det = direction(to_patches(x, self.patch_size), cond)
    return from_patches(tokens, self.shape, self.patch_size), log_det

  def _label(self, name, images, cond):
    check_batch(name, images, self.shape)
    batch = images.shape[0]
    if self.num_classes is None:
      if cond is not None:
        raise ValueError("cond must be None for a TarFlow without num_classes")
      return None
    return as_labels(cond, batch, self.num_classes, self.null_label)


def _are_finite(x):
  return jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim)))
