"""Exchange of the layer norms of a model for layers of another kind.

As in "Transformers without Normalization" (https://arxiv.org/abs/2503.10622), whose code exchanges
every layer norm of a vision model, the last one and those of queries and keys included.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from normjax.norms._layer_norm import LayerNorm


def replace_layer_norms(
  model: nnx.Module,
  make: Callable[[tuple[Any, ...], int], nnx.Module | None],
  *,
  keep_affine: bool = True,
) -> nnx.Module:
  """Return a copy of a model with other layers in place of its layer norms.

  Layer norms are `LayerNorm` and `nnx.LayerNorm` over the last axis. Blocks that are stacked for
  `lax.scan` are recognized by the leading axes of the norm's parameters: each new parameter is
  repeated over them.

  Args:
    model: the model, which stays as it is.
    make: `make(path, num_features)` builds the new layer at that path, `("blocks", "mlp_norm")`
      say; None keeps the norm.
    keep_affine: whether `scale` and `bias` of the norm replace those of the new layer.

  Returns:
    The new model; a new layer, if the model is a layer norm itself.

  Raises:
    ValueError: if a norm that is to be replaced is not one of the last axis alone, or if, with
      keep_affine, it has a `scale` or `bias` for which the new layer has no parameter.

  Reference:
    Zhu et al., "Transformers without Normalization", 2025, arXiv 2503.10622.

  Example:
    >>> from normjax.norms import DynamicTanh
    >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), LayerNorm(3, rngs=nnx.Rngs(0)))
    >>> new = replace_layer_norms(model, lambda path, n: DynamicTanh(n, rngs=nnx.Rngs(0)))
    >>> type(new.layers[1]).__name__, type(model.layers[1]).__name__
    ('DynamicTanh', 'LayerNorm')
  """
  model = nnx.clone(model)
  for path, norm in list(nnx.iter_modules(model)):
    if not isinstance(norm, (LayerNorm, nnx.LayerNorm)):
      continue
    new = make(path, _num_features(path, norm))
    if new is None:
      continue
    _adapt(path, norm, new, keep_affine)
    if not path:
      return new
    parent: Any = model
    for name in path[:-1]:
      parent = _get(parent, name)
    _put(parent, path[-1], new)
  return model


def _get(parent: Any, name: Any) -> Any:
  return parent[name] if isinstance(parent, (nnx.List, nnx.Dict)) else getattr(parent, name)


def _put(parent: Any, name: Any, new: nnx.Module) -> None:
  if isinstance(parent, (nnx.List, nnx.Dict)):
    parent[name] = new
  else:
    setattr(parent, name, new)


def _num_features(path: tuple[Any, ...], norm: LayerNorm | nnx.LayerNorm) -> int:
  axis: Any = norm.axis if isinstance(norm, LayerNorm) else norm.reduction_axes
  over: Any = axis if isinstance(norm, LayerNorm) else norm.feature_axes
  if axis not in (-1, (-1,)) or over not in (-1, (-1,)):
    raise ValueError(f"model must have layer norms of the last axis only, {path} has axis={axis}")
  features: Any = norm.num_features
  return features if isinstance(features, int) else features[0]


def _adapt(path: tuple[Any, ...], norm: nnx.Module, new: nnx.Module, keep_affine: bool) -> None:
  """Repeat the variables of a new layer where the norm is stacked, and give it the affine."""
  affine = {name: v for name in ("scale", "bias") if (v := getattr(norm, name, None)) is not None}
  lead = next((v.shape[:-1] for v in affine.values()), ())
  nnx.update(
    new, jax.tree.map(lambda v: jnp.broadcast_to(v, (*lead, *jnp.shape(v))), nnx.state(new))
  )
  if not keep_affine:
    return
  for name, value in affine.items():
    param = getattr(new, name, None)
    if param is None:
      raise ValueError(
        f"make must give a layer with a {name}, as {path} has one, or keep_affine=False"
      )
    param[...] = value[...].astype(param.dtype)
