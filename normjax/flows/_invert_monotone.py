"""Inverses of increasing functions of single numbers, by safeguarded Newton steps.

Brackets are halved in the order of the floating-point numbers, not in their values: between 0 and
the largest number lies one of size 1. So a search over the whole line needs no first bracket, and
at most as many halvings as a number has bits, from one root of 1e-30 to another of 1e30.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from normjax.flows._widened import widened

# One step in so many halves the bracket whatever Newton's would do: that bounds their number.
_HALVE_EVERY = 3


def invert_monotone(
  function: Callable[[Array], Array],
  y: Float[Array, "*shape"],
  *,
  guess: Float[Array, "*shape"] | None = None,
  lower: ArrayLike = -jnp.inf,
  upper: ArrayLike = jnp.inf,
) -> Float[Array, "*shape"]:
  """Solve function(x) = y for every entry of x, to the last digits of its dtype.

  x_i+1 = x_i - (f(x_i) - y) / f'(x_i), or the middle of the bracket where that leaves it;  y and x
  (*shape), f increasing, entry by entry

  Derivatives are those of the implicit function, dx = (dy - df) / f'(x), where df is by everything
  that `function` closes over; the steps are not differentiated, and `guess` has no gradient. All
  entries take steps until the last has its root, about 6 and never more than 3 times the bits of a
  number.

  Args:
    function: maps (*shape) to (*shape), increasing in each entry and a function of this entry
      alone. NaN counts as too far from the guess.
    y: its values.
    guess: where to start; y by default.
    lower: the least x, a scalar or (*shape); it is what comes out where all values are above y.
    upper: the largest x, likewise.

  Returns:
    x, of y's shape and dtype; NaN where y is NaN.

  Raises:
    ValueError: if y is not floating, or `function` or `guess` gives another shape.

  Example:
    >>> solve = lambda y: invert_monotone(lambda x: x + jnp.exp(x), y)
    >>> [round(float(x), 4) for x in solve(jnp.array([2.0, 1e4]))]
    [0.4429, 9.2094]
    >>> round(float(jax.grad(solve)(2.0)), 4)  # 1 / (1 + exp(x))
    0.3911
  """
  y = jnp.asarray(y)
  if not jnp.issubdtype(y.dtype, jnp.floating):
    raise ValueError(f"y must be floating, got {y.dtype}")
  if guess is not None and jnp.shape(guess) != y.shape:
    raise ValueError(f"guess must have the shape {y.shape} of y, got {jnp.shape(guess)}")
  wide = widened(y)
  result = jax.eval_shape(function, wide)
  if getattr(result, "shape", None) != y.shape:
    raise ValueError(f"function must keep the shape {y.shape} of its input, got {result}")
  largest = jnp.finfo(wide.dtype).max
  low, high = (
    jnp.broadcast_to(jnp.clip(jnp.asarray(end, wide.dtype), -largest, largest), y.shape)
    for end in (lower, upper)
  )
  start = wide if guess is None else jnp.asarray(guess, wide.dtype)
  start = jnp.clip(jnp.where(jnp.isnan(start), 0, start), low, high)
  tiny = jnp.finfo(wide.dtype).tiny

  def solve(f, start):
    return _search(f, start, low, high, jnp.abs(wide))

  def tangent_solve(f, tangent):
    # The Jacobian is a diagonal, so one product with ones shows it.
    return tangent / jnp.maximum(f(jnp.ones_like(tangent)), tiny)

  error = lambda x: function(x).astype(wide.dtype) - wide
  x = lax.custom_root(error, lax.stop_gradient(start), solve, tangent_solve)
  return jnp.where(jnp.isnan(wide), wide, x).astype(y.dtype)


def _search(f, start, low, high, scale):
  """Return the root of f in [low, high]; errors below the rounding of `scale` count as none."""
  eps = jnp.finfo(start.dtype).eps
  low, high, start, scale = (lax.stop_gradient(v) for v in (low, high, start, scale))

  def step(carry):
    i, x, low, high, done = carry
    value, slope = jax.jvp(f, (x,), (jnp.ones_like(x),))
    above = jnp.where(jnp.isnan(value), x > start, value >= 0)
    low, high = jnp.where(above, low, x), jnp.where(above, x, high)
    newton, middle = x - value / slope, _middle(low, high)
    trusted = (newton > low) & (newton < high) & (i % _HALVE_EVERY != _HALVE_EVERY - 1)
    at_root = (jnp.abs(value) <= eps * scale) | (jnp.abs(newton - x) <= eps * jnp.abs(x))
    done = done | at_root | (middle <= low)
    x = jnp.where(done, x, jnp.where(trusted, newton, middle))
    return i + 1, x, low, high, done

  bits = 8 * start.dtype.itemsize
  more = lambda carry: (carry[0] < _HALVE_EVERY * bits) & ~jnp.all(carry[-1])
  # Integers of fixed width, whatever x64 says, and no `full_like`: f may be mapped over.
  zero = jnp.zeros((), jnp.int32)
  return lax.while_loop(more, step, (zero, start, low, high, jnp.isnan(scale)))[1]


def _rank(x):
  """Return integers in the order of the floating-point numbers x, neighbours differing by 1."""
  integer = {4: jnp.int32, 8: jnp.int64}[x.dtype.itemsize]
  bits = lax.bitcast_convert_type(x, integer)
  # A negative number holds its size below the sign bit.
  return jnp.where(bits < 0, jnp.iinfo(integer).min - bits, bits)


def _middle(low, high):
  """Return the number with as many others between it and `low` as between it and `high`."""
  a, b = _rank(low), _rank(high)
  rank = (a & b) + ((a ^ b) >> 1)  # the mean of both, without overflow
  bits = jnp.where(rank < 0, jnp.iinfo(rank.dtype).min - rank, rank)
  return lax.bitcast_convert_type(bits, low.dtype)
