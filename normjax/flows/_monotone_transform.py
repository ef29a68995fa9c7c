"""Transforms given by an increasing function alone: slope by autodiff, inverse by root finding."""

import abc
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from normjax.flows._invert_monotone import invert_monotone
from normjax.flows._transforms import Transform
from normjax.flows._widened import widened

LEAST_SLOPE = 1e-3


class MonotoneTransform(Transform):
  """Applies an increasing function: y = f(x; raw), log dy/dx of its derivative."""

  @abc.abstractmethod
  def value(self, x: Float[Array, "*batch"], raw: Float[Array, "*batch p"]) -> Array:
    """Return f(x; raw) (*batch), of `x` and `raw` in one dtype, float32 or wider."""

  def value_and_log_slope(self, x, raw) -> tuple[Array, Array]:
    """Return f(x; raw) and log f'(x; raw)."""
    y, slope = jax.jvp(lambda x: self.value(x, raw), (x,), (jnp.ones_like(x),))
    return y, jnp.log(slope)

  def forward(self, x, raw):
    """Return `(f(x), log f'(x))`."""
    wide, raw = _alike(x, raw)
    y, log_slope = self.value_and_log_slope(wide, raw)
    return y.astype(x.dtype), log_slope

  def inverse(self, y, raw):
    """Return `(f^-1(y), -log f')`."""
    wide, raw = _alike(y, raw)
    x = invert_monotone(lambda x: self.value(x, raw), wide)
    return x.astype(y.dtype), -self.value_and_log_slope(x, raw)[1]


def _alike(x, raw):
  dtype = jnp.promote_types(widened(x).dtype, raw.dtype)
  return x.astype(dtype), raw.astype(dtype)


def positive(raw: Float[Array, "..."]) -> Float[Array, "..."]:
  """Return softplus(raw + 0.54) + 1e-3, which is 1 where `raw` is 0."""
  return jax.nn.softplus(raw + math.log(math.expm1(1 - LEAST_SLOPE))) + LEAST_SLOPE
