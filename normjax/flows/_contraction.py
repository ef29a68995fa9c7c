"""Equations x + g(x) = z whose g contracts: solved by iteration, differentiated implicitly."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def solve_residual(
  residual: Callable[[Array], Array], z: Float[Array, "b d"]
) -> Float[Array, "b d"]:
  """Return the x (b, d) with x + residual(x) = z, for a residual of Lipschitz constant below one.

  Derivatives of every order, in both modes, follow from the implicit function theorem: they solve
  (I + J) u = v, or its transpose, by the same iteration, and store none of its steps.
  """
  solve = lambda _, start: _iterate(lambda x: z - residual(x), start)

  def solve_tangent(linear, v):
    return jax.lax.custom_linear_solve(linear, v, _solve_linear, _solve_linear)

  return jax.lax.custom_root(lambda x: x + residual(x) - z, z, solve, solve_tangent)


def _solve_linear(linear, v):
  """Solve (I + J) u = v by u <- v - J u."""
  return _iterate(lambda u: v - (linear(u) - u), v)


def _iterate(step, start):
  """Apply a contraction until rounding errors stop it.

  In exact arithmetic the steps of every example become ever shorter, so that the first that isn't
  shorter than all before shows that the rest is noise.
  """
  epsilon = jnp.finfo(start.dtype).eps

  def body(carry):
    x, shortest, _ = carry
    new = step(x)
    length = _norms(new - x)
    return new, jnp.minimum(length, shortest), (length < shortest) & (length > epsilon * _norms(x))

  infinite = jnp.full(start.shape[:1], jnp.inf, start.dtype)
  carry = start, infinite, jnp.full(start.shape[:1], True)
  return jax.lax.while_loop(lambda carry: jnp.any(carry[2]), body, carry)[0]


def _norms(v):
  """Return the Euclidean norms (b,), whose squares may overflow."""
  largest = jnp.max(jnp.abs(v), axis=1, keepdims=True)
  scale = jnp.where(largest > 0, largest, 1)
  return scale[:, 0] * jnp.sqrt(jnp.sum((v / scale) ** 2, axis=1))
