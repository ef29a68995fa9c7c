"""A Gaussian cut off on both sides: a base whose samples have no outliers."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.scipy.special import ndtri

from normjax.flows._location_scale import LocationScale

# Beyond, the mass of a half-line leaves the range of float32.
FARTHEST = 10.0


class TruncatedNormal(LocationScale):
  """Has independent normal entries that stay between two numbers of standard deviations.

  log p(z) = sum_i [-e_i^2 / 2 - log s_i] - D (log(2 pi) / 2 + log(Phi(high) - Phi(low))),
  e = (z - loc) / s in [low, high], -inf elsewhere,  z (b, *shape);  a sample is loc + T * s * eps.

  Without `trainable` it is N(0, 1) cut to the box [low, high]; quantiles q give bounds by
  `jax.scipy.stats.norm.ppf(q)`. At T > 1 samples may fall where the density is zero.

  Args:
    shape: the event shape, a tuple or list of ints.
    low: lower bound in standard deviations.
    high: upper bound likewise.
    trainable: learn `loc` and `log_scale` = log s, both (*shape) and zero at first; the bounds move
      with them.
    param_dtype: dtype of the parameters, also of the samples unless narrower than float32.
    rngs: not needed, since parameters start as constants; every module takes it.

  Raises:
    ValueError: if `shape` is not a sequence of positive ints, `low` is not below `high`, or the
      bounds are infinite or lie beyond 10 standard deviations on one side.

  Example:
    >>> from normjax import flows
    >>> base = flows.TruncatedNormal((3,), low=-2.0, high=2.0)
    >>> bool(abs(base.sample(jax.random.key(0), 10_000)).max() <= 2)
    True
  """

  def __init__(
    self,
    shape: Sequence[int],
    *,
    low: float = -2.0,
    high: float = 2.0,
    trainable: bool = False,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs | None = None,
  ):
    super().__init__(shape, trainable=trainable, param_dtype=param_dtype, rngs=rngs)
    if not -math.inf < low < high < math.inf:
      raise ValueError(f"low must be below high, both finite, got low={low} and high={high}")
    if low > FARTHEST or high < -FARTHEST:
      raise ValueError(f"[low, high] must reach into [-10, 10], got low={low} and high={high}")
    self.low, self.high = float(low), float(high)

  def standard_log_prob(self, eps):
    """Return the log density of the standard normal on [low, high] per entry."""
    inside = (eps >= self.low) & (eps <= self.high)
    _, below, above = self._left()
    log_prob = jax.scipy.stats.norm.logpdf(eps) - math.log(above - below)
    return jnp.where(inside, log_prob, -jnp.inf)

  def standard_sample(self, key, shape, dtype):
    """Draw by the inverse of the distribution function."""
    sign, below, above = self._left()
    u = jax.random.uniform(key, shape, dtype)
    eps = sign * ndtri(below + u * (above - below))
    # A margin for the rounding of loc + s eps: no sample may have a density of zero.
    margin = 8 * jnp.finfo(dtype).eps * min(self.high - self.low, 1)
    return jnp.clip(eps, self.low + margin, self.high - margin)

  def _left(self):
    """Return Phi at both bounds, mirrored to the left where it has all its digits, and the sign."""
    sign = -1 if self.low + self.high > 0 else 1
    below, above = sorted(
      math.erfc(-sign * bound / math.sqrt(2)) / 2 for bound in (self.low, self.high)
    )
    return sign, below, above
