"""Glow: ActNorm, an invertible convolution and a coupling, many times at several scales.

What differs from the authors' code (https://arxiv.org/abs/1807.03039), none of which changes the
density: depth is a scan, latents are standardized (see `normjax.flows.MultiScale`), and the start
from data is a call of `normjax.flows.init_from_data`.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from normjax import flows
from normjax._sizes import check_sizes

COUPLINGS = {
  "additive": flows.AdditiveGlowCoupling,
  "affine": flows.GlowCoupling,
  "quad": flows.QuadGlowCoupling,
}


class _Levels(flows.MultiScale):
  """The levels of Glow, none of which takes a condition: labels go to the last prior or nowhere."""

  def _up(self, x, cond, apply):
    return super()._up(x, self._checked(cond), apply)

  def _down(self, z, cond, apply):
    return super()._down(z, self._checked(cond), apply)

  def _checked(self, cond):
    if self.num_classes is None and cond is not None:
      raise ValueError(f"cond must be None, since this Glow has no num_classes, got {cond!r}")
    return cond


class Glow(flows.Flow):
  """Models images by a multi-scale flow under a standard normal.

  Each of `num_levels` levels squeezes 2 x 2 pixels into channels, applies `num_steps` times
  ActNorm -> invertible convolution -> coupling, and gives half of the channels to the latents, with
  a learned prior: x (B, H, W, C) -> z (B, H W C), all of them N(0, 1).

  Start it from a batch of images with `glow = flows.init_from_data(glow, images)`.

  Args:
    shape: (H, W, C) of the images; 2^num_levels must divide H and W.
    num_levels: how many scales.
    num_steps: how many steps at each, which are scanned.
    width: channels inside the couplings' networks.
    convolution: a key of `flows.INVERTIBLE_CONVOLUTIONS`.
    coupling: "affine", "additive" or "quad" (`flows.QuadGlowCoupling`).
    use_act_norm: whether the couplings' networks hold ActNorms, see `flows.GlowCoupling`.
    edge_bias: whether 3x3 convolutions are told where the padding is, see `flows.GlowCoupling`.
    num_classes: K, for class labels (b,) in 0..K as `cond`, on which the last level's prior
      depends; K, or no cond, means "no label".
    memory: what gradients keep per step: "store", "remat" or "reversible" (see `flows.Scan`).
    param_dtype: dtype of the parameters.
    rngs: the stream `params`.

  Raises:
    ValueError: if a name is unknown, sizes are out of range, the sides are not divisible, or labels
      come without `num_classes`.

  Reference:
    Kingma, Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions", 2018,
    arXiv 1807.03039.

  Example:
    >>> import jax
    >>> glow = Glow((8, 8, 1), num_levels=2, num_steps=2, width=8, rngs=nnx.Rngs(0))
    >>> glow.sample(jax.random.key(0), 3, temperature=0.7).shape
    (3, 8, 8, 1)
  """

  def __init__(
    self,
    shape: Sequence[int],
    *,
    num_levels: int = 3,
    num_steps: int = 32,
    width: int = 512,
    convolution: str = "1x1",
    coupling: str = "affine",
    use_act_norm: bool = True,
    edge_bias: bool = False,
    num_classes: int | None = None,
    memory: str = "reversible",
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    make_convolution = _entry("convolution", convolution, flows.INVERTIBLE_CONVOLUTIONS)
    make_coupling = _entry("coupling", coupling, COUPLINGS)
    check_sizes(num_steps=num_steps)

    def make_level(shape, rngs):
      features = shape[-1]

      def make_step(rngs):
        return flows.Chain(
          [
            flows.ActNorm(features, param_dtype=param_dtype),
            make_convolution(features, param_dtype=param_dtype, rngs=rngs),
            make_coupling(
              features,
              width=width,
              use_act_norm=use_act_norm,
              edge_bias=edge_bias,
              param_dtype=param_dtype,
              rngs=rngs,
            ),
          ]
        )

      return flows.Scan(make_step, num_steps, memory=memory, rngs=rngs)

    bijector = _Levels(
      shape,
      make_level,
      num_levels,
      num_classes=num_classes,
      edge_bias=edge_bias,
      param_dtype=param_dtype,
      rngs=rngs,
    )
    super().__init__(bijector, flows.StandardNormal((math.prod(bijector.shape),)))


def _entry(name: str, key: str, table: dict[str, Any]) -> Any:
  if key not in table:
    raise ValueError(f"{name} must be one of {sorted(table)}, got {key!r}")
  return table[key]
