"""The shape that fixed maps of every single entry share: compute wide, sum the logs of slopes."""

import abc

import jax.numpy as jnp
from jaxtyping import Array, Float

from normjax.flows._bijector import Bijector
from normjax.flows._checks import check_batch
from normjax.flows._widened import widened


class Pointwise(Bijector):
  """Applies one increasing function to every entry: z = f(x), log_det (B,) = sum_i log f'(x_i)."""

  @abc.abstractmethod
  def up(self, x: Float[Array, "..."]) -> tuple[Array, Array]:
    """Return f(x) and log f'(x) per entry, of `x` in float32 or wider."""

  @abc.abstractmethod
  def down(self, z: Float[Array, "..."]) -> tuple[Array, Array]:
    """Return x = f^-1(z) and log f'(x) per entry, of `z` in float32 or wider."""

  def forward(self, x, cond=None):
    """Return `(z, log_det)`."""
    check_batch("x", x)
    z, log_slope = self.up(widened(x))
    return z.astype(x.dtype), jnp.sum(log_slope, axis=tuple(range(1, x.ndim)))

  def inverse(self, z, cond=None):
    """Return `(x, log_det)`."""
    check_batch("z", z)
    x, log_slope = self.down(widened(z))
    return x.astype(z.dtype), -jnp.sum(log_slope, axis=tuple(range(1, z.ndim)))
