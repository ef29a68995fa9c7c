"""What keeps planar and radial flows invertible: a number above -1 from any number.

The appendix of arXiv 1505.05770 has m(a) = -1 + log(1 + exp(a)), for which m(0) = -0.31: a layer
whose parameters are zero is no identity, and the correction of a planar layer's direction explodes
as its normal goes to zero. Ours is shifted so that m(0) = 0, and stays away from -1.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float
from numpy.polynomial import Polynomial

LEAST_SLOPE = 1e-3
_SHARE = 1 - math.exp(-1)
_LARGE = 30.0  # beyond, log(1 + c (exp(a) - 1)) is a + log(c) to the last digit
_SMALL = 1e-2  # below, eight terms of the series are exact, and m(a) / a and its slope are not


def above_minus_one(a: Float[Array, "..."]) -> Float[Array, "..."]:
  """Return m(a) = (1 - l) (softplus(a + log(e - 1)) - 1), which is above l - 1, and m(0) = 0."""
  return a * slope_to_origin(a)


def slope_to_origin(a: Float[Array, "..."]) -> Float[Array, "..."]:
  """Return m(a) / a, with its limit and its derivatives at zero."""
  # m(a) / (1 - l) is log(1 + c (exp(a) - 1)), c = 1 - 1 / e, without the cancellation.
  near = jnp.abs(a) < _SMALL
  safe = jnp.where(near, 1, a)
  m = jnp.log1p(_SHARE * jnp.expm1(jnp.minimum(safe, _LARGE)))
  m = jnp.where(safe > _LARGE, safe + math.log(_SHARE), m)
  series = jnp.polyval(jnp.asarray(_SERIES, a.dtype), jnp.where(near, a, 0))
  return (1 - LEAST_SLOPE) * jnp.where(near, series, m / safe)


def _cumulants() -> list[float]:
  """Return the series of log(1 + c (exp(a) - 1)) / a, highest power first.

  It generates the cumulants of a coin of chance c: k_1 = c, k_n+1 = c (1 - c) dk_n / dc.
  """
  cumulant, terms = Polynomial([0.0, 1.0]), []
  for n in range(1, 9):
    terms.append(float(cumulant(_SHARE)) / math.factorial(n))
    cumulant = Polynomial([0.0, 1.0, -1.0]) * cumulant.deriv()
  return terms[::-1]


_SERIES = _cumulants()
