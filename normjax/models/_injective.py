"""Residual encoder and decoder for free-form flows (https://arxiv.org/abs/2306.01843).

The authors' toy networks: residual blocks with two hidden layers, and one linear map between the
dimensions. What differs: the last layer of each block starts at zero, so that a pair of full
dimension (https://arxiv.org/abs/2310.16624) starts as two identities.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from normjax import flows
from normjax._sizes import check_sizes
from normjax.blocks import Repeat


class _ResidualBlock(nnx.Module):
  """x + W2 silu(W1 silu(W0 x + b0) + b1) + b2, with W2 = 0 at first."""

  def __init__(self, features, width, param_dtype, rngs):
    options = {"param_dtype": param_dtype, "rngs": rngs}
    self.linear0 = nnx.Linear(features, width, **options)
    self.linear1 = nnx.Linear(width, width, **options)
    zeros = nnx.initializers.zeros_init()
    self.linear2 = nnx.Linear(width, features, kernel_init=zeros, **options)

  def __call__(self, x):
    return x + self.linear2(jax.nn.silu(self.linear1(jax.nn.silu(self.linear0(x)))))


class InjectiveFlow(nnx.Module):
  """Maps data to latents of fewer (or as many) dimensions and back by two residual networks.

  z = A r_B( ... r_1([x, cond])),  x = q_B( ... q_1(C [z, cond])),  z ~ N(0, I),  x (b, D), z (b, d)

  with residual blocks r and q and linear A and C, which are left out where they would not change
  the dimension. Nothing makes the two invert each other but training with `flows.injective_loss`,
  on `encode` and `decode`.

  Args:
    dim: D.
    latent_dim: d, at most D.
    width: features of the two hidden layers of each block.
    num_blocks: B, residual blocks of each network, scanned.
    cond_dim: features of `cond` (b, cond_dim); None: unconditional.
    param_dtype: dtype of the parameters, also of the latents that are drawn.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: if a size is below 1, d > D, or an input is no array of floats or has another
      shape.

  Reference:
    Sorrenson et al., "Lifting Architectural Constraints of Injective Flows", 2023,
    arXiv 2306.01843. Draxler et al., "Free-form Flows: Make Any Architecture a Normalizing Flow",
    2023, arXiv 2310.16624.

  Example:
    >>> flow = InjectiveFlow(5, 2, width=8, num_blocks=1, rngs=nnx.Rngs(0))
    >>> flow.encode(jnp.ones((3, 5))).shape, flow.sample(jax.random.key(0), 3).shape
    ((3, 2), (3, 5))
  """

  def __init__(
    self,
    dim: int,
    latent_dim: int,
    *,
    width: int = 256,
    num_blocks: int = 4,
    cond_dim: int | None = None,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    check_sizes(dim=dim, latent_dim=latent_dim, width=width, num_blocks=num_blocks)
    if latent_dim > dim:
      raise ValueError(f"latent_dim must be at most dim = {dim}, got {latent_dim}")
    if cond_dim is not None:
      check_sizes(cond_dim=cond_dim)
    self.dim, self.latent_dim, self.cond_dim = dim, latent_dim, cond_dim
    self.base = flows.StandardNormal((latent_dim,), param_dtype=param_dtype)
    blocks = lambda features: Repeat(
      lambda rngs: _ResidualBlock(features, width, param_dtype, rngs), num_blocks, rngs=rngs
    )
    linear = lambda ins, outs: (
      None if ins == outs else nnx.Linear(ins, outs, param_dtype=param_dtype, rngs=rngs)
    )
    extra = cond_dim or 0
    self.encoder_blocks = blocks(dim + extra)
    self.encoder_linear = linear(dim + extra, latent_dim)
    self.decoder_linear = linear(latent_dim + extra, dim)
    self.decoder_blocks = blocks(dim)

  def _inputs(self, name: str, value, features: int, cond) -> Array:
    floating = jnp.issubdtype(value.dtype, jnp.floating)
    if value.ndim != 2 or value.shape[1] != features or not floating:
      raise ValueError(
        f"{name} must have shape (b, {features}) and be floating, got {value.shape} {value.dtype}"
      )
    if self.cond_dim is None:
      return value
    shape = (value.shape[0], self.cond_dim)
    if cond is None or cond.shape != shape:
      came = None if cond is None else cond.shape
      raise ValueError(f"cond must be an array of shape {shape}, got {came}")
    return jnp.concatenate([value, cond.astype(value.dtype)], axis=1)

  def encode(self, x: Float[Array, "b D"], cond: Array | None = None) -> Float[Array, "b d"]:
    """Return the latents of `x`."""
    return _apply(self.encoder_linear, self.encoder_blocks(self._inputs("x", x, self.dim, cond)))

  def decode(self, z: Float[Array, "b d"], cond: Array | None = None) -> Float[Array, "b D"]:
    """Return the data of `z`."""
    z = self._inputs("z", z, self.latent_dim, cond)
    return self.decoder_blocks(_apply(self.decoder_linear, z))

  def sample(
    self, key: Array, n: int, cond: Array | None = None, temperature: float | Array = 1.0
  ) -> Float[Array, "n D"]:
    """Draw `n` events: the data of N(0, temperature^2 I) latents."""
    return self.decode(self.base.sample(key, n, temperature=temperature), cond)


def _apply(linear: Any, x):
  return x if linear is None else linear(x)
