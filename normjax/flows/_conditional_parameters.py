"""Trained parameters that a network of the condition moves, example by example, and their flows."""

import math
from collections.abc import Callable, Mapping

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from normjax._sizes import check_sizes
from normjax.flows._bijector import Bijector
from normjax.flows._checks import check_batch, check_cond
from normjax.flows._residual_network import ResidualNetwork
from normjax.flows._widened import widened


class ConditionalParameters(nnx.Module):
  """Holds a Param for each shape in `shapes`, zero at first; adds net(cond), zero at first too.

  Without a condition a parameter has its own shape, with one a batch in front.
  """

  def __init__(
    self,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    cond_dim: int | None,
    width: int,
    depth: int,
    param_dtype,
    rngs: nnx.Rngs | None,
  ):
    check_sizes(features=min(min(s) for s in shapes.values() if s))
    check_sizes(width=width, depth=depth, cond_dim=cond_dim)
    self.shapes, self.cond_dim = tuple(shapes.items()), cond_dim
    self.values = nnx.Dict({n: nnx.Param(jnp.zeros(s, param_dtype)) for n, s in shapes.items()})
    options = {"width": width, "depth": depth, "param_dtype": param_dtype}
    self.network = None if cond_dim is None else self._network(cond_dim, rngs, options)

  def _network(self, cond_dim, rngs, options):
    if rngs is None:
      raise ValueError("rngs must be given where there is a cond_dim, got None")
    size = sum(math.prod(shape) for _, shape in self.shapes)
    return ResidualNetwork(cond_dim, size, cond_dim=None, rngs=rngs, **options)

  def __call__(self, x: Float[Array, "b *event"], cond) -> dict[str, Array]:
    """Return the parameters by name, (b, *shape) if there is a condition, else (*shape)."""
    check_cond(cond, x.shape[0], self.cond_dim)
    values = {name: self.values[name][...] for name, _ in self.shapes}
    if self.network is None:
      return values
    moves, start = self.network(cond.astype(widened(x).dtype), None), 0
    for name, shape in self.shapes:
      size = math.prod(shape)
      move = moves[:, start : start + size].reshape(-1, *shape)
      values[name], start = values[name][None] + move, start + size
    return values


class ParametricFlow(Bijector):
  """Applies a function of vectors x (B, D) whose parameters are `ConditionalParameters`.

  A subclass names the function and its inverse, which take the parameters by name, and says which
  of these start at random: `{name: standard deviation}`. The others start at zero.
  """

  function: Callable[..., tuple[Array, Array]]
  inverse_function: Callable[..., tuple[Array, Array]]

  def __init__(
    self,
    features: int,
    shapes: Mapping[str, tuple[int, ...]],
    random: Mapping[str, float],
    *,
    cond_dim: int | None = None,
    width: int = 64,
    depth: int = 1,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.features = features
    self.parameters = ConditionalParameters(
      shapes, cond_dim=cond_dim, width=width, depth=depth, param_dtype=param_dtype, rngs=rngs
    )
    for name, std in random.items():
      draw = nnx.initializers.normal(std)(rngs.params(), shapes[name], param_dtype)
      self.parameters.values[name][...] = draw

  def forward(self, x, cond=None):
    """Return `(z, log_det)`."""
    check_batch("x", x, (self.features,))
    return self.function(x, **self.parameters(x, cond))

  def inverse(self, z, cond=None):
    """Return `(x, log_det)`."""
    check_batch("z", z, (self.features,))
    return self.inverse_function(z, **self.parameters(z, cond))
