"""A leaky rectifier with a smooth bend, as score matching asks for: it takes second derivatives.

The authors' code (https://arxiv.org/abs/2305.15267) takes 100 of Newton's steps from the latent and
bounds the slope; here they start at the root of the line with a kink, and stop at the last digits.
"""

import jax
import jax.numpy as jnp

from normjax.flows._invert_monotone import invert_monotone
from normjax.flows._pointwise import Pointwise


class SmoothLeakyReLU(Pointwise):
  """Bends the line smoothly at 0, from one slope to another.

  z = alpha x + (1 - alpha) log(1 + exp(x)),  x and z (B, ...)
  log_det (B,) = sum_i log(alpha + (1 - alpha) sigmoid(x_i))

  The slope rises from alpha to 1, and all derivatives exist. `inverse` takes Newton's steps to the
  last digits and has the derivatives of the implicit function.

  Args:
    alpha: the slope far below 0, in (0, 1].

  Raises:
    ValueError: if `alpha` is out of range.

  Reference:
    Chao, Sun, Hsu, Kira, Lee, "Training Energy-Based Normalizing Flow with Score-Matching
    Objectives", 2023, arXiv 2305.15267.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> z, log_det = flows.SmoothLeakyReLU(0.5).forward(jnp.array([[-100.0, 0.0, 100.0]]))
    >>> [round(float(v), 3) for v in z[0]], round(float(log_det[0]), 3)  # log(0.5) + log(0.75)
    ([-50.0, 0.347, 100.0], -0.981)
  """

  def __init__(self, alpha: float = 0.3):
    if not 0 < alpha <= 1:
      raise ValueError(f"alpha must be in (0, 1], got {alpha}")
    self.alpha = float(alpha)

  def up(self, x):
    """Return the bent entries and the logs of their slopes."""
    return _bend(x, self.alpha), jnp.log(_slope(x, self.alpha))

  def down(self, z):
    """Undo `up`."""
    bend = lambda x: _bend(x, self.alpha)
    x = invert_monotone(bend, z, guess=jnp.where(z >= 0, z, z / self.alpha))
    return x, jnp.log(_slope(x, self.alpha))


def _bend(x, alpha):
  return alpha * x + (1 - alpha) * jax.nn.softplus(x)


def _slope(x, alpha):
  return alpha + (1 - alpha) * jax.nn.sigmoid(x)
