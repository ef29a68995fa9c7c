"""Angles as a network should see them: a cosine and a sine do not jump where the circle closes."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from normjax.flows._checks import check_batch, constant, is_concrete
from normjax.flows._widened import widened


def periodic_features(x: Float[Array, "*batch d"], periods: ArrayLike) -> Float[Array, "*batch e"]:
  """Represent every feature that has a period by its cosine and sine.

  y = [u | v],  x (*batch, D), y (*batch, 2 D)
  (u_i, v_i) = (cos, sin)(2 pi x_i / p_i) where p_i is finite, (x_i, 0) where it is infinite

  So y has one shape whatever the periods are: they may be traced.

  Args:
    x: features, floating.
    periods: p, a scalar or (D,), above 0; infinite for a feature that has none.

  Returns:
    y, in x's dtype.

  Raises:
    ValueError: if `x` is not floating, `periods` has another shape, or one is not above 0 (they are
      looked at unless they are being traced).

  Example:
    >>> y = periodic_features(jnp.array([4.125, 7.0]), [1.0, jnp.inf])
    >>> [round(float(v), 3) for v in y]  # an eighth of the circle, and 7
    [0.707, 7.0, 0.707, 0.0]
  """
  check_batch("x", x)
  wide = widened(x)
  periods = jnp.broadcast_to(as_periods(periods, x.shape[-1]).astype(wide.dtype), x.shape)
  finite = jnp.isfinite(periods)
  length = jnp.where(finite, periods, 1)
  # The remainder is exact, however many turns there are.
  angle = 2 * jnp.pi * (jnp.fmod(wide, length) / length)
  u, v = jnp.where(finite, jnp.cos(angle), wide), jnp.where(finite, jnp.sin(angle), 0)
  return jnp.concatenate([u, v], axis=-1).astype(x.dtype)


def as_periods(periods: ArrayLike, features: int) -> Float[Array, "d"]:
  """Return `periods`, a scalar or one for each feature, as an array; it may be traced."""
  periods = constant("periods", periods, (features,), float)
  if is_concrete(periods) and not np.all(periods > 0):
    raise ValueError(f"periods must be above 0, infinite where there is none, got {periods}")
  return periods
