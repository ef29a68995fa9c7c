"""Looking into models: how activations and gradients change from layer to layer."""

from normjax.diagnostics._figure import draw_profile
from normjax.diagnostics._mahalanobis import Mahalanobis, fit_mahalanobis, mahalanobis_score
from normjax.diagnostics._profile import STATISTICS, Profile, profile

__all__ = [
  "Mahalanobis",
  "Profile",
  "STATISTICS",
  "draw_profile",
  "fit_mahalanobis",
  "mahalanobis_score",
  "profile",
]
