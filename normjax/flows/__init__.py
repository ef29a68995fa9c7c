"""Normalizing flows: bijectors, the distributions of their latents, and what they are scored by."""

from normjax.flows._act_norm import ActNorm
from normjax.flows._batch_norm_flow import BatchNormFlow, update_statistics
from normjax.flows._bijector import Bijector
from normjax.flows._block_autoregressive import BlockAutoregressive
from normjax.flows._causal_conv import causal_conv, causal_conv_inverse
from normjax.flows._cdfs import CauchyCDF, GumbelCDF, NormalCDF
from normjax.flows._chain import Chain, Inverted
from normjax.flows._cinc_conv import CInCConv
from normjax.flows._circular_transforms import CircularRQSTransform, CircularShiftTransform
from normjax.flows._conditional_normal import ClassConditionalNormal, ConditionalDiagonalNormal
from normjax.flows._conditioned import Conditioned
from normjax.flows._continuous_flow import ContinuousFlow
from normjax.flows._coupling import Coupling
from normjax.flows._cubic_spline import cubic_spline, cubic_spline_inverse
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
from normjax.flows._discrete_cosine import DiscreteCosine
from normjax.flows._distribution import Distribution
from normjax.flows._elementwise import Elementwise
from normjax.flows._elementwise_affine import ElementwiseAffine
from normjax.flows._elementwise_coupling import (
  AdditiveCoupling,
  AffineCoupling,
  ElementwiseCoupling,
  RQSCoupling,
  mask_to_order,
)
from normjax.flows._emerging_conv import EmergingConv
from normjax.flows._energy import inpaint, langevin, log_normalizer, score
from normjax.flows._exp import Exp
from normjax.flows._feature_conditional import FeatureConditional, SelfConditional
from normjax.flows._fit import FitResult, fit
from normjax.flows._flow import Flow
from normjax.flows._gaussianization import GaussianizationTransform
from normjax.flows._gin_coupling import GINCoupling
from normjax.flows._glow_coupling import AdditiveGlowCoupling, GlowCoupling
from normjax.flows._haar import HaarSqueeze
from normjax.flows._householder_flow import HouseholderFlow, householder, householder_inverse
from normjax.flows._householder_linear import HouseholderLinear, QRLinear, SVDLinear
from normjax.flows._image_coupling import ImageCoupling, channel_mask, checkerboard_mask
from normjax.flows._init_from_data import init_from_data
from normjax.flows._injective import (
  decoder_log_volume,
  encoder_log_volume,
  injective_log_prob,
  injective_loss,
  orthogonal_probes,
  volume_surrogate,
)
from normjax.flows._injective_cycles import injective_cycles
from normjax.flows._invert_monotone import invert_monotone
from normjax.flows._invertible_linear import InvertibleLinear
from normjax.flows._jet import Jet
from normjax.flows._jet_big_vision import jet_from_big_vision
from normjax.flows._joint import Joint
from normjax.flows._kernel_coupling import KERNELS, KernelCoupling
from normjax.flows._kernels import matern12, matern32, matern52, squared_exponential
from normjax.flows._laplace import Laplace
from normjax.flows._leaky_relu import LeakyReLU
from normjax.flows._linear_spline import linear_spline, linear_spline_inverse
from normjax.flows._logistic import Logistic
from normjax.flows._logit import Logit
from normjax.flows._low_rank_linear import LowRankLinear
from normjax.flows._lu_linear import LULinear, SoftplusLULinear, TriangularLinear
from normjax.flows._made import MADE
from normjax.flows._masked_autoregressive import MaskedAutoregressive
from normjax.flows._mixture import GaussianMixture, Mixture
from normjax.flows._modified_spline import modified_spline, modified_spline_inverse
from normjax.flows._monotone import Monotone
from normjax.flows._multi_scale import MultiScale
from normjax.flows._multivariate_normal import MultivariateNormal
from normjax.flows._padded_conv import PaddedConv
from normjax.flows._parts import Concatenate, Indexed
from normjax.flows._periodic_conv import PeriodicConv
from normjax.flows._periodic_features import periodic_features
from normjax.flows._permutation import Permutation
from normjax.flows._planar import PlanarFlow, planar, planar_inverse
from normjax.flows._polynomial_transforms import BernsteinTransform, SumOfSquaresTransform
from normjax.flows._potentials import energy_u1, energy_u2, energy_u3, energy_u4
from normjax.flows._probes import with_probes
from normjax.flows._quad_coupling import QuadCoupling
from normjax.flows._quad_glow_coupling import QuadGlowCoupling
from normjax.flows._quadratic_spline import quadratic_spline, quadratic_spline_inverse
from normjax.flows._radial import RadialFlow, radial, radial_inverse
from normjax.flows._rational_quadratic_spline import (
  rational_quadratic_spline,
  rational_quadratic_spline_inverse,
)
from normjax.flows._relationship import (
  decompose_relationship,
  relationship_log_prob,
  rotated_log_prob,
)
from normjax.flows._resampled import Resampled
from normjax.flows._reshape import Reshape, Squeeze
from normjax.flows._residual_flow import ResidualFlow
from normjax.flows._residual_log_det import (
  residual_log_det,
  roulette_log_det,
  series_log_det,
)
from normjax.flows._reverse_kl import (
  effective_sample_size,
  importance_log_weights,
  renyi_bound,
  reverse_kl,
)
from normjax.flows._rotation_linear import RotationLinear
from normjax.flows._sampler import Sampler, pulled_back_potential, to_distrax, to_numpyro
from normjax.flows._scan import Scan
from normjax.flows._score_matching import (
  contrastive_loss,
  denoising_score_matching,
  finite_difference_score_matching,
  sliced_score_matching,
)
from normjax.flows._sigmoid import Sigmoid
from normjax.flows._sigmoidal_transforms import DeepSigmoidalTransform, LogisticMixtureTransform
from normjax.flows._signed_power import SignedPower
from normjax.flows._smooth_affine_coupling import SmoothAffineCoupling
from normjax.flows._smooth_leaky_relu import SmoothLeakyReLU
from normjax.flows._softclip import Softclip
from normjax.flows._softplus import Softplus
from normjax.flows._spline_transforms import (
  BoundedRQSTransform,
  CubicSplineTransform,
  LinearSplineTransform,
  QuadraticSplineTransform,
)
from normjax.flows._standard_normal import StandardNormal
from normjax.flows._student_t import StudentT
from normjax.flows._sylvester import SylvesterFlow, sylvester, sylvester_inverse
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
from normjax.flows._truncated_normal import TruncatedNormal
from normjax.flows._unconstrained_monotone import UMNNTransform
from normjax.flows._uniform import Uniform
from normjax.flows._variational_dequantization import dequantized_log_prob
from normjax.flows._von_mises import VonMises

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

# Linear layers of images that `models.Glow` takes by name: `make(features, param_dtype=dtype,
# rngs=rngs)` gives a bijector on images (b, h, w, features).
INVERTIBLE_CONVOLUTIONS = {
  "1x1": LULinear,
  "1x1_dense": InvertibleLinear,
  "cinc": CInCConv,
  "cinc_full": lambda features, **options: CInCConv(features, tap="full", **options),
  # Its kernels start near the identity: channels are mixed before, as in the paper.
  "emerging": lambda features, **options: Chain(
    [LULinear(features, **options), EmergingConv(features, **options)]
  ),
  "periodic": PeriodicConv,
  "reverse": lambda features, **_: Permutation.reverse(features),
  "shuffle": lambda features, *, rngs, **_: Permutation.random(features, rngs=rngs),
}

__all__ = [
  "ActNorm", "AdditiveCoupling", "AdditiveGlowCoupling", "AdditiveTransform", "AffineCoupling",
  "AffineTransform", "BatchNormFlow", "BernsteinTransform", "Bijector", "BlockAutoregressive",
  "BoundedRQSTransform", "CInCConv", "CauchyCDF", "Chain", "CircularRQSTransform",
  "CircularShiftTransform", "ClassConditionalNormal", "Concatenate", "ConditionalAffineTransform",
  "ConditionalDiagonalNormal", "Conditioned", "ContinuousFlow", "Coupling", "CubicSplineTransform",
  "DEPENDENT_WARPS", "DeepSigmoidalTransform", "DependentFlow", "DiagonalNormal", "DiscreteCosine",
  "Distribution", "Elementwise", "ElementwiseAffine", "ElementwiseCoupling", "EmergingConv", "Exp",
  "FeatureConditional", "FitResult", "Flow", "GINCoupling", "GaussianMixture",
  "GaussianizationTransform", "GlowCoupling", "GumbelCDF", "HaarSqueeze", "HouseholderFlow",
  "HouseholderLinear", "INVERTIBLE_CONVOLUTIONS", "ImageCoupling", "Indexed", "Inverted",
  "InvertibleLinear", "Jet", "Joint", "KERNELS", "KernelCoupling", "LULinear", "Laplace",
  "LeakyReLU", "LeakyTanh", "LinearSplineTransform", "Logistic", "LogisticMixtureTransform",
  "Logit", "LowRankLinear", "MADE", "MaskedAutoregressive", "Mixture", "ModifiedRQSTransform",
  "Monotone", "MultiScale", "MultivariateNormal", "NormalCDF", "POTENTIALS", "PaddedConv",
  "PeriodicConv", "Permutation", "PlanarFlow", "QRLinear", "QuadCoupling", "QuadGlowCoupling",
  "QuadraticSplineTransform", "RQSCoupling", "RQSTransform", "RadialFlow", "Resampled", "Reshape",
  "ResidualFlow", "RotationLinear", "SVDLinear", "Sampler", "Scan", "SelfConditional", "Sigmoid",
  "SignedPower", "SmoothAffineCoupling", "SmoothLeakyReLU", "Softclip", "Softplus",
  "SoftplusLULinear", "Squeeze", "StandardNormal", "StudentT", "SumOfSquaresTransform",
  "SylvesterFlow", "TOY_LOG_PROBS", "TOY_SAMPLERS", "Tanh", "TarFlow", "Transform",
  "TriangularLinear", "TruncatedNormal", "UMNNTransform", "Uniform", "VonMises", "bits_per_dim",
  "block_log_prob", "causal_conv", "causal_conv_inverse", "channel_mask", "checkerboard",
  "checkerboard_log_prob", "checkerboard_mask", "circles", "contrastive_loss", "cubic_spline",
  "cubic_spline_inverse", "decoder_log_volume", "decompose_relationship", "denoise",
  "denoising_score_matching", "dependent_blocks", "dependent_normals", "dequantize",
  "dequantized_log_prob", "effective_sample_size", "eight_gaussians", "eight_gaussians_log_prob",
  "encoder_log_volume", "energy_u1", "energy_u2", "energy_u3", "energy_u4",
  "finite_difference_score_matching", "fit", "hard_sigmoid_correlation", "householder",
  "householder_inverse", "importance_log_weights", "init_from_data", "injective_cycles",
  "injective_log_prob", "injective_loss", "inpaint", "invert_monotone", "jet_from_big_vision",
  "langevin", "linear_spline", "linear_spline_inverse", "log_normalizer", "mask_to_order",
  "matern12", "matern32", "matern52", "modified_spline", "modified_spline_inverse",
  "orthogonal_probes", "periodic_features", "pinwheel", "planar", "planar_inverse",
  "pulled_back_potential", "quadratic_spline", "quadratic_spline_inverse", "quantize", "radial",
  "radial_inverse", "rational_quadratic_spline", "rational_quadratic_spline_inverse",
  "relationship_log_prob", "renyi_bound", "residual_log_det", "reverse_kl", "rotated_log_prob",
  "roulette_log_det", "score", "series_log_det", "sigmoid_correlation", "sliced_score_matching",
  "squared_exponential", "sylvester", "sylvester_inverse", "to_distrax", "to_numpyro",
  "tracked_variance", "two_moons", "two_spirals", "update_statistics", "volume_surrogate",
  "warp_abs", "warp_crescent", "warp_crescent_cubed", "warp_sign", "warp_sine", "with_probes",
]  # fmt: skip
