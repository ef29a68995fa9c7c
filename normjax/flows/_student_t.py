"""Student's t: a base with polynomial tails, which outliers in the data cannot pull on.

The paper's base is a multivariate t, whose entries share one random scale; ours has independent
entries. The normalizing constant is a log-Beta function rather than a difference of two log-Gammas:
in float32 that difference loses all digits at the large degrees of freedom that light-tailed data
make `log_nu` learn.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from normjax.flows._checks import check_above_zero
from normjax.flows._location_scale import LocationScale


class StudentT(LocationScale):
  """Has independent Student-t entries of `nu` degrees of freedom.

  log p(z) = sum_i [-(nu + 1)/2 log(1 + e_i^2 / nu) - log B(1/2, nu/2) - log(nu)/2 - log s_i],
  e = (z - loc) / s,  z (b, *shape);  a sample is loc + T * s * eps.

  Args:
    shape: the event shape, a tuple or list of ints.
    nu: degrees of freedom, above 0: fixed, or where learning starts.
    trainable: learn `loc` and `log_scale` = log s, both (*shape) and zero at first.
    trainable_nu: learn `log_nu` (*shape), one nu per entry.
    param_dtype: dtype of the parameters, also of the samples unless narrower than float32.
    rngs: not needed, since parameters start as constants; every module takes it.

  Raises:
    ValueError: if `shape` is not a sequence of positive ints or `nu` not above 0 and finite.

  Reference:
    Alexanderson, Henter, "Robust model training and generalisation with Studentising flows", 2020,
    arXiv 2006.06599.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> log_prob = flows.StudentT((2,), nu=1.0).log_prob(jnp.zeros((1, 2)))
    >>> round(float(log_prob[0]), 3)  # two Cauchy peaks: -2 log(pi)
    -2.289
  """

  def __init__(
    self,
    shape: Sequence[int],
    *,
    nu: float = 5.0,
    trainable: bool = False,
    trainable_nu: bool = False,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs | None = None,
  ):
    super().__init__(shape, trainable=trainable, param_dtype=param_dtype, rngs=rngs)
    check_above_zero(nu=nu)
    self.nu = float(nu)
    log_nu = jnp.full(self.shape, math.log(nu), self.param_dtype)
    self.log_nu = nnx.Param(log_nu) if trainable_nu else None

  def _nu(self, dtype):
    return self.nu if self.log_nu is None else jnp.exp(self.log_nu[...].astype(dtype))[None]

  def standard_log_prob(self, eps):
    """Return the log density of t_nu per entry."""
    nu = self._nu(eps.dtype)
    log_peak = -jax.scipy.special.betaln(0.5, nu / 2) - 0.5 * jnp.log(nu)
    return log_peak - 0.5 * (nu + 1) * _log1p_square(eps / jnp.sqrt(nu))

  def standard_sample(self, key, shape, dtype):
    """Draw from t_nu."""
    return jax.random.t(key, self._nu(dtype), shape, dtype)


def _log1p_square(x):
  """Return log(1 + x^2), also where the square is beyond the largest number."""
  far = jnp.abs(x) > 1e10
  return jnp.where(
    far, 2 * jnp.log(jnp.abs(jnp.where(far, x, 1))), jnp.log1p(jnp.where(far, 0, x) ** 2)
  )
