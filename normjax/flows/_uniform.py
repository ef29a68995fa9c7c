"""The uniform box: the base of flows onto a cube, and the density of dequantization noise."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import ArrayLike

from normjax.flows._checks import check_batch, check_sampling, check_shape, constant, is_concrete
from normjax.flows._distribution import Distribution
from normjax.flows._widened import widened


class Uniform(Distribution):
  """Is constant on the box low <= z <= high and zero outside.

  log p(z) = -sum_i log(high_i - low_i) inside, -inf outside,  z (b, *shape).

  The box is fixed: its likelihood has no useful gradient. A sample at temperature T is uniform on
  the box shrunk by T around its centre, so at T > 1 it may fall where the density is zero.

  Args:
    shape: the event shape, a tuple or list of ints.
    low: lower corner, a scalar or one number per entry (*shape).
    high: upper corner, likewise.
    param_dtype: dtype of the corners, also of the samples unless narrower than float32.
    rngs: not needed; every module takes it.

  Raises:
    ValueError: if `shape` is not a sequence of positive ints, or a corner has another shape, or
      `low` is not below `high`, both finite.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> box = flows.Uniform((2,), low=-0.25, high=0.25)
    >>> log_prob = box.log_prob(jnp.array([[0.0, 0.2], [0.0, 0.3]]))
    >>> round(float(log_prob[0]), 3), float(log_prob[1])  # log 4
    (1.386, -inf)
  """

  def __init__(
    self,
    shape: Sequence[int],
    *,
    low: ArrayLike | Sequence = 0.0,
    high: ArrayLike | Sequence = 1.0,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs | None = None,
  ):
    del rngs
    self.shape = check_shape(shape)
    self.param_dtype = jnp.dtype(param_dtype)
    self.low = nnx.Variable(constant("low", low, self.shape, self.param_dtype))
    self.high = nnx.Variable(constant("high", high, self.shape, self.param_dtype))
    sides = self.high[...] - self.low[...]
    if is_concrete(sides) and not np.all((sides > 0) & (sides < jnp.inf)):
      raise ValueError(f"low must be below high, both finite, got low={low} and high={high}")

  def _corners(self, dtype):
    return self.low[...].astype(dtype)[None], self.high[...].astype(dtype)[None]

  def log_prob(self, z, cond=None):
    """Return log p(z) (b,), float32 or wider."""
    check_batch("z", z, self.shape)
    z = widened(z)
    low, high = self._corners(z.dtype)
    inside = jnp.all((z >= low) & (z <= high), axis=tuple(range(1, z.ndim)))
    return jnp.where(inside, -jnp.sum(jnp.log(high - low)), -jnp.inf)

  def sample(self, key, n, cond=None, temperature=1.0):
    """Draw (n, *shape) events: centre + temperature * half the sides * U(-1, 1)."""
    check_sampling(n, temperature)
    dtype = jnp.promote_types(self.param_dtype, jnp.float32)
    low, high = self._corners(dtype)
    eps = jax.random.uniform(key, (n, *self.shape), dtype, minval=-1.0, maxval=1.0)
    temperature = jnp.asarray(temperature, dtype)
    z = (low + high) / 2 + temperature * (high - low) / 2 * eps
    # Rounding must not put a sample just outside the box, where its density would be zero.
    return jnp.where(temperature <= 1, jnp.clip(z, low, high), z)
