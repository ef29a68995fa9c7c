"""Any increasing function of single entries as a flow layer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from normjax.flows._invert_monotone import invert_monotone
from normjax.flows._pointwise import Pointwise


class NumericalInverse(Pointwise):
  """Applies an increasing function of single entries, and inverts it by finding its root.

  z = f(x),  x and z (B, ...);  log_det (B,) = sum_i log f'(x_i), f' by forward-mode autodiff

  The inverse is `invert_monotone`'s: exact to rounding, with implicit gradients, also by the
  parameters of f. Latents that f doesn't reach have no data.

  Args:
    function: f, a function of an array, or a module that is called with one; increasing, entry by
      entry, with f' > 0 and any number of axes.

  Raises:
    ValueError: if `function` can't be called.

  Example:
    >>> layer = NumericalInverse(lambda x: x + jnp.sinh(x))
    >>> z, log_det = layer.forward(jnp.array([[0.5, -3.0]]))
    >>> [round(float(x), 4) for x in layer.inverse(z)[0][0]]
    [0.5, -3.0]
  """

  def __init__(self, function: Callable[[Array], Array]):
    if not callable(function):
      raise ValueError(f"function must be a function of an array, got {function!r}")
    self.function = function

  def up(self, x):
    """Return f(x) and log f'(x)."""
    z, slope = jax.jvp(self.function, (x,), (jnp.ones_like(x),))
    return z, jnp.log(slope)

  def down(self, z):
    """Return the root x of f(x) = z and log f'(x)."""
    x = invert_monotone(self.function, z)
    return x, self.up(x)[1]
