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
from normjax.norms._attentive_batch_norm import AttentiveBatchNorm, attentive_batch_norm
from normjax.norms._batch_norm import BatchNorm, batch_norm
from normjax.norms._batch_norm_from_torch import batch_norm_from_torch
from normjax.norms._batch_renorm import BatchRenorm, batch_renorm
from normjax.norms._cc_norm import CCNorm, cc_norm
from normjax.norms._content_aware_adaptive_instance_norm import (
  content_aware_adaptive_instance_norm,
)
from normjax.norms._crms_norm import CRMSNorm, compress, crms_norm, decompress
from normjax.norms._cross_modal_adaptive_instance_norm import cross_modal_adaptive_instance_norm
from normjax.norms._dynamic_erf import DynamicErf, dynamic_erf
from normjax.norms._dynamic_tanh import DynamicTanh, dynamic_tanh
from normjax.norms._elementwise_layer_norm import ElementwiseLayerNorm, elementwise_layer_norm
from normjax.norms._fade import FADE, fade
from normjax.norms._feature_norm import FeatureNorm, feature_norm
from normjax.norms._fix_norm import FixNorm, fix_norm, fix_norm_embed, fix_norm_logits
from normjax.norms._group_norm import GroupNorm, group_norm
from normjax.norms._instance_norm import InstanceNorm, instance_norm
from normjax.norms._instance_statistics import instance_statistics
from normjax.norms._l2_normalize import L2Normalize, l2_normalize
from normjax.norms._layer_norm import LayerNorm, layer_norm
from normjax.norms._learnable_region_norm import (
  LearnableRegionNorm,
  learnable_region_norm,
  region_importance,
)
from normjax.norms._lp_normalize import LpNormalize, lp_normalize
from normjax.norms._moment_exchange import (
  moment_exchange,
  moment_exchange_draw,
  moment_exchange_labels,
  moment_exchange_loss,
)
from normjax.norms._nearest_resize import nearest_resize
from normjax.norms._online_norm import OnlineNorm, online_norm
from normjax.norms._pc_norm import PCNorm, pc_norm
from normjax.norms._positional_norm import PositionalNorm, moment_shortcut, positional_norm
from normjax.norms._power_norm import PowerNorm, power_norm
from normjax.norms._power_norm_v import PowerNormV, power_norm_v
from normjax.norms._prenormalize import mad_prenormalize, prenormalizer_gain
from normjax.norms._recalibrate import recalibrate
from normjax.norms._region_norm import RegionNorm, region_norm
from normjax.norms._region_normalize import region_normalize
from normjax.norms._replace import replace_layer_norms
from normjax.norms._rms_norm import RMSNorm, rms_norm
from normjax.norms._sc_norm import SCNorm, sc_norm
from normjax.norms._scale_norm import ScaleNorm, scale_norm
from normjax.norms._spade import SPADE, spade
from normjax.norms._unified_norm import UnifiedNorm, unified_norm

__all__ = [
  "AttentiveBatchNorm",
  "BatchNorm",
  "BatchRenorm",
  "CCNorm",
  "CRMSNorm",
  "DynamicErf",
  "DynamicTanh",
  "ElementwiseLayerNorm",
  "FADE",
  "FeatureNorm",
  "FixNorm",
  "GroupNorm",
  "InstanceNorm",
  "L2Normalize",
  "LayerNorm",
  "LearnableRegionNorm",
  "LpNormalize",
  "NAMES",
  "OnlineNorm",
  "PCNorm",
  "PositionalNorm",
  "PowerNorm",
  "PowerNormV",
  "RMSNorm",
  "RegionNorm",
  "SCNorm",
  "SPADE",
  "ScaleNorm",
  "UnifiedNorm",
  "adaptive_instance_norm",
  "attentive_batch_norm",
  "batch_norm",
  "batch_norm_from_torch",
  "batch_renorm",
  "cc_norm",
  "compress",
  "content_aware_adaptive_instance_norm",
  "crms_norm",
  "cross_modal_adaptive_instance_norm",
  "decompress",
  "dynamic_erf",
  "dynamic_tanh",
  "elementwise_layer_norm",
  "fade",
  "feature_adaptive_instance_norm",
  "feature_norm",
  "fix_norm",
  "fix_norm_embed",
  "fix_norm_logits",
  "group_norm",
  "instance_norm",
  "instance_statistics",
  "l2_normalize",
  "layer_norm",
  "learnable_region_norm",
  "lp_normalize",
  "mad_prenormalize",
  "make",
  "moment_exchange",
  "moment_exchange_draw",
  "moment_exchange_labels",
  "moment_exchange_loss",
  "moment_shortcut",
  "nearest_resize",
  "online_norm",
  "pc_norm",
  "positional_norm",
  "power_norm",
  "power_norm_v",
  "prenormalizer_gain",
  "recalibrate",
  "region_importance",
  "region_norm",
  "region_normalize",
  "replace_layer_norms",
  "rms_norm",
  "sc_norm",
  "scale_norm",
  "spade",
  "unified_norm",
]

# The layers that keep the shape of their input, by the names that configs use.
NAMES: dict[str, Callable[..., nnx.Module]] = {
  "batch_norm": BatchNorm,
  "batch_renorm": BatchRenorm,
  "cc_norm": CCNorm,
  "dynamic_erf": DynamicErf,
  "dynamic_tanh": DynamicTanh,
  "elementwise_layer_norm": ElementwiseLayerNorm,
  "feature_norm": FeatureNorm,
  "group_norm": GroupNorm,
  "instance_norm": InstanceNorm,
  "l2_normalize": L2Normalize,
  "layer_norm": LayerNorm,
  "lp_normalize": LpNormalize,
  "online_norm": OnlineNorm,
  "pc_norm": PCNorm,
  "positional_norm": PositionalNorm,
  "power_norm": PowerNorm,
  "power_norm_v": PowerNormV,
  "region_norm_learnable": LearnableRegionNorm,
  "rms_norm": RMSNorm,
  "sc_norm": SCNorm,
  "scale_norm": ScaleNorm,
  "unified_norm": UnifiedNorm,
}


def make(name: str, num_features: int, *, rngs: nnx.Rngs, **options: Any) -> nnx.Module:
  """Build the norm of this name.

  Every norm in `NAMES` maps (..., num_features) to (..., num_features); the frequency norms
  "pc_norm", "cc_norm" and "sc_norm" take images (b, h, w, num_features) only.

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
