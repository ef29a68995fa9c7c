"""N(0, I): the usual base of a flow."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from normjax.flows._location_scale import LocationScale


class StandardNormal(LocationScale):
  """Has independent N(0, 1) entries and no parameters.

  log p(z) = sum_i [-z_i^2 / 2 - log(2 pi) / 2],  z (b, *shape);  a sample is T * eps.

  Args:
    shape: the event shape, a tuple or list of ints.
    param_dtype: dtype of the samples unless narrower than float32.
    rngs: not needed; every module takes it.

  Raises:
    ValueError: if `shape` is not a sequence of positive ints.

  Example:
    >>> import jax
    >>> from normjax import flows
    >>> base = flows.StandardNormal((4, 4, 1))
    >>> z = base.sample(jax.random.key(0), 2, temperature=0.7)
    >>> z.shape, base.log_prob(z).shape
    ((2, 4, 4, 1), (2,))
  """

  def __init__(
    self, shape: Sequence[int], *, param_dtype=jnp.float32, rngs: nnx.Rngs | None = None
  ):
    super().__init__(shape, param_dtype=param_dtype, rngs=rngs)

  def standard_log_prob(self, eps):
    """Return the log density of N(0, 1) per entry."""
    return jax.scipy.stats.norm.logpdf(eps)

  def standard_sample(self, key, shape, dtype):
    """Draw from N(0, 1)."""
    return jax.random.normal(key, shape, dtype)
