"""A Gaussian with a learned mean and standard deviation per entry."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from normjax.flows._location_scale import LocationScale


class DiagonalNormal(LocationScale):
  """Has independent N(loc_i, s_i^2) entries, s = exp(log_scale), both learned.

  log p(z) = sum_i [-((z_i - loc_i) / s_i)^2 / 2 - log s_i - log(2 pi) / 2],  z (b, *shape);
  a sample is loc + T * s * eps.

  Args:
    shape: the event shape, a tuple or list of ints.
    param_dtype: dtype of `loc` and `log_scale`, both (*shape) and zero at first.
    rngs: not needed, since parameters start as constants; every module takes it.

  Raises:
    ValueError: if `shape` is not a sequence of positive ints.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> base = flows.DiagonalNormal((2,))
    >>> base.loc[...] = jnp.array([3.0, -1.0])
    >>> log_prob = base.log_prob(jnp.array([[3.0, -1.0]]))
    >>> round(float(log_prob[0]), 3)  # -log(2 pi)
    -1.838
  """

  def __init__(
    self, shape: Sequence[int], *, param_dtype=jnp.float32, rngs: nnx.Rngs | None = None
  ):
    super().__init__(shape, trainable=True, param_dtype=param_dtype, rngs=rngs)

  def standard_log_prob(self, eps):
    """Return the log density of N(0, 1) per entry."""
    return jax.scipy.stats.norm.logpdf(eps)

  def standard_sample(self, key, shape, dtype):
    """Draw from N(0, 1)."""
    return jax.random.normal(key, shape, dtype)
