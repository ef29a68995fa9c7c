"""Any increasing function of single entries as a flow layer: slope and inverse come with it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from normjax.flows._invert_monotone import invert_monotone
from normjax.flows._pointwise import Pointwise


class Monotone(Pointwise):
  """Applies a given increasing function to every entry.

  z = f(x),  x and z (B, ...);  log_det (B,) = sum_i log f'(x_i)

  The slope is f's derivative by jax, the inverse its root by `invert_monotone`, with implicit
  gradients, also by the parameters of f. A slope of zero counts as the smallest positive number.
  Latents that f doesn't reach have no data.

  Args:
    function: f, a function of an array of any shape, or a module that is called with one;
      increasing, entry by entry.
    lower: the least x there is.
    upper: the largest x there is.

  Raises:
    ValueError: if `function` can't be called or `lower` is not below `upper`.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> layer = flows.Monotone(jnp.sin, lower=-jnp.pi / 2, upper=jnp.pi / 2)
    >>> round(float(layer.inverse(jnp.array([[0.5]]))[0][0, 0]), 4)  # pi / 6
    0.5236
  """

  def __init__(
    self,
    function: Callable[[Array], Array],
    *,
    lower: float = -jnp.inf,
    upper: float = jnp.inf,
  ):
    if not callable(function):
      raise ValueError(f"function must be a function of an array, got {function!r}")
    if not lower < upper:
      raise ValueError(f"lower must be below upper, got {lower} and {upper}")
    self.function, self.lower, self.upper = function, float(lower), float(upper)

  def up(self, x):
    """Return f(x) and the log of its slope."""
    z, slope = jax.jvp(self.function, (x,), (jnp.ones_like(x),))
    return z, jnp.log(jnp.maximum(slope, jnp.finfo(x.dtype).tiny))

  def down(self, z):
    """Return the root and the log of the slope there."""
    x = invert_monotone(self.function, z, lower=self.lower, upper=self.upper)
    return x, self.up(x)[1]
