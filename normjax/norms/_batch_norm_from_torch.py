"""The weights and statistics of torch's BatchNorm, which is not imported, as a tree of ours."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

_NAMES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
_COUNT = "num_batches_tracked"


def batch_norm_from_torch(state_dict: Mapping[str, Any], prefix: str = "") -> dict[str, Array]:
  """Translate the state dict of a torch BatchNorm layer.

  scale = weight, bias = bias, mean = running_mean, var = running_var, all (c,). Build the layer as
  `BatchNorm(c, decay=1 - momentum, epsilon=eps)`: torch's `momentum` is the share of the new value,
  0.1 by default, and our `decay` that of the old one, 0.9; `eps` is `epsilon`, 1e-5 in both; and
  both keep the unbiased variance. A layer with `affine=False` needs `use_scale=False` and
  `use_bias=False`. `momentum=None` averages all batches alike, which no constant decay does:
  `num_batches_tracked` counts them, and is left out here.

  Args:
    state_dict: arrays or torch tensors by torch's names; tensors may lie on another device.
    prefix: which keys to take, "layer1.0.bn1." say, out of the state dict of a whole model.

  Returns:
    The tree of `BatchNorm`, for `nnx.update(layer, tree)`, float32 or wider.

  Raises:
    ValueError: if running statistics are missing (`track_running_stats=False`), a name is unknown,
      shapes are not one (c,), entries are not floating or a variance is negative.

  Example:
    >>> from flax import nnx
    >>> from normjax.norms import BatchNorm
    >>> given = {"running_mean": np.ones(2), "running_var": np.ones(2), "num_batches_tracked": 7}
    >>> layer = BatchNorm(2, use_scale=False, use_bias=False, rngs=nnx.Rngs(0))
    >>> nnx.update(layer, batch_norm_from_torch(given))
    >>> print(layer(jnp.array([[1.0, 3.0]]), use_running_average=True).round(3))
    [[0. 2.]]
  """
  own = {key[len(prefix) :]: v for key, v in state_dict.items() if key.startswith(prefix)}
  missing = [name for name in ("running_mean", "running_var") if own.get(name) is None]
  if missing:
    raise ValueError(
      f"state_dict must hold {', '.join(prefix + name for name in missing)} (of a layer with "
      f"track_running_stats=True), got {sorted(state_dict)}"
    )
  if unknown := sorted(own.keys() - _NAMES.keys() - {_COUNT}):
    raise ValueError(
      f"state_dict must hold one BatchNorm with the names {[*_NAMES, _COUNT]}, got {unknown} too: "
      "give the prefix of one layer"
    )
  tree = {ours: _array(own[name], name) for name, ours in _NAMES.items() if name in own}
  shapes = {name: value.shape for name, value in tree.items()}
  if len(set(shapes.values())) > 1 or tree["mean"].ndim != 1:
    raise ValueError(f"state_dict must hold vectors of one size (c,), got {shapes}")
  if np.any(tree["var"] < 0):
    raise ValueError(f"running_var must not be negative, got {tree['var'].min()}")
  return {name: jnp.asarray(value) for name, value in tree.items()}


def _array(value: Any, name: str) -> np.ndarray:
  if hasattr(value, "detach"):  # a tensor: torch has no NumPy form of bfloat16, of a double it has
    value = value.detach().cpu()
    value = value.double() if value.is_floating_point() else value
    wide = np.asarray(value)
  else:
    wide = np.asarray(value)
  if not jnp.issubdtype(wide.dtype, jnp.floating):
    raise ValueError(f"{name} must be floating, got {wide.dtype}")
  return wide.astype(np.promote_types(wide.dtype, np.float32))
