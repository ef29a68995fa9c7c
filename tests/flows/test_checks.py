"""What the shared checks refuse, in every class or function that has to call them."""

import jax.numpy as jnp
import pytest
from flax import nnx

from normjax import flows

AFFINE, ORDER = flows.AffineTransform(), jnp.arange(2)
CONDITIONAL = {
  "AffineCoupling": (ORDER,),
  "ContinuousFlow": (2,),
  "Elementwise": (AFFINE, (2,)),
  "ImageCoupling": (AFFINE, flows.checkerboard_mask((2, 2, 1))),
  "KernelCoupling": (ORDER, 1),
  "MADE": (2, 1),
  "MaskedAutoregressive": (2,),
  "PlanarFlow": (2,),
  "ResidualFlow": (2,),
  "SmoothAffineCoupling": (ORDER,),
}


@pytest.mark.parametrize("name", CONDITIONAL)
def test_conditions_without_features_are_refused(name):
  options = {"num_points": 1} if name == "KernelCoupling" else {}
  for cond_dim in (0, -1):
    with pytest.raises(ValueError, match=f"cond_dim must be at least 1, got {cond_dim}"):
      getattr(flows, name)(*CONDITIONAL[name], cond_dim=cond_dim, rngs=nnx.Rngs(0), **options)


def test_batches_that_are_no_vectors_are_refused():
  one, square, scalar = jnp.ones(3), jnp.ones((3, 3)), jnp.ones(())
  for call in (
    lambda x: flows.householder(x, square),
    lambda x: flows.planar(x, one, one, scalar),
    lambda x: flows.radial(x, one, scalar, scalar),
    lambda x: flows.sylvester(x, square, square, square, one),
    lambda x: flows.residual_log_det(lambda v: v, x),
  ):
    for x in (one, jnp.ones((2, 1, 3))):
      with pytest.raises(ValueError, match=r"x must have shape \(b, d\), got"):
        call(x)
