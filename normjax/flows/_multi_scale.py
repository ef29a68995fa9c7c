"""The multi-scale architecture of Glow (https://arxiv.org/abs/1807.03039), with learned priors.

Latents are standardized: eps = (z - mean) exp(-log_std) with the mean and the scale of their prior.
The density is that of the authors' form, whose objective adds log N(z; mean, exp(log_std)) instead;
but the base is N(0, I), so that any other base, and temperatures, apply to all latents alike.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from normjax._sizes import check_sizes
from normjax.flows._bijector import Bijector
from normjax.flows._checks import as_labels, check_batch, check_shape
from normjax.flows._exp import stretched
from normjax.flows._glow_network import LOG_SCALE_FACTOR, ZeroConv
from normjax.flows._reshape import Squeeze
from normjax.flows._widened import widened


class SplitPrior(nnx.Module):
  """Computes the prior's mean and log_std of split channels from those that stay."""

  def __init__(self, features, *, edge_bias, param_dtype, rngs):
    self.conv = ZeroConv(
      features, 2 * features, edge_bias=edge_bias, param_dtype=param_dtype, rngs=rngs
    )

  def __call__(self, x):
    h = self.conv(x)
    return h[..., 0::2], h[..., 1::2]


class TopPrior(nnx.Module):
  """Holds the prior's mean and log_std of the last level: per channel, and per class if any.

  (mean, log_std) = halves of (bias + label_bias[label]) exp(3 logs)
  """

  def __init__(self, features, *, num_classes, param_dtype):
    self.num_classes = num_classes
    zeros = lambda *shape: nnx.Param(jnp.zeros((*shape, 2 * features), param_dtype))
    self.bias, self.logs = zeros(), zeros()
    # The last row is that of "no label".
    self.label_bias = None if num_classes is None else zeros(num_classes + 1)

  def __call__(self, batch, dtype, cond):
    h = self.bias[...].astype(dtype)[None]  # (1, 2 c)
    if self.label_bias is not None:
      label = as_labels(cond, batch, self.num_classes, self.num_classes)
      h = h + self.label_bias[...].astype(dtype)[label]
    h = h * jnp.exp(LOG_SCALE_FACTOR * self.logs[...].astype(dtype))[None]
    return jnp.split(h[:, None, None, :], 2, axis=-1)


class MultiScale(Bijector):
  """Maps images to standard normal vectors, half of what is left at each of several scales.

  x (B, H, W, C) -> eps (B, H W C). At each level: squeeze to (B, h / 2, w / 2, 4 c), apply the
  level's bijector, and split: half of the channels, z, leaves with the prior (mean, log_std) =
  conv3(the other half), the last level with a constant one, or one per class.
    eps = (z - mean) exp(-log_std),  log_det (B,) = sum of the levels' log_dets - sum log_std

  All priors are N(0, 1) at first. Latents are flattened and stand one level after the other.

  Args:
    shape: (H, W, C) of the images.
    make_level: `make_level(shape, rngs)` builds the bijector of one level, for events of the
      squeezed shape (h, w, c); it gets the `cond` of the whole.
    num_levels: how many levels there are; 2^num_levels must divide H and W.
    num_classes: K, for class labels (b,) in 0..K as `cond`; K, or no cond, means "no label".
    edge_bias: as in `GlowCoupling`, for the convolutions of the priors.
    param_dtype: dtype of the priors' parameters.
    rngs: the stream `params`.

  Raises:
    ValueError: if `shape` is not (H, W, C) with sides that 2^num_levels divides, or `num_levels` or
      `num_classes` is below 1.

  Reference:
    Kingma, Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions", 2018,
    arXiv 1807.03039.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from normjax import flows
    >>> make_level = lambda shape, rngs: flows.ActNorm(shape[-1])
    >>> bijector = flows.MultiScale((8, 8, 1), make_level, 2, rngs=nnx.Rngs(0))
    >>> z, log_det = bijector.forward(jnp.ones((3, 8, 8, 1)))
    >>> z.shape, log_det.shape
    ((3, 64), (3,))
  """

  def __init__(
    self,
    shape: Sequence[int],
    make_level: Callable[[tuple[int, int, int], nnx.Rngs], Bijector],
    num_levels: int,
    *,
    num_classes: int | None = None,
    edge_bias: bool = False,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.shape = check_shape(shape)
    check_sizes(num_levels=num_levels, num_classes=num_classes)
    step = 2**num_levels
    if len(self.shape) != 3 or self.shape[0] % step or self.shape[1] % step:
      raise ValueError(
        f"shape must be (height, width, channels) of sides that 2^num_levels = {step} divides, got "
        f"{self.shape}"
      )
    height, width, features = self.shape
    levels, priors, latent_shapes = [], [], []
    for level in range(num_levels):
      height, width, features = height // 2, width // 2, 4 * features
      levels.append(make_level((height, width, features), rngs))
      if level < num_levels - 1:
        features //= 2
        priors.append(SplitPrior(features, edge_bias=edge_bias, param_dtype=param_dtype, rngs=rngs))
      latent_shapes.append((height, width, features))
    self.num_classes = self.null_label = num_classes
    self.latent_shapes = tuple(latent_shapes)
    self.squeeze, self.levels, self.priors = Squeeze(), nnx.List(levels), nnx.List(priors)
    self.top = TopPrior(features, num_classes=num_classes, param_dtype=param_dtype)

  def forward(self, x, cond=None):
    """Return `(eps, log_det)` of images `x`."""
    latents, log_det = self._up(x, cond, lambda level, x: level.forward(x, cond))
    for _, _, log_std in latents:
      log_det = log_det - _sum(log_std)
    return _standardized(latents), log_det

  def inverse(self, z, cond=None):
    """Return `(x, log_det)` of standardized latents `z` (b, H W C)."""
    return self._down(z, cond, lambda level, x: level.inverse(x, cond))

  @property
  def constant_logdet(self):
    """Whether there is one level, since priors of others see x, and its is constant."""
    return not len(self.priors) and all(level.constant_logdet for level in self.levels)

  def forward_varying(self, x, cond=None):
    """Return `(eps, log_det)` without the scale of the last prior, which sees no x."""
    latents, log_det = self._up(x, cond, lambda level, x: level.forward_varying(x, cond))
    for _, _, log_std in latents[:-1]:
      log_det = log_det - _sum(log_std)
    return _standardized(latents), log_det

  def inverse_varying(self, z, cond=None):
    """Return `(x, log_det)` likewise."""
    x, log_det = self._down(z, cond, lambda level, x: level.inverse_varying(x, cond))
    shape = (x.shape[0], *self.latent_shapes[-1])
    return x, log_det - _sum(jnp.broadcast_to(self.top(x.shape[0], x.dtype, cond)[1], shape))

  def data_init(self, x, cond=None):
    """Start each level from what those before it make of `x`; return the latents."""
    zeros = jnp.zeros((), jnp.float32)
    return _standardized(self._up(x, cond, lambda level, x: (level.data_init(x, cond), zeros))[0])

  def data_init_inverse(self, z, cond=None):
    """Start each level from what those after it make of `z`; return the images."""
    zeros = jnp.zeros((), jnp.float32)
    return self._down(z, cond, lambda level, x: (level.data_init_inverse(x, cond), zeros))[0]

  def latents(
    self, x: Float[Array, "b h w c"], cond: PyTree | None = None
  ) -> tuple[list[Float[Array, "b h w c"]], Float[Array, "b"], Float[Array, "b"]]:
    """Return the latents of the authors' form, before they are standardized.

    Args:
      x: images.
      cond: as in `forward`.

    Returns:
      `(latents, log_det, log_prior)`: a latent (b, h, w, c) per level, the log-determinant of x ->
      latents, and the sum of their log-densities under the priors. log_det + log_prior is the
      log-density of x.
    """
    latents, log_det = self._up(x, cond, lambda level, x: level.forward(x, cond))
    log_prior = jnp.zeros_like(log_det)
    for z, mean, log_std in latents:
      log_p = jax.scipy.stats.norm.logpdf(z, mean, jnp.exp(log_std))
      log_prior = log_prior + jnp.sum(log_p, axis=(1, 2, 3))
    return [z for z, _, _ in latents], log_det, log_prior

  def _up(self, x, cond, apply):
    """Return `(z, mean, log_std)` of every level, and the log_det of the levels."""
    check_batch("x", x, self.shape)
    # Latents and their priors are float32 or wider, like the log-determinants.
    x = widened(x)
    log_det, latents = jnp.zeros(x.shape[:1], x.dtype), []
    for level, prior in zip(self.levels, [*self.priors, None], strict=True):
      x, step = apply(level, self.squeeze.forward(x)[0])
      log_det = log_det + step
      if prior is not None:
        x, z = jnp.split(x, 2, axis=-1)
        latents.append((z, *prior(x)))
    mean, log_std = (jnp.broadcast_to(h, x.shape) for h in self.top(x.shape[0], x.dtype, cond))
    return [*latents, (x, mean, log_std)], log_det

  def _down(self, z, cond, apply):
    check_batch("z", z, (math.prod(self.shape),))
    z = widened(z)
    sizes = [math.prod(shape) for shape in self.latent_shapes]
    starts = [sum(sizes[:i]) for i in range(1, len(sizes))]
    *splits, top = (
      part.reshape(-1, *shape)
      for part, shape in zip(jnp.split(z, starts, axis=1), self.latent_shapes, strict=True)
    )
    mean, log_std = (jnp.broadcast_to(h, top.shape) for h in self.top(z.shape[0], z.dtype, cond))
    log_det = _sum(log_std)
    x, step = apply(self.levels[-1], mean + stretched(top, log_std))
    x, log_det = self.squeeze.inverse(x)[0], log_det + step
    for i in reversed(range(len(splits))):
      mean, log_std = self.priors[i](x)
      log_det = log_det + _sum(log_std)
      x = jnp.concatenate([x, mean + stretched(splits[i], log_std)], axis=-1)
      x, step = apply(self.levels[i], x)
      x, log_det = self.squeeze.inverse(x)[0], log_det + step
    return x, log_det


def _standardized(latents):
  eps = [stretched(z - mean, -log_std) for z, mean, log_std in latents]
  return jnp.concatenate([e.reshape(e.shape[0], -1) for e in eps], axis=1)


def _sum(log_std):
  return jnp.sum(log_std, axis=(1, 2, 3))
