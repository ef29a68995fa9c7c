"""Normalization of activations: pure functions and the NNX modules around them."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from flax import nnx

from normjax.norms._adaptive_instance_norm import (
  adaptive_instance_norm,
  feature_adaptive_instance_norm,
)
from normjax.norms._batch_norm import BatchNorm, batch_norm
from normjax.norms._content_aware_adaptive_instance_norm import (
  content_aware_adaptive_instance_norm,
)
from normjax.norms._crms_norm import CRMSNorm, compress, crms_norm, decompress
from normjax.norms._cross_modal_adaptive_instance_norm import cross_modal_adaptive_instance_norm
from normjax.norms._fade import FADE, fade
from normjax.norms._fix_norm import FixNorm, fix_norm, fix_norm_embed, fix_norm_logits
from normjax.norms._instance_statistics import instance_statistics
from normjax.norms._l2_normalize import L2Normalize, l2_normalize
from normjax.norms._layer_norm import LayerNorm, layer_norm
from normjax.norms._learnable_region_norm import (
  LearnableRegionNorm,
  learnable_region_norm,
  region_importance,
)
from normjax.norms._lp_normalize import LpNormalize, lp_normalize
from normjax.norms._nearest_resize import nearest_resize
from normjax.norms._prenormalize import mad_prenormalize, prenormalizer_gain
from normjax.norms._region_norm import RegionNorm, region_norm
from normjax.norms._region_normalize import region_normalize
from normjax.norms._rms_norm import RMSNorm, rms_norm
from normjax.norms._scale_norm import ScaleNorm, scale_norm
from normjax.norms._spade import SPADE, spade

__all__ = [
  "BatchNorm",
  "CRMSNorm",
  "FADE",
  "FixNorm",
  "L2Normalize",
  "LayerNorm",
  "LearnableRegionNorm",
  "LpNormalize",
  "NAMES",
  "RMSNorm",
  "RegionNorm",
  "SPADE",
  "ScaleNorm",
  "adaptive_instance_norm",
  "batch_norm",
  "compress",
  "content_aware_adaptive_instance_norm",
  "crms_norm",
  "cross_modal_adaptive_instance_norm",
  "decompress",
  "fade",
  "feature_adaptive_instance_norm",
  "fix_norm",
  "fix_norm_embed",
  "fix_norm_logits",
  "instance_statistics",
  "l2_normalize",
  "layer_norm",
  "learnable_region_norm",
  "lp_normalize",
  "mad_prenormalize",
  "make",
  "nearest_resize",
  "prenormalizer_gain",
  "region_importance",
  "region_norm",
  "region_normalize",
  "rms_norm",
  "scale_norm",
  "spade",
]

# The layers that keep the shape of their input, by the names that configs use.
NAMES: dict[str, Callable[..., nnx.Module]] = {
  "batch_norm": BatchNorm,
  "l2_normalize": L2Normalize,
  "layer_norm": LayerNorm,
  "lp_normalize": LpNormalize,
  "region_norm_learnable": LearnableRegionNorm,
  "rms_norm": RMSNorm,
  "scale_norm": ScaleNorm,
}


def make(name: str, num_features: int, *, rngs: nnx.Rngs, **options: Any) -> nnx.Module:
  """Build the norm of this name.

  Every norm in `NAMES` maps (..., num_features) to (..., num_features).

  Args:
    name: a key of `NAMES`.
    num_features: size of the normalized axis.
    rngs: source of the parameters' keys.
    **options: further keyword arguments of the norm's constructor.

  Returns:
    The NNX module.

  Raises:
    ValueError: if there is no such norm, or if it has no such option.

  Example:
    >>> type(make("rms_norm", 8, rngs=nnx.Rngs(0), epsilon=1e-5)).__name__
    'RMSNorm'
  """
  if name not in NAMES:
    raise ValueError(f"name must be a norm of normjax, got {name!r}{_nearest(name, NAMES)}")
  arguments = inspect.signature(NAMES[name].__init__).parameters
  known = set(arguments) - {"self", "num_features", "rngs"}
  for option in options:
    if option not in known:
      raise ValueError(f"{name} has no option {option!r}{_nearest(option, known)}")
  return NAMES[name](num_features, rngs=rngs, **options)


def _nearest(given: str, known: Iterable[str]) -> str:
  close = difflib.get_close_matches(given, list(known), n=1)
  return f": did you mean {close[0]!r}?" if close else f": use one of {', '.join(sorted(known))}"
