"""The norm of a model, by its name."""

from collections.abc import Callable
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from normjax import norms


def identity(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """Returns `x`: what stands for a norm in a network without one."""
  return x


def make_norm(
  name: str | None, num_features: int, options: dict[str, Any] | None, rngs: nnx.Rngs
) -> Callable[[Array], Array]:
  """Returns the norm of this name over the last axis, the identity if the name is None."""
  if name is None:
    if options:
      raise ValueError(f"norm_options must be empty without a norm, got {options!r}")
    return identity
  return norms.make(name, num_features, rngs=rngs, **(options or {}))


class Unconditioned(nnx.Module):
  """Applies a norm where others take a mask or a layout as well, which this one ignores."""

  def __init__(self, norm: Callable[..., Array]):
    self.norm = norm

  def __call__(
    self, x: Float[Array, "..."], condition: Any, use_running_average: bool | None = None
  ) -> Float[Array, "..."]:
    """Return the norm of `x`; only norms with running statistics have a mode."""
    del condition
    if use_running_average is None or not hasattr(self.norm, "use_running_average"):
      return self.norm(x)
    return self.norm(x, use_running_average=use_running_average)
