"""Read the parameters of the authors' own Jet (big_vision, models/proj/jet) into ours."""

from collections.abc import Mapping, Sequence
from typing import cast

import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jax.typing import DTypeLike

from normjax.flows._jet import Jet, JetCoupling

_ATTENTION = "MultiHeadDotProductAttention_0"
_BLOCK = {
  "LayerNorm_0": "attention_norm",
  _ATTENTION: "attention",
  "LayerNorm_1": "mlp_norm",
  "MlpBlock_0/Dense_0": "mlp_in",
  "MlpBlock_0/Dense_1": "mlp_out",
}
_NETWORK = {
  "init_proj": "init_proj",
  "posemb": "posemb",
  _ATTENTION: "context_attention",
  "vit/encoder_norm": "final_norm",
  "final_proj": "final_proj",
}


def jet_from_big_vision(
  params: Mapping,
  shape: Sequence[int],
  *,
  patch_size: int,
  scale_factor: float = 2.0,
  memory: str = "remat",
  dtype: DTypeLike | None = None,
) -> Jet:
  """Build a Jet from a parameter tree of the authors' code.

  All sizes, the couplings' kinds and their permutations are read off the tree.

  Args:
    params: the tree, nested or flat with "/" between names: `couplings/dnn/...`, stacked over
      couplings, `channel_coupling_masks-FREEZE_ME` (depth, c, c) and
      `spatial_coupling_masks-FREEZE_ME` (depth, n, n).
    shape: (H, W, C) of the images.
    patch_size: side of the patches.
    scale_factor: the upper bound of a coupling's scale.
    memory: see `Jet`.
    dtype: see `Jet`.

  Returns:
    A Jet with the dtype of the given parameters.

  Raises:
    ValueError: if the tree lacks a parameter, has an unknown one, or its shapes don't fit `shape`.

  Reference:
    Kolesnikov, Susano Pinto, Tschannen, "Jet: A Modern Transformer-Based Normalizing Flow", 2024,
    arXiv 2412.15129.

  Example:
    >>> flat = dict(np.load("jet.npz"))  # doctest: +SKIP
    >>> jet = jet_from_big_vision(flat, (64, 64, 3), patch_size=4)  # doctest: +SKIP
  """
  flat = params if all("/" in k or "-" in k for k in params) else traverse_util.flatten_dict(
    dict(params), sep="/"
  )  # fmt: skip
  flat = {name: np.asarray(value) for name, value in flat.items()}
  ours = {}
  blocks = {}
  masks = {}
  for name, value in flat.items():
    path = name.removeprefix("couplings/dnn/")
    if name.endswith("_coupling_masks-FREEZE_ME"):
      masks[name.removesuffix("_coupling_masks-FREEZE_ME")] = value
    elif path.startswith("vit/encoderblock_"):
      number, _, rest = path.removeprefix("vit/encoderblock_").partition("/")
      blocks.setdefault(_rename(rest, _BLOCK, name), {})[int(number)] = value
    else:
      ours[_rename(path, _NETWORK, name)] = value
  for path, by_number in blocks.items():
    if sorted(by_number) != list(range(len(by_number))):
      raise ValueError(f"params must number the blocks 0, 1, ..., got {sorted(by_number)}")
    ours[f"blocks/blocks/{path}"] = np.stack([by_number[i] for i in range(len(by_number))], axis=1)
  _require(ours, ("posemb", "blocks/blocks/attention/query/bias", "init_proj/kernel"))
  _require(masks, ("channel", "spatial"))

  depth, _, _, emb_dim = ours["posemb"].shape
  _, block_depth, num_heads, _ = ours["blocks/blocks/attention/query/bias"].shape
  context = ours.get("context_attention/key/kernel")
  config = {
    "depth": depth, "block_depth": block_depth, "emb_dim": emb_dim, "num_heads": num_heads,
    "patch_size": patch_size, "kinds": ("channels",), "scale_factor": scale_factor,
    "memory": memory, "cond_dim": None if context is None else context.shape[1],
    "dtype": dtype, "param_dtype": ours["posemb"].dtype,
  }  # fmt: skip
  # Shapes alone: every Variable is assigned below.
  jet = nnx.eval_shape(lambda: Jet(shape, **config, rngs=nnx.Rngs(0)))
  layers = cast(JetCoupling, jet.couplings.layers)
  _assign(layers.network, ours)
  feature_order, half_order = _orders(masks["channel"], masks["spatial"])
  _set(layers.feature_order, feature_order, "channel_coupling_masks-FREEZE_ME")
  _set(layers.half_order, half_order, "spatial_coupling_masks-FREEZE_ME")
  return jet


def _orders(channel, spatial):
  """Turn permutation matrices, all-zero where the other kind is used, into integer orders."""
  # A matrix P acts as t'[j] = sum_i t[i] P[i, j], so order[j] is the row of the one in column j.
  is_channels = channel.any(axis=(1, 2))
  depth, num_tokens, _ = spatial.shape
  features = np.arange(channel.shape[1])
  feature_order = np.where(is_channels[:, None], channel.argmax(axis=1), features[None])
  halves = np.arange(2 * num_tokens).reshape(num_tokens, 2)
  by_token = halves[spatial.argmax(axis=1)].reshape(depth, -1)
  half_order = np.where(is_channels[:, None], halves.T.ravel()[None], by_token)
  return feature_order, half_order


def _rename(path, names, full):
  for theirs, ours in names.items():
    if path == theirs or path.startswith(theirs + "/"):
      return ours + path.removeprefix(theirs)
  raise ValueError(f"params has an unknown entry {full!r}")


def _require(found, needed):
  missing = [name for name in needed if name not in found]
  if missing:
    raise ValueError(f"params lacks {missing}; is it a Jet tree of big_vision?")


def _assign(network, ours):
  variables = {"/".join(map(str, path)): v for path, v in nnx.to_flat_state(nnx.state(network))}
  if variables.keys() != ours.keys():
    raise ValueError(
      f"params lacks {sorted(variables.keys() - ours.keys())} and has the unknown entries "
      f"{sorted(ours.keys() - variables.keys())} (in this library's names)"
    )
  for name, variable in variables.items():
    _set(variable, ours[name], name)


def _set(variable, value, name):
  if variable.shape != value.shape:
    raise ValueError(f"{name} must have shape {variable.shape}, got {value.shape}")
  variable.set_value(jnp.asarray(value, variable.dtype))
