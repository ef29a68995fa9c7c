"""A Gaussian with a learned mean and a learned full covariance."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from normjax.flows._checks import check_batch, check_sampling, check_shape
from normjax.flows._distribution import Distribution
from normjax.flows._widened import widened


class MultivariateNormal(Distribution):
  """Has the law N(loc, L L^T) with a lower triangular L (D, D) of positive diagonal.

  log p(z) = -|L^-1 (z - loc)|^2 / 2 - sum_i log L_ii - D log(2 pi) / 2,  z (b, *shape),
  L = diag(exp(log_diagonal)) + (lower below the diagonal);  a sample is loc + T * L eps.

  Events are flattened to D entries in row-major order.

  Args:
    shape: the event shape, a tuple or list of ints.
    param_dtype: dtype of `loc` (*shape), `log_diagonal` (D,) and `lower` (D, D), zero at first,
      also of the samples unless narrower than float32.
    rngs: not needed, since parameters start as constants; every module takes it.

  Raises:
    ValueError: if `shape` is not a sequence of positive ints.

  Example:
    >>> base = MultivariateNormal((2,))
    >>> base.lower[...] = jnp.array([[0.0, 0.0], [3.0, 0.0]])
    >>> z = base.sample(jax.random.key(0), 1000)
    >>> round(float(jnp.corrcoef(z.T)[0, 1]), 1)  # 3 / sqrt(10)
    0.9
  """

  def __init__(
    self, shape: Sequence[int], *, param_dtype=jnp.float32, rngs: nnx.Rngs | None = None
  ):
    del rngs
    self.shape = check_shape(shape)
    self.param_dtype = jnp.dtype(param_dtype)
    dim = math.prod(self.shape)
    self.loc = nnx.Param(jnp.zeros(self.shape, self.param_dtype))
    self.log_diagonal = nnx.Param(jnp.zeros((dim,), self.param_dtype))
    self.lower = nnx.Param(jnp.zeros((dim, dim), self.param_dtype))

  def scale_tril(self, dtype=None) -> jax.Array:
    """Return L (D, D), in the parameters' dtype unless told another."""
    dtype = self.param_dtype if dtype is None else dtype
    diagonal = jnp.exp(self.log_diagonal[...].astype(dtype))
    return jnp.diag(diagonal) + jnp.tril(self.lower[...].astype(dtype), -1)

  def log_prob(self, z, cond=None):
    """Return log p(z) (b,), float32 or wider."""
    check_batch("z", z, self.shape)
    z = widened(z)
    centred = (z - self.loc[...].astype(z.dtype)[None]).reshape(z.shape[0], -1)
    scale_tril = self.scale_tril(z.dtype)
    eps = jax.scipy.linalg.solve_triangular(scale_tril, centred.T, lower=True)
    log_det = jnp.sum(self.log_diagonal[...].astype(z.dtype))
    return jnp.sum(jax.scipy.stats.norm.logpdf(eps), axis=0) - log_det

  def sample(self, key, n, cond=None, temperature=1.0):
    """Draw (n, *shape) events: loc + temperature * L eps."""
    check_sampling(n, temperature)
    dtype = jnp.promote_types(self.param_dtype, jnp.float32)
    eps = jax.random.normal(key, (n, math.prod(self.shape)), dtype) @ self.scale_tril(dtype).T
    z = jnp.asarray(temperature, dtype) * eps.reshape(n, *self.shape)
    return self.loc[...].astype(dtype)[None] + z
