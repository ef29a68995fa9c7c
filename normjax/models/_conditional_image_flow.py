"""Conditional flows of images, for inverse problems: what may have been measured like this?

Steps are those of "On the Robustness of Normalizing Flows for Inverse Problems in Imaging"
(arXiv 2212.04319). What differs: a small encoder for each scale takes the place of a pretrained
one, and no scale gives channels away, since the priors of such splits are affine maps themselves,
whose inverse may explode whatever the couplings are.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from normjax import flows
from normjax._sizes import check_sizes

TRANSFORMS = {
  "affine": lambda bound: flows.ConditionalAffineTransform(),
  "affine_reciprocal": lambda bound: flows.ConditionalAffineTransform(reciprocal=True),
  "spline": lambda bound: flows.ModifiedRQSTransform(bound=bound),
}


class ConditionEncoder(nnx.Module):
  """Computes features at the pixels of one scale from a measurement of any size.

  The measurement is repeated to that size, or squares of it are moved into channels; then conv3 ->
  relu -> conv3 -> relu.
  """

  def __init__(self, cond_shape, size, features, *, param_dtype, rngs):
    self.cond_shape, (height, width, channels) = cond_shape, cond_shape
    self.repeats, self.factor = _ratio(size, height), _ratio(height, size)
    if (height * self.repeats, self.repeats * width) != (size * self.factor,) * 2:
      raise ValueError(
        f"cond_shape must have sides that divide those of the flow's scales, or multiples of them: "
        f"got {cond_shape} for {size} x {size} pixels"
      )
    self.squeeze = flows.Squeeze(self.factor)
    make = lambda n: nnx.Conv(n, features, (3, 3), param_dtype=param_dtype, rngs=rngs)
    self.conv_0, self.conv_1 = make(channels * self.factor**2), make(features)

  def __call__(self, cond: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
    if cond.shape[1:] != self.cond_shape:
      raise ValueError(
        f"cond must have shape (b, {', '.join(map(str, self.cond_shape))}), got {cond.shape}"
      )
    x = self.squeeze.forward(cond)[0]
    for axis in (1, 2):
      x = jnp.repeat(x, self.repeats, axis=axis)
    return jax.nn.relu(self.conv_1(jax.nn.relu(self.conv_0(x))))


class ConditionalImageFlow(flows.Flow):
  """Models images given measurements of them, without maps whose inverse explodes if so wanted.

  x (B, S, S, C) given cond (B, h, w, c) -> z (B, s, s, 4^L C), s = S / 2^L, N(0, 1). At each of L
  scales: squares of 2 x 2 pixels become channels, then `num_steps` times ActNorm -> 1x1 convolution
  -> `flows.FeatureConditional` -> `flows.SelfConditional`, conditioned on features of `cond`.

  Start it from examples with `flow = flows.init_from_data(flow, images, cond)`.

  Args:
    shape: (S, S, C) of the images; 2^num_levels must divide S.
    cond_shape: (h, w, c) of a measurement. At each scale its sides must divide those of the images
      there, or be multiples of them.
    kind: "affine", whose inverse may multiply by 10^4 at each map; "affine_reciprocal", whose
      `forward` may; or "spline", whose inverse moves an entry by less than 2 bound and a shift.
    bound: half the side of the splines' boxes; means nothing to the other kinds.
    num_levels: L.
    num_steps: steps of each scale, which are scanned.
    width: channels inside the networks of the maps.
    cond_features: channels of the features of `cond`.
    memory: what gradients keep per step: "store", "remat" or "reversible" (see `flows.Scan`).
    param_dtype: dtype of the parameters.
    rngs: the stream `params`.

  Raises:
    ValueError: if there is no such kind, sizes are out of range, or sides do not divide.

  Reference:
    Hong, Park, Chun, "On the robustness of normalizing flows for inverse problems in imaging",
    2022, arXiv 2212.04319.

  Example:
    >>> flow = ConditionalImageFlow(
    ...   (8, 8, 1), (4, 4, 1), num_levels=1, num_steps=1, width=4, rngs=nnx.Rngs(0)
    ... )
    >>> flow.sample(jax.random.key(0), 3, jnp.zeros((3, 4, 4, 1))).shape
    (3, 8, 8, 1)
  """

  def __init__(
    self,
    shape: Sequence[int],
    cond_shape: Sequence[int],
    *,
    kind: str = "spline",
    bound: float = 0.5,
    num_levels: int = 2,
    num_steps: int = 4,
    width: int = 64,
    cond_features: int = 32,
    memory: str = "store",
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    if kind not in TRANSFORMS:
      raise ValueError(f"kind must be one of {sorted(TRANSFORMS)}, got {kind!r}")
    check_sizes(num_steps=num_steps)
    shape, cond_shape = tuple(shape), tuple(cond_shape)
    if num_levels < 1 or len(shape) != 3 or shape[0] != shape[1] or shape[0] % 2**num_levels:
      raise ValueError(
        f"shape must be (side, side, channels) with a side that 2^num_levels = {2**num_levels} "
        f"divides, num_levels at least 1, got {shape} and num_levels = {num_levels}"
      )
    if len(cond_shape) != 3 or min(cond_shape) < 1:
      raise ValueError(f"cond_shape must be (height, width, channels), got {cond_shape}")
    size, _, features = shape
    levels = []
    for _ in range(num_levels):
      size, features = size // 2, 4 * features
      options = {"cond_features": cond_features, "width": width, "param_dtype": param_dtype}

      def make_step(rngs, features=features, options=options):
        return flows.Chain([
          flows.ActNorm(features, param_dtype=param_dtype),
          flows.LULinear(features, param_dtype=param_dtype, rngs=rngs),
          flows.FeatureConditional(features, TRANSFORMS[kind](bound), rngs=rngs, **options),
          flows.SelfConditional(features, TRANSFORMS[kind](bound), rngs=rngs, **options),
        ])  # fmt: skip

      scan = flows.Scan(make_step, num_steps, memory=memory, rngs=rngs)
      encoder = ConditionEncoder(
        cond_shape, size, cond_features, param_dtype=param_dtype, rngs=rngs
      )
      levels += [flows.Squeeze(), flows.Conditioned(scan, encoder)]
    super().__init__(flows.Chain(levels), flows.StandardNormal((size, size, features)))

  def features(self, cond: Float[Array, "b h w c"]) -> Float[Array, "b s s f"]:
    """Return the features of a measurement that the coarsest scale is conditioned on."""
    chain: Any = self.bijector
    return chain.bijectors[-1].features(cond)


def _ratio(large: int, small: int) -> int:
  """Return `large // small`, or 1 if that is 0."""
  return max(1, large // small)
