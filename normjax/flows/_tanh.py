"""The hyperbolic tangent as a flow layer, also with linear tails that reach the whole real line."""

import math

import jax
import jax.numpy as jnp

from normjax.flows._pointwise import Pointwise

_LARGEST = 8.0  # beyond, tanh rounds to 1 in float32


class Tanh(Pointwise):
  """Maps each real entry into (-1, 1).

  z = tanh(x),  x and z (B, ...);  log_det (B,) = sum_i log(1 - tanh(x_i)^2)

  `forward` rounds large entries to -1 and 1, so `inverse` takes these, and all beyond, for the
  nearest numbers inside. Use `LeakyTanh` where that loses too much.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> z, log_det = flows.Tanh().forward(jnp.array([[0.0, 100.0]]))
    >>> z, round(float(log_det[0]), 1)  # 2 (log 2 - 100)
    (Array([[0., 1.]], dtype=float32), -198.6)
  """

  def up(self, x):
    """Return tanh(x) and the log of its slope."""
    return jnp.tanh(x), _log_slope(x)

  def down(self, z):
    """Return the inverse of tanh and the log of tanh's slope there."""
    inside = 1 - jnp.finfo(z.dtype).epsneg
    z = jnp.clip(z, -inside, inside)
    return jnp.arctanh(z), jnp.log1p(-z) + jnp.log1p(z)


class LeakyTanh(Pointwise):
  """Applies tanh near zero, and the straight lines that continue it at both ends.

  z = tanh(x) where |x| <= m, sign(x) (tanh(m) + (1 - tanh(m)^2) (|x| - m)) beyond, m = max_val
  log_det (B,) = sum_i log(1 - tanh(min(|x_i|, m))^2),  x and z (B, ...)

  The map and its slope are continuous, and it reaches every real number.

  Args:
    max_val: where the tails begin, in (0, 8]: float32 has no slope to continue beyond.

  Raises:
    ValueError: if `max_val` is out of range.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> layer = flows.LeakyTanh(max_val=2.0)
    >>> x, _ = layer.inverse(layer.forward(jnp.array([[0.5, 100.0]]))[0])
    >>> [round(float(v), 2) for v in x[0]]
    [0.5, 100.0]
  """

  def __init__(self, max_val: float = 3.0):
    if not 0 < max_val <= _LARGEST:
      raise ValueError(f"max_val must be in (0, {_LARGEST}], got {max_val}")
    self.max_val = float(max_val)
    self.end, self.slope = math.tanh(max_val), 1 / math.cosh(max_val) ** 2

  def up(self, x):
    """Return the image of x and the log of the slope there."""
    near = jnp.clip(x, -self.max_val, self.max_val)
    # x - near is zero inside, and how far beyond the end outside.
    return jnp.tanh(near) + self.slope * (x - near), _log_slope(near)

  def down(self, z):
    """Undo `up`."""
    near = jnp.clip(z, -self.end, self.end)
    x = jnp.arctanh(near) + (z - near) / self.slope
    return x, jnp.log1p(-near) + jnp.log1p(near)


def _log_slope(x):
  """Return log(1 - tanh(x)^2) = 2 (log 2 - x - softplus(-2 x)), even in x, with all its digits."""
  x = jnp.abs(x)
  return 2 * (math.log(2) - x - jax.nn.softplus(-2 * x))
