"""The family that most bases of flows belong to: independent entries of one standard law.

The densities are those of `jax.scipy.stats`; what is added is the module: event shapes, parameters
that are scaled by exp(log_scale), temperatures and checks.
"""

import abc
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from normjax.flows._checks import check_batch, check_sampling, check_shape
from normjax.flows._distribution import Distribution
from normjax.flows._widened import widened


class LocationScale(Distribution):
  """Spreads independent entries around a location: z = loc + s * eps, s = exp(log_scale).

  log p(z) = sum_i [log f((z_i - loc_i) / s_i) - log s_i],  z (b, *shape), loc and s (*shape)

  with eps of the standard density f, which a subclass gives through `standard_log_prob` and
  `standard_sample`. Samples at temperature T are loc + T * s * eps.

  Args:
    shape: the event shape, a tuple or list of ints.
    trainable: learn `loc` and `log_scale`, both zero at first. Without it there are no parameters:
      loc = 0, s = 1.
    param_dtype: dtype of the parameters, also of the samples unless narrower than float32.
    rngs: not needed, since parameters start as constants; every module takes it.

  Raises:
    ValueError: if `shape` is not a sequence of positive ints.
  """

  def __init__(
    self,
    shape: Sequence[int],
    *,
    trainable: bool = False,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs | None = None,
  ):
    del rngs
    self.shape = check_shape(shape)
    self.param_dtype = jnp.dtype(param_dtype)
    self.loc = nnx.Param(jnp.zeros(self.shape, self.param_dtype)) if trainable else None
    self.log_scale = nnx.Param(jnp.zeros(self.shape, self.param_dtype)) if trainable else None

  @abc.abstractmethod
  def standard_log_prob(self, eps: Float[Array, "b *event"]) -> Float[Array, "b *event"]:
    """Return log f(eps) per entry."""

  @abc.abstractmethod
  def standard_sample(self, key: Array, shape: tuple[int, ...], dtype) -> Float[Array, "n *event"]:
    """Draw eps."""

  def log_prob(self, z, cond=None):
    """Return log p(z) (b,), float32 or wider."""
    check_batch("z", z, self.shape)
    z = widened(z)
    event = tuple(range(1, z.ndim))
    if self.loc is None or self.log_scale is None:
      return jnp.sum(self.standard_log_prob(z), axis=event)
    loc, log_scale = self.loc[...].astype(z.dtype), self.log_scale[...].astype(z.dtype)
    eps = (z - loc[None]) * jnp.exp(-log_scale)[None]
    return jnp.sum(self.standard_log_prob(eps), axis=event) - jnp.sum(log_scale)

  def sample(self, key, n, cond=None, temperature=1.0):
    """Draw (n, *shape) events: loc + temperature * s * eps."""
    check_sampling(n, temperature)
    dtype = jnp.promote_types(self.param_dtype, jnp.float32)
    eps = jnp.asarray(temperature, dtype) * self.standard_sample(key, (n, *self.shape), dtype)
    if self.loc is None or self.log_scale is None:
      return eps
    loc, log_scale = self.loc[...].astype(dtype), self.log_scale[...].astype(dtype)
    return loc[None] + jnp.exp(log_scale)[None] * eps
