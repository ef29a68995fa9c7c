"""Normalizing flows: bijectors, the distributions of their latents, and what they are scored by."""

from normjax.flows._act_norm import ActNorm
from normjax.flows._bijector import Bijector
from normjax.flows._causal_conv import causal_conv, causal_conv_inverse
from normjax.flows._chain import Chain, Inverted
from normjax.flows._cinc_conv import CInCConv
from normjax.flows._coupling import Coupling
from normjax.flows._denoise import denoise
from normjax.flows._dependent_data import (
  block_log_prob,
  hard_sigmoid_correlation,
  sigmoid_correlation,
)
from normjax.flows._dependent_flow import DependentFlow
from normjax.flows._dependent_samplers import (
  dependent_blocks,
  dependent_normals,
  warp_abs,
  warp_crescent,
  warp_crescent_cubed,
  warp_sign,
  warp_sine,
)
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
from normjax.flows._emerging_conv import EmergingConv
from normjax.flows._flow import Flow
from normjax.flows._glow_coupling import AdditiveGlowCoupling, GlowCoupling
from normjax.flows._householder_linear import HouseholderLinear, QRLinear, SVDLinear
from normjax.flows._init_from_data import init_from_data
from normjax.flows._injective import (
  decoder_log_volume,
  encoder_log_volume,
  injective_log_prob,
  injective_loss,
  orthogonal_probes,
  volume_surrogate,
)
from normjax.flows._invertible_linear import InvertibleLinear
from normjax.flows._jet import Jet
from normjax.flows._jet_big_vision import jet_from_big_vision
from normjax.flows._kernel_coupling import KERNELS, KernelCoupling
from normjax.flows._kernels import matern12, matern32, matern52, squared_exponential
from normjax.flows._laplace import Laplace
from normjax.flows._leaky_relu import LeakyReLU
from normjax.flows._logistic import Logistic
from normjax.flows._logit import Logit
from normjax.flows._lu_linear import LULinear, SoftplusLULinear, TriangularLinear
from normjax.flows._masked_autoregressive import MaskedAutoregressive
from normjax.flows._modified_spline import modified_spline, modified_spline_inverse
from normjax.flows._multi_scale import MultiScale
from normjax.flows._periodic_conv import PeriodicConv
from normjax.flows._permutation import Permutation
from normjax.flows._potentials import energy_u1, energy_u2, energy_u3, energy_u4
from normjax.flows._quad_coupling import QuadCoupling
from normjax.flows._rational_quadratic_spline import (
  rational_quadratic_spline,
  rational_quadratic_spline_inverse,
)
from normjax.flows._relationship import (
  decompose_relationship,
  relationship_log_prob,
  rotated_log_prob,
)
from normjax.flows._reshape import Reshape, Squeeze
from normjax.flows._residual_network import MADE
from normjax.flows._scan import Scan
from normjax.flows._sigmoid import Sigmoid
from normjax.flows._softplus import Softplus
from normjax.flows._standard_normal import StandardNormal
from normjax.flows._student_t import StudentT
from normjax.flows._tanh import LeakyTanh, Tanh
from normjax.flows._tarflow import TarFlow
from normjax.flows._toy_densities import checkerboard_log_prob, eight_gaussians_log_prob
from normjax.flows._toy_samplers import (
  checkerboard,
  circles,
  eight_gaussians,
  pinwheel,
  two_moons,
  two_spirals,
)
from normjax.flows._tracked_variance import tracked_variance
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

# `warp(z (n, 2)) -> (n, 2)` of the toy data sets in dependent blocks, by the paper's names.
DEPENDENT_WARPS = {
  "abs": warp_abs,
  "crescent": warp_crescent,
  "crescent_cubed": warp_crescent_cubed,
  "sign": warp_sign,
  "sine": warp_sine,
}

# `log_prob(x) -> (n,)`, the true density of those toy data sets that have one in closed form.
TOY_LOG_PROBS = {
  "checkerboard": checkerboard_log_prob,
  "eight_gaussians": eight_gaussians_log_prob,
}

# Linear layers of images that `models.Glow` takes by name: `make(features, rngs=rngs)` gives a
# bijector on images (b, h, w, features).
INVERTIBLE_CONVOLUTIONS = {
  "1x1": LULinear,
  "1x1_dense": InvertibleLinear,
  "cinc": CInCConv,
  "emerging": EmergingConv,
  "periodic": PeriodicConv,
  "reverse": lambda features, *, rngs: Permutation.reverse(features),
  "shuffle": lambda features, *, rngs: Permutation.random(features, rngs=rngs),
}

__all__ = [
  "ActNorm",
  "AdditiveCoupling",
  "AdditiveGlowCoupling",
  "AdditiveTransform",
  "AffineCoupling",
  "AffineTransform",
  "Bijector",
  "CInCConv",
  "Chain",
  "ConditionalAffineTransform",
  "Coupling",
  "DEPENDENT_WARPS",
  "DependentFlow",
  "DiagonalNormal",
  "Distribution",
  "ElementwiseAffine",
  "ElementwiseCoupling",
  "EmergingConv",
  "Flow",
  "GlowCoupling",
  "HouseholderLinear",
  "INVERTIBLE_CONVOLUTIONS",
  "Inverted",
  "InvertibleLinear",
  "Jet",
  "KERNELS",
  "KernelCoupling",
  "LULinear",
  "Laplace",
  "LeakyReLU",
  "LeakyTanh",
  "Logistic",
  "Logit",
  "MADE",
  "MaskedAutoregressive",
  "ModifiedRQSTransform",
  "MultiScale",
  "POTENTIALS",
  "PeriodicConv",
  "Permutation",
  "QRLinear",
  "QuadCoupling",
  "RQSCoupling",
  "RQSTransform",
  "Reshape",
  "SVDLinear",
  "Scan",
  "Sigmoid",
  "Softplus",
  "SoftplusLULinear",
  "Squeeze",
  "StandardNormal",
  "StudentT",
  "TOY_LOG_PROBS",
  "TOY_SAMPLERS",
  "Tanh",
  "TarFlow",
  "Transform",
  "TriangularLinear",
  "Uniform",
  "bits_per_dim",
  "block_log_prob",
  "causal_conv",
  "causal_conv_inverse",
  "checkerboard",
  "checkerboard_log_prob",
  "circles",
  "decoder_log_volume",
  "decompose_relationship",
  "denoise",
  "dependent_blocks",
  "dependent_normals",
  "dequantize",
  "eight_gaussians",
  "eight_gaussians_log_prob",
  "encoder_log_volume",
  "energy_u1",
  "energy_u2",
  "energy_u3",
  "energy_u4",
  "hard_sigmoid_correlation",
  "init_from_data",
  "injective_log_prob",
  "injective_loss",
  "jet_from_big_vision",
  "mask_to_order",
  "matern12",
  "matern32",
  "matern52",
  "modified_spline",
  "modified_spline_inverse",
  "orthogonal_probes",
  "pinwheel",
  "quantize",
  "rational_quadratic_spline",
  "rational_quadratic_spline_inverse",
  "relationship_log_prob",
  "rotated_log_prob",
  "sigmoid_correlation",
  "squared_exponential",
  "tracked_variance",
  "two_moons",
  "two_spirals",
  "volume_surrogate",
  "warp_abs",
  "warp_crescent",
  "warp_crescent_cubed",
  "warp_sign",
  "warp_sine",
]
