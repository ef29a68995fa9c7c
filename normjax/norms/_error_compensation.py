"""What keeps the outputs of Online Normalization bounded while its statistics lag behind."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from normjax.norms._statistics import Reduction

Compensation = Literal["ac", "ls"]


def check_compensation(
  ecm: str | None, clamp_value: float, ls_epsilon: float, ls_group_size: int | None, c: int
) -> None:
  """Raise unless the options fit together and to `c` channels."""
  if ecm not in ("ac", "ls", None):
    raise ValueError(f"ecm must be 'ac', 'ls' or None, got {ecm!r}")
  if not clamp_value > 0:
    raise ValueError(f"clamp_value must be > 0, got {clamp_value}")
  if not ls_epsilon >= 0:
    raise ValueError(f"ls_epsilon must be >= 0, got {ls_epsilon}")
  if ls_group_size is not None and (ls_group_size < 1 or c % ls_group_size):
    raise ValueError(f"ls_group_size must divide the {c} channels of x, got {ls_group_size}")


def compensate(
  z: Float[Array, "t *space c"],
  ecm: str | None,
  clamp_value: float,
  ls_epsilon: float,
  ls_group_size: int | None,
  mask: Bool[Array, "..."] | None,
) -> Float[Array, "t *space c"]:
  """Returns `z` clamped ("ac"), scaled ("ls") or as it is. `mask` is (t, *space, 1)."""
  if ecm == "ac":
    # Unlike that of `jnp.clip`, the gradient at the bound is 0.
    return jnp.where(jnp.abs(z) < clamp_value, z, clamp_value * jnp.sign(z))
  if ecm == "ls":
    return _layer_scaling(z, ls_epsilon, ls_group_size, mask)
  return z


def _layer_scaling(
  z: Float[Array, "t *space c"],
  epsilon: float,
  group_size: int | None,
  mask: Bool[Array, "..."] | None,
) -> Float[Array, "t *space c"]:
  """Returns z / sqrt(mean(z^2) + epsilon), the mean being over space and a group of channels."""
  size = z.shape[-1] if group_size is None else group_size
  groups = z.reshape(*z.shape[:-1], -1, size)  # (t, *space, groups, size)
  axes = (*range(1, z.ndim - 1), z.ndim)
  if mask is not None:
    # An example without any valid position is scaled by all of them.
    empty = ~jnp.any(mask, tuple(range(1, mask.ndim)), keepdims=True)
    mask = (mask | empty)[..., None]
  over_group = Reduction(axes, groups.shape, mask)
  kept = over_group.keep(groups)
  return (groups / jnp.sqrt(over_group.mean(kept * kept) + epsilon)).reshape(z.shape)
