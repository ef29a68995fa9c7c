"""Normalizing flows: bijectors, the distributions of their latents, and what they are scored by."""

from normjax.flows._bijector import Bijector
from normjax.flows._chain import Chain, Inverted
from normjax.flows._coupling import Coupling
from normjax.flows._dequantization import bits_per_dim, dequantize, quantize
from normjax.flows._diagonal_normal import DiagonalNormal
from normjax.flows._distribution import Distribution
from normjax.flows._elementwise_affine import ElementwiseAffine
from normjax.flows._elementwise_coupling import (
  AdditiveCoupling,
  AffineCoupling,
  ElementwiseCoupling,
  RQSCoupling,
  mask_to_order,
)
from normjax.flows._flow import Flow
from normjax.flows._jet import Jet
from normjax.flows._jet_big_vision import jet_from_big_vision
from normjax.flows._laplace import Laplace
from normjax.flows._logistic import Logistic
from normjax.flows._logit import Logit
from normjax.flows._masked_autoregressive import MaskedAutoregressive
from normjax.flows._modified_spline import modified_spline, modified_spline_inverse
from normjax.flows._potentials import energy_u1, energy_u2, energy_u3, energy_u4
from normjax.flows._rational_quadratic_spline import (
  rational_quadratic_spline,
  rational_quadratic_spline_inverse,
)
from normjax.flows._residual_network import MADE
from normjax.flows._scan import Scan
from normjax.flows._standard_normal import StandardNormal
from normjax.flows._student_t import StudentT
from normjax.flows._toy_densities import checkerboard_log_prob, eight_gaussians_log_prob
from normjax.flows._toy_samplers import (
  checkerboard,
  circles,
  eight_gaussians,
  pinwheel,
  two_moons,
  two_spirals,
)
from normjax.flows._transforms import (
  AdditiveTransform,
  AffineTransform,
  ConditionalAffineTransform,
  ModifiedRQSTransform,
  RQSTransform,
  Transform,
)
from normjax.flows._uniform import Uniform

# Energies U of two-dimensional densities p(z) ~ exp(-U(z)), by their names in the literature.
POTENTIALS = {"U1": energy_u1, "U2": energy_u2, "U3": energy_u3, "U4": energy_u4}

# `sampler(key, n) -> (n, 2)` of every two-dimensional toy data set.
TOY_SAMPLERS = {
  "checkerboard": checkerboard,
  "circles": circles,
  "eight_gaussians": eight_gaussians,
  "pinwheel": pinwheel,
  "two_moons": two_moons,
  "two_spirals": two_spirals,
}

# `log_prob(x) -> (n,)`, the true density of those toy data sets that have one in closed form.
TOY_LOG_PROBS = {
  "checkerboard": checkerboard_log_prob,
  "eight_gaussians": eight_gaussians_log_prob,
}

__all__ = [
  "AdditiveCoupling",
  "AdditiveTransform",
  "AffineCoupling",
  "AffineTransform",
  "Bijector",
  "Chain",
  "ConditionalAffineTransform",
  "Coupling",
  "DiagonalNormal",
  "Distribution",
  "ElementwiseAffine",
  "ElementwiseCoupling",
  "Flow",
  "Inverted",
  "Jet",
  "Laplace",
  "Logistic",
  "Logit",
  "MADE",
  "MaskedAutoregressive",
  "ModifiedRQSTransform",
  "POTENTIALS",
  "RQSCoupling",
  "RQSTransform",
  "Scan",
  "StandardNormal",
  "StudentT",
  "TOY_LOG_PROBS",
  "TOY_SAMPLERS",
  "Transform",
  "Uniform",
  "bits_per_dim",
  "checkerboard",
  "checkerboard_log_prob",
  "circles",
  "dequantize",
  "eight_gaussians",
  "eight_gaussians_log_prob",
  "energy_u1",
  "energy_u2",
  "energy_u3",
  "energy_u4",
  "jet_from_big_vision",
  "mask_to_order",
  "modified_spline",
  "modified_spline_inverse",
  "pinwheel",
  "quantize",
  "rational_quadratic_spline",
  "rational_quadratic_spline_inverse",
  "two_moons",
  "two_spirals",
]
