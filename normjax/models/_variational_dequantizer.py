"""The density of dequantization noise given an image: a small conditional flow onto (0, 1).

A Gaussian whose moments a convolutional network computes from the image, affine couplings of a
checkerboard that see the image as well, and a sigmoid. Flow++ (https://arxiv.org/abs/1902.00275)
takes the same parts with mixtures of logistics and attention; ours are affine and convolutional.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from normjax import flows
from normjax._sizes import check_sizes


class _Convs(nnx.Module):
  """Three convolutions with relu between; the last one is zero at first."""

  def __init__(self, features, outputs, width, *, param_dtype, rngs):
    options = {"param_dtype": param_dtype, "rngs": rngs}
    self.first = nnx.Conv(features, width, (3, 3), **options)
    self.middle = nnx.Conv(width, width, (1, 1), **options)
    self.last = nnx.Conv(width, outputs, (3, 3), kernel_init=nnx.initializers.zeros, **options)

  def __call__(self, x):
    return self.last(jax.nn.relu(self.middle(jax.nn.relu(self.first(x)))))


class _Moments(nnx.Module):
  """The mean and the raw log-scale of every pixel's noise, as (b, 2 h w c)."""

  def __init__(self, shape, width, num_levels, *, param_dtype, rngs):
    self.shape, self.num_levels = shape, num_levels
    features = shape[-1]
    self.convs = _Convs(features, 2 * features, width, param_dtype=param_dtype, rngs=rngs)

  def __call__(self, image):
    pixels = _pixels(image, self.shape, self.num_levels)
    loc, raw = jnp.split(self.convs(pixels), 2, axis=-1)
    return jnp.concatenate([h.reshape(h.shape[0], -1) for h in (loc, raw)], axis=1)


class _Checkerboard(flows.Bijector):
  """y = x exp(s) + t on the fields of one colour, (u, t) = net(x elsewhere, image), s = tanh(u)."""

  def __init__(self, shape, width, num_levels, mask, *, param_dtype, rngs):
    self.shape, self.num_levels = shape, num_levels
    self.moves = nnx.Variable(mask[None])
    features = shape[-1]
    self.convs = _Convs(2 * features, 2 * features, width, param_dtype=param_dtype, rngs=rngs)

  def _terms(self, x, image):
    pixels = _pixels(image, self.shape, self.num_levels).astype(x.dtype)
    moves = self.moves[...].astype(x.dtype)
    raw, shift = jnp.split(self.convs(jnp.concatenate([x * (1 - moves), pixels], -1)), 2, axis=-1)
    return moves * jnp.tanh(raw), moves * shift

  def forward(self, x, cond=None):
    log_scale, shift = self._terms(x, cond)
    return x * jnp.exp(log_scale) + shift, jnp.sum(log_scale, axis=(1, 2, 3))

  def inverse(self, z, cond=None):
    log_scale, shift = self._terms(z, cond)
    return (z - shift) * jnp.exp(-log_scale), -jnp.sum(log_scale, axis=(1, 2, 3))


class VariationalDequantizer(flows.Flow):
  """Learns the noise that makes quantized images continuous, given the image.

  u = sigmoid(couplings(loc(q) + s(q) eps; q)),  eps ~ N(0, I),  q and u (b, h, w, c)

  `sample_and_log_prob(key, b, image)` gives noise u in [0, 1] and log r(u | q), which
  `flows.dequantized_log_prob` turns into a bound on the image's probability. A new one draws the
  same logit-normal noise for every image.

  Args:
    shape: (h, w, c) of the images.
    num_levels: number of levels; images are integers in 0 to num_levels - 1.
    num_couplings: how many couplings, scanned, on fields of alternating colours.
    width: channels of the networks.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: if `shape` is not (h, w, c), a size is out of range, or the condition is not a batch
      of integer images.

  Reference:
    Ho, Chen, Srinivas, Duan, Abbeel, "Flow++: Improving Flow-Based Generative Models with
    Variational Dequantization and Architecture Design", 2019, arXiv 1902.00275.

  Example:
    >>> dequantizer = VariationalDequantizer((4, 4, 1), width=8, rngs=nnx.Rngs(0))
    >>> image = jnp.zeros((2, 4, 4, 1), jnp.uint8)
    >>> noise, log_prob = dequantizer.sample_and_log_prob(jax.random.key(0), 2, image)
    >>> noise.shape, log_prob.shape
    ((2, 4, 4, 1), (2,))
  """

  def __init__(
    self,
    shape: Sequence[int],
    *,
    num_levels: int = 256,
    num_couplings: int = 2,
    width: int = 32,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    shape = tuple(shape)
    if len(shape) != 3:
      raise ValueError(f"shape must be (height, width, channels), got {shape}")
    check_sizes(2, num_levels=num_levels)
    check_sizes(num_couplings=num_couplings, width=width)
    options = {"param_dtype": param_dtype, "rngs": rngs}
    make = lambda rngs, mask: _Checkerboard(
      shape, width, num_levels, mask, param_dtype=param_dtype, rngs=rngs
    )
    masks = [flows.checkerboard_mask(shape, parity=i % 2) for i in range(num_couplings)]
    couplings = flows.Scan(make, num_couplings, jnp.stack(masks), rngs=rngs)
    base = flows.ConditionalDiagonalNormal(
      shape, _Moments(shape, width, num_levels, **options), param_dtype=param_dtype
    )
    super().__init__(flows.Chain([flows.Logit(0.0), couplings]), base)


class DequantizedFlow(flows.Flow):
  """Carries a flow of images together with the dequantizer that is trained with it.

  log p(x), samples and all else are the flow's; log P(q) is bounded by
  `flows.dequantized_log_prob(self, self.dequantizer, q, key)`.

  Args:
    flow: the density of continuous images; its parts are taken over.
    dequantizer: the density of noise given an image.

  Example:
    >>> flow = flows.Flow(flows.Chain([]), flows.StandardNormal((4, 4, 1)))
    >>> noise = VariationalDequantizer((4, 4, 1), width=8, rngs=nnx.Rngs(0))
    >>> both = DequantizedFlow(flow, noise)
    >>> image = jnp.zeros((2, 4, 4, 1), jnp.uint8)
    >>> flows.dequantized_log_prob(both, both.dequantizer, image, jax.random.key(0)).shape
    (2,)
  """

  def __init__(self, flow: flows.Flow, dequantizer: flows.Distribution):
    super().__init__(flow.bijector, flow.base)
    self.dequantizer = dequantizer


def _pixels(image: Int[Array, "b h w c"] | None, shape, num_levels) -> Float[Array, "b h w c"]:
  """Return the levels of a batch of images on [-1, 1]."""
  if image is None or image.shape[1:] != shape or not jnp.issubdtype(image.dtype, jnp.integer):
    got = None if image is None else f"{image.dtype} {image.shape}"
    raise ValueError(
      f"cond must be integer images of shape (b, {', '.join(map(str, shape))}), got {got}"
    )
  return 2 * image.astype(jnp.float32) / (num_levels - 1) - 1
