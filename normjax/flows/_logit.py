"""The logit map, which spreads data of the unit interval over the real line."""

import math

import jax
import jax.numpy as jnp

from normjax.flows._bijector import Bijector
from normjax.flows._checks import check_batch
from normjax.flows._widened import widened


class Logit(Bijector):
  """Maps each entry of the unit interval to the real line, after a squeeze away from 0 and 1.

  s = alpha + (1 - 2 alpha) x,  z = log s - log(1 - s),  x and z (B, ...)
  log_det = sum_i [log(1 - 2 alpha) - log s_i - log(1 - s_i)]  (B,)

  With alpha > 0 the end points have finite images. `forward` outside the domain gives NaN;
  `inverse` takes every real number, and lands up to alpha / (1 - 2 alpha) outside [0, 1].

  Args:
    alpha: the squeeze, in [0, 1/2).

  Raises:
    ValueError: if `alpha` is out of range.

  Reference:
    Papamakarios, Pavlakou, Murray, "Masked Autoregressive Flow for Density Estimation", 2017,
    arXiv 1705.07057 (alpha = 1e-6 for MNIST, 0.05 for CIFAR-10).

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> z, log_det = flows.Logit(alpha=0.05).forward(jnp.array([[0.5, 1.0]]))
    >>> float(z[0, 0]), round(float(z[0, 1]), 3)  # 0, log(0.95 / 0.05)
    (0.0, 2.944)
  """

  def __init__(self, alpha: float = 0.05):
    if not 0 <= alpha < 0.5:
      raise ValueError(f"alpha must be in [0, 0.5), got {alpha}")
    self.alpha = float(alpha)

  def forward(self, x, cond=None):
    """Return `(z, log_det)` of `x` in the unit interval."""
    check_batch("x", x)
    v = widened(x)
    squeeze = 1 - 2 * self.alpha
    # 1 - s from 1 - v, which is exact near v = 1, where 1 - s would lose the digits of s.
    log_s, log_t = jnp.log(self.alpha + squeeze * v), jnp.log(self.alpha + squeeze * (1 - v))
    log_det = jnp.sum(math.log(squeeze) - log_s - log_t, axis=tuple(range(1, x.ndim)))
    return (log_s - log_t).astype(x.dtype), log_det

  def inverse(self, z, cond=None):
    """Return `(x, log_det)`: the squeezed sigmoid, undone."""
    check_batch("z", z)
    y = widened(z)
    squeeze = 1 - 2 * self.alpha
    x = (jax.nn.sigmoid(y) - self.alpha) / squeeze
    # log s = -softplus(-y) and log(1 - s) = -softplus(y): finite for every finite y.
    log_det = -(jax.nn.softplus(y) + jax.nn.softplus(-y)) - math.log(squeeze)
    return x.astype(z.dtype), jnp.sum(log_det, axis=tuple(range(1, z.ndim)))
