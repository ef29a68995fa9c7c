"""Jet, a coupling flow whose only learned block is a small Vision Transformer.

Differences from the authors' implementation, none of which changes the function: permutations are
integer gathers outside the parameters, both kinds of coupling share one code path, images need not
be square, and the head runs in float32 so that forward and inverse use one and the same scale.

A coupling multiplies an entry by less than `scale_factor`, so `depth` couplings expand volume by
less than depth / 2 * log(scale_factor) nats per dimension. Data in [-1, 1] needs roughly 2 to 4:
below some 16 couplings the model saturates and loses whole bits. Watch `Jet.saturation`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from normjax._sizes import check_sizes
from normjax.blocks import EncoderBlock, Repeat, dot_general, softmax_attention
from normjax.flows._bijector import Bijector
from normjax.flows._checks import as_labels, check_above_zero, check_batch
from normjax.flows._coupling import Coupling
from normjax.flows._jet_permutations import coupling_permutations
from normjax.flows._patches import check_patches, from_patches, to_patches
from normjax.flows._scan import Scan
from normjax.flows._widened import widened
from normjax.norms import LayerNorm


class Permutation(nnx.Variable):
  """Integer indices of a fixed permutation: saved with the model, never trained."""


class JetNetwork(nnx.Module):
  """Computes a coupling's (bias, raw scale) from its conditioning half, (b, n, c/2) each."""

  def __init__(
    self,
    num_tokens,
    features,
    *,
    block_depth,
    emb_dim,
    num_heads,
    cond_dim,
    dtype,
    param_dtype,
    rngs,
  ):
    options = {"param_dtype": param_dtype, "rngs": rngs}
    self.init_proj = nnx.Linear(
      features // 2, emb_dim, dtype=dtype, dot_general=dot_general, **options
    )
    posemb_init = nnx.initializers.normal(emb_dim**-0.5)
    self.posemb = nnx.Param(posemb_init(rngs.params(), (1, num_tokens, emb_dim), param_dtype))
    self.context_attention = None if cond_dim is None else nnx.MultiHeadAttention(
      num_heads, emb_dim, in_kv_features=cond_dim, out_kernel_init=nnx.initializers.zeros,
      attention_fn=softmax_attention, decode=False, dtype=dtype, **options,
    )  # fmt: skip
    make_block = lambda rngs: EncoderBlock(
      emb_dim, num_heads, dtype=dtype, param_dtype=param_dtype, rngs=rngs
    )
    self.blocks = Repeat(make_block, block_depth, rngs=rngs)
    self.final_norm = LayerNorm(emb_dim, epsilon=1e-6, **options)
    # Zero, so that a new Jet is exactly the identity.
    self.final_proj = nnx.Linear(
      emb_dim,
      features,
      kernel_init=nnx.initializers.zeros,
      dot_general=dot_general,
      **options,
    )

  def __call__(self, x, context):
    x = self.init_proj(x)  # (b, n, emb)
    x = x + self.posemb[...].astype(x.dtype)
    if self.context_attention is not None:
      x = x + self.context_attention(x, context.astype(x.dtype))
    x = self.blocks(x)
    # A head in low precision would make the scale of `inverse` drift from that of `forward`.
    x = widened(x)
    return jnp.split(self.final_proj(self.final_norm(x)), 2, axis=-1)


class JetCoupling(Coupling):
  """Scales and shifts one half of the half-tokens of (b, n, c) by functions of the other half."""

  def __init__(self, feature_order, half_order, *, scale_factor, rngs, **network):
    self.feature_order, self.half_order = Permutation(feature_order), Permutation(half_order)
    self.scale_factor = scale_factor
    num_tokens, features = half_order.shape[0] // 2, feature_order.shape[0]
    self.network = JetNetwork(num_tokens, features, rngs=rngs, **network)

  def split(self, x):
    b, n, c = x.shape
    x = _gather(x, self.feature_order[...], axis=2)
    x = x.reshape(b, 2 * n, c // 2)  # (b, (n s), c/2)
    x = _gather(x, self.half_order[...], axis=1)
    return x[:, :n], x[:, n:]

  def join(self, x1, x2):
    b, n, half = x1.shape
    x = jnp.concatenate([x1, x2], axis=1)
    x = _gather(x, _invert(self.half_order[...]), axis=1)
    x = x.reshape(b, n, 2 * half)
    return _gather(x, _invert(self.feature_order[...]), axis=2)

  def conditioner(self, x1, cond):
    return self.network(x1, cond)

  def transform(self, x2, theta):
    bias, raw = theta
    y2 = (x2 + bias) * (self.scale_factor * jax.nn.sigmoid(raw))
    return y2, jnp.sum(self._log_scale(raw), axis=(1, 2))

  def untransform(self, y2, theta):
    bias, raw = theta
    x2 = y2 / (self.scale_factor * jax.nn.sigmoid(raw)) - bias
    return x2, -jnp.sum(self._log_scale(raw), axis=(1, 2))

  def _log_scale(self, raw):
    return jax.nn.log_sigmoid(raw) + jnp.log(self.scale_factor).astype(raw.dtype)


def _gather(x, order, axis):
  return x.at[(slice(None),) * axis + (order,)].get(mode="promise_in_bounds", unique_indices=True)


def _invert(order):
  return jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0], dtype=order.dtype))


class Jet(Bijector):
  """Maps images to latents of the same shape by affine couplings between halves of their patches.

  Per coupling, on tokens t (b, n, c), n = H W / ps^2, c = ps^2 C:
    (x1, x2) = halves of the permuted t, (b, n, c/2) each;  (bias, raw) = ViT(x1);
    y2 = (x2 + bias) * m sigmoid(raw);  log_det += sum(log_sigmoid(raw) + log m),  m = scale_factor.
  At initialization every coupling is the identity and log_det is 0.

  Args:
    shape: (H, W, C) of the images.
    depth: number of couplings.
    block_depth: transformer blocks in each coupling.
    emb_dim: width of the transformers.
    num_heads: attention heads; must divide `emb_dim`.
    patch_size: side of the square patches; must divide H and W.
    kinds: "channels" (half of each token's features condition) or "spatial" (half of the tokens
      do), drawn cyclically.
    channel_projections: how features are permuted before a channel split; only "random".
    spatial_projections: "checkerboard", "vstripes", "hstripes", each also with "-inv".
    scale_factor: m, the upper bound of a coupling's scale.
    memory: what gradients of `forward` keep: "store", "remat" or "reversible" (see `Scan`).
    cond_dim: D of a context (b, L, D) that every coupling attends to, given as `cond`.
    num_classes: K, for class labels (b,) in 0..K as `cond`; K, or no cond, means "no label".
    dtype: dtype of the transformers; scales, latents and log_det stay float32 or wider.
    param_dtype: dtype of the parameters.
    rngs: the stream `params`.

  Raises:
    ValueError: if the patch size does not divide the image, a token has an odd number of features,
      a pattern does not fit the grid of patches, a name is unknown, or sizes are out of range.

  Reference:
    Kolesnikov, Susano Pinto, Tschannen, "Jet: A Modern Transformer-Based Normalizing Flow", 2024,
    arXiv 2412.15129.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from normjax.flows import Jet
    >>> jet = Jet((8, 8, 1), depth=4, block_depth=1, emb_dim=16, num_heads=2, patch_size=2,
    ...           rngs=nnx.Rngs(0))
    >>> z, log_det = jet.forward(jnp.ones((3, 8, 8, 1)))
    >>> z.shape, log_det.shape
    ((3, 8, 8, 1), (3,))
  """

  def __init__(
    self,
    shape: Sequence[int],
    *,
    depth: int = 32,
    block_depth: int = 2,
    emb_dim: int = 512,
    num_heads: int = 8,
    patch_size: int = 4,
    kinds: Sequence[str] = ("channels", "channels", "spatial"),
    channel_projections: Sequence[str] = ("random",),
    spatial_projections: Sequence[str] = ("checkerboard", "checkerboard-inv"),
    scale_factor: float = 2.0,
    memory: str = "remat",
    cond_dim: int | None = None,
    num_classes: int | None = None,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.shape, self.patch_size = check_patches(shape, patch_size), patch_size
    check_sizes(depth=depth, block_depth=block_depth, emb_dim=emb_dim)
    check_sizes(cond_dim=cond_dim, num_classes=num_classes)
    if num_heads < 1 or emb_dim % num_heads:
      raise ValueError(f"num_heads must divide emb_dim {emb_dim}, got {num_heads}")
    check_above_zero(scale_factor=scale_factor)
    if cond_dim is not None and num_classes is not None:
      raise ValueError("give cond_dim (a context) or num_classes (labels), not both")
    self.depth, self.scale_factor = depth, scale_factor
    self.num_classes = self.null_label = num_classes
    self.cond_dim = emb_dim if num_classes is not None else cond_dim
    height, width, channels = self.shape
    grid = (height // patch_size, width // patch_size)
    orders = coupling_permutations(
      rngs.params(), grid, patch_size**2 * channels, depth,
      kinds, channel_projections, spatial_projections,
    )  # fmt: skip
    param_dtype = jnp.dtype(param_dtype)
    self.class_embedding = None if num_classes is None else nnx.Embed(
      num_classes + 1, emb_dim, param_dtype=param_dtype, rngs=rngs
    )  # fmt: skip
    network = {
      "block_depth": block_depth, "emb_dim": emb_dim, "num_heads": num_heads,
      "cond_dim": self.cond_dim, "dtype": dtype, "param_dtype": param_dtype,
    }  # fmt: skip

    def make(rngs, orders):
      return JetCoupling(*orders, scale_factor=scale_factor, rngs=rngs, **network)

    self.couplings = Scan(make, depth, orders, memory=memory, rngs=rngs)

  def forward(
    self, x: Float[Array, "b h w c"], cond: Float[Array, "b l d"] | Int[Array, "b"] | None = None
  ) -> tuple[Float[Array, "b h w c"], Float[Array, "b"]]:
    """Return `(z, log_det)` of images `x`; see the class for `cond`."""
    return self._run(self.couplings.forward, x, cond)

  def inverse(
    self, z: Float[Array, "b h w c"], cond: Float[Array, "b l d"] | Int[Array, "b"] | None = None
  ) -> tuple[Float[Array, "b h w c"], Float[Array, "b"]]:
    """Return `(x, log_det)` of latents `z`, as fast as `forward`."""
    return self._run(self.couplings.inverse, z, cond)

  def saturation(self, log_det: Float[Array, "b"]) -> Float[Array, "b"]:
    """Return how much of the possible expansion is used: log_det / (D depth/2 log scale_factor).

    Near 1 the couplings are at their bound, and more depth (or a larger `scale_factor`) is needed.

    Args:
      log_det: (b,) of `forward`.

    Returns:
      (b,) ratios, below 1.
    """
    height, width, channels = self.shape
    transformed = self.depth * height * width * channels / 2
    return log_det / (transformed * jnp.log(self.scale_factor))

  def _run(self, direction, x, cond):
    check_batch("images", x, self.shape)
    x = widened(x)
    tokens, log_det = direction(to_patches(x, self.patch_size), self._context(cond, x.shape[0]))
    return from_patches(tokens, self.shape, self.patch_size), log_det

  def _context(self, cond, batch):
    if self.class_embedding is not None:
      null = self.class_embedding.num_embeddings - 1
      return self.class_embedding(as_labels(cond, batch, null, null))[:, None]  # (b, 1, emb)
    if self.cond_dim is None:
      if cond is not None:
        raise ValueError("cond was given to a Jet without cond_dim or num_classes")
      return None
    if cond is None or cond.ndim != 3 or cond.shape[::2] != (batch, self.cond_dim):
      got = None if cond is None else cond.shape
      raise ValueError(f"cond must have shape ({batch}, length, {self.cond_dim}), got {got}")
    return cond
