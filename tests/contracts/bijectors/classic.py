"""Rows of planar and other classic flows, masked images, batch normalization and parts."""

import jax.numpy as jnp

from normjax import flows
from tests.contracts.bijectors._row import (
  BAD_CONTEXTS,
  BATCH,
  CONTEXT,
  FLAT,
  FLAT_COND,
  Row,
  real,
  unit,
)

ORDER = jnp.array([2, 0, 3, 1])
COND = {"cond_dim": 2, "width": 4}
SMALL = {"width": 4, "depth": 1}
FREE = {"shape": (2, 3), "bad_shapes": ((), (0, 2, 3))}
IMAGE = {"shape": (2, 2, 2), "bad_shapes": ((BATCH, 2, 4, 1), (BATCH, 8), (2, 2, 2))}


def _angles(seed, shape):
  return 6 * unit(seed, shape) - 3


def _elementwise(transform):
  return lambda rngs: flows.Elementwise(transform, (4,))


ROWS = {
  "BatchNormFlow": Row(
    lambda rngs: flows.BatchNormFlow(4, use_running_average=True),
    shape=(2, 1, 4),
    bad_shapes=((BATCH, 2, 1, 3), (BATCH,), (0, 2, 1, 4)),
  ),
  "CauchyCDF": Row(lambda rngs: flows.CauchyCDF(), **FREE, latents=unit),
  "Concatenate": Row(
    lambda rngs: flows.Concatenate(
      # Determinants of 2 x 2 take no decomposition, whose absence is looked for.
      [flows.SmoothLeakyReLU(0.3), flows.InvertibleLinear(3, rngs=rngs)],
      [1, 3],
    ),
    shape=(4,),
    bad_shapes=((BATCH, 3), (BATCH,), (4,)),
  ),
  "DiscreteCosine": Row(
    lambda rngs: flows.DiscreteCosine(axis=1), shape=(4, 2), bad_shapes=((BATCH,), (0, 4, 2))
  ),
  "Elementwise": Row(
    lambda rngs: flows.Elementwise(flows.CubicSplineTransform(3), (4,), rngs=rngs, **COND),
    **FLAT_COND,
  ),
  "Elementwise/bounded": Row(
    _elementwise(flows.BoundedRQSTransform(3)), **FLAT, data=unit, latents=unit
  ),
  "Elementwise/circular": Row(
    _elementwise(flows.CircularRQSTransform(3)), **FLAT, data=_angles, latents=_angles
  ),
  "Elementwise/linear": Row(_elementwise(flows.LinearSplineTransform(3)), **FLAT),
  "Elementwise/quadratic": Row(_elementwise(flows.QuadraticSplineTransform(3)), **FLAT),
  "ElementwiseCoupling/periods": Row(
    lambda rngs: flows.ElementwiseCoupling(
      flows.CircularRQSTransform(3), ORDER, periods=[jnp.inf, *3 * [2 * jnp.pi]], rngs=rngs, **SMALL
    ),
    **FLAT,
    data=_angles,
    latents=_angles,
  ),
  "Exp": Row(
    lambda rngs: flows.Exp(), **FREE, latents=lambda seed, shape: jnp.exp(real(seed, shape))
  ),
  "GINCoupling": Row(lambda rngs: flows.GINCoupling(ORDER, rngs=rngs, **SMALL), **FLAT),
  "GumbelCDF": Row(lambda rngs: flows.GumbelCDF(), **FREE, latents=unit),
  "HaarSqueeze": Row(
    lambda rngs: flows.HaarSqueeze(),
    shape=(2, 4, 1),
    bad_shapes=((BATCH, 3, 4, 1), (BATCH, 2, 4), (0, 2, 4, 1)),
    latent_shape=(1, 2, 4),
    bad_latents=((BATCH, 1, 2, 3), (BATCH, 2, 4)),
  ),
  "HouseholderFlow": Row(
    lambda rngs: flows.HouseholderFlow(4, num_reflections=3, rngs=rngs, **COND), **FLAT_COND
  ),
  "ImageCoupling": Row(
    lambda rngs: flows.ImageCoupling(
      flows.AffineTransform("tanh"),
      flows.checkerboard_mask((2, 2, 2)),
      rngs=rngs,
      cond_dim=2,
      **SMALL,
    ),
    **IMAGE,
    cond=CONTEXT,
    bad_conds=BAD_CONTEXTS,
  ),
  "Indexed": Row(
    lambda rngs: flows.Indexed(flows.InvertibleLinear(3, rngs=rngs), [3, 1, 0]),
    shape=(4,),
    bad_shapes=((BATCH, 3), (BATCH,), (0, 4)),
  ),
  "LowRankLinear": Row(
    lambda rngs: flows.LowRankLinear(4, rank=2, rngs=rngs),
    shape=(2, 1, 4),
    bad_shapes=((BATCH, 2, 1, 3), (BATCH,), (0, 2, 1, 4)),
  ),
  "Monotone": Row(lambda rngs: flows.Monotone(lambda x: x + jnp.tanh(x)), **FREE),
  "NormalCDF": Row(lambda rngs: flows.NormalCDF(), **FREE, latents=unit),
  "PlanarFlow": Row(lambda rngs: flows.PlanarFlow(4, rngs=rngs, **COND), **FLAT_COND),
  "RadialFlow": Row(lambda rngs: flows.RadialFlow(4, rngs=rngs, **COND), **FLAT_COND),
  "RotationLinear": Row(
    lambda rngs: flows.RotationLinear(4, rngs=rngs), shape=(4,), bad_shapes=((BATCH, 3), (4,))
  ),
  "RotationLinear/exp": Row(
    lambda rngs: flows.RotationLinear(3, method="exp", rngs=rngs),
    shape=(3,),
    bad_shapes=((BATCH, 4),),
  ),
  "SignedPower": Row(lambda rngs: flows.SignedPower(1.5), **FREE),
  "Softclip": Row(
    lambda rngs: flows.Softclip(2.0), **FREE, latents=lambda seed, shape: 4 * unit(seed, shape) - 2
  ),
  "SylvesterFlow": Row(
    lambda rngs: flows.SylvesterFlow(4, num_planes=3, rngs=rngs, **COND), **FLAT_COND
  ),
}
