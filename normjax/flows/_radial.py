"""Radial flows (arXiv 1505.05770): stretching or squeezing around one point.

What differs from the paper: beta is alpha times a number above -1 (see `_above_minus_one.py`), so
that zero is the identity; and the inverse is in closed form, by the distance's quadratic equation.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from normjax.flows._above_minus_one import above_minus_one
from normjax.flows._checks import check_vectors
from normjax.flows._conditional_parameters import ParametricFlow
from normjax.flows._safe_length import safe_length
from normjax.flows._widened import widened

_LEAST_ALPHA = 1e-3


def radial(
  x: Float[Array, "b d"],
  center: Float[Array, "*b d"],
  raw_alpha: Float[Array, "*b"],
  raw_beta: Float[Array, "*b"],
) -> tuple[Float[Array, "b d"], Float[Array, "b"]]:
  """Move points away from a center, or towards it.

  z = x + beta (x - center) / (alpha + r),  r = |x - center|,  x and z (b, d)
  alpha = softplus(raw_alpha) + 1e-3,  beta = alpha m(raw_beta),  m > -1
  log_det (b,) = (d - 1) log(1 + beta / (alpha + r)) + log(1 + alpha beta / (alpha + r)^2)

  Args:
    x: (b, d).
    center: (d,) or one for each example (b, d).
    raw_alpha: how far the center reaches, () or (b,).
    raw_beta: how much it moves, likewise; zero is the identity.

  Returns:
    `(z, log_det)`; log_det is float32 or wider.

  Raises:
    ValueError: if shapes disagree.

  Reference:
    Rezende, Mohamed, "Variational inference with normalizing flows", 2015, arXiv 1505.05770.

  Example:
    >>> zero = jnp.zeros(())
    >>> radial(jnp.ones((1, 2)), jnp.zeros(2), zero, zero)[0]
    Array([[1., 1.]], dtype=float32)
  """
  offset, center, alpha, m = _parameters("x", x, center, raw_alpha, raw_beta)
  q = alpha / (alpha + safe_length(offset))
  z = center + offset * (1 + m * q)[:, None]
  return z.astype(x.dtype), _log_det(x.shape[1], m, q)


def radial_inverse(
  z: Float[Array, "b d"],
  center: Float[Array, "*b d"],
  raw_alpha: Float[Array, "*b"],
  raw_beta: Float[Array, "*b"],
) -> tuple[Float[Array, "b d"], Float[Array, "b"]]:
  """Undo `radial` by the positive root of a quadratic equation.

  r^2 + (alpha + beta - s) r - alpha s = 0,  s = |z - center|

  Args:
    z: (b, d).
    center: as for `radial`.
    raw_alpha: as for `radial`.
    raw_beta: as for `radial`.

  Returns:
    `(x, log_det)`, with log_det = log|det dx/dz| (b,).

  Raises:
    ValueError: if shapes disagree.

  Reference:
    Rezende, Mohamed, "Variational inference with normalizing flows", 2015, arXiv 1505.05770.

  Example:
    >>> parameters = jnp.zeros(2), jnp.ones(()), jnp.array(3.0)
    >>> z, _ = radial(jnp.array([[0.25, 0.75]]), *parameters)
    >>> radial_inverse(z, *parameters)[0].round(4)
    Array([[0.25, 0.75]], dtype=float32)
  """
  offset, center, alpha, m = _parameters("z", z, center, raw_alpha, raw_beta)
  s = safe_length(offset)
  # Lengths in units of the largest: their squares neither overflow nor vanish.
  unit = lax.stop_gradient(alpha + s)
  a, s = alpha / unit, s / unit
  p = a * (1 + m) - s
  root = jnp.sqrt(p**2 + 4 * a * s)
  r = jnp.where(p > 0, 2 * a * s / jnp.where(p > 0, p + root, 1), (root - p) / 2)
  q = a / (a + r)
  x = center + offset / (1 + m * q)[:, None]
  return x.astype(z.dtype), -_log_det(z.shape[1], m, q)


class RadialFlow(ParametricFlow):
  """Applies `radial` with trained parameters, moved by a network of the condition if there is one.

  z = x + beta (x - center) / (alpha + |x - center|),  x and z (B, D);  log_det (B,) as in `radial`

  A new layer is the identity: raw_beta starts at zero, the center at random.

  Args:
    features: D.
    rngs: the stream `params`.
    **options: `cond_dim`, features of the condition (B, C), or None; `width` of its network, 64,
      and `depth`, 1 residual block; `param_dtype`.

  Raises:
    ValueError: if a size is below 1.

  Reference:
    Rezende, Mohamed, "Variational inference with normalizing flows", 2015, arXiv 1505.05770.

  Example:
    >>> layer = RadialFlow(3, rngs=nnx.Rngs(0))
    >>> layer.forward(jnp.ones((2, 3)))[1]
    Array([0., 0.], dtype=float32)
  """

  function, inverse_function = staticmethod(radial), staticmethod(radial_inverse)

  def __init__(self, features: int, *, rngs: nnx.Rngs, **options):
    shapes = {"center": (features,), "raw_alpha": (), "raw_beta": ()}
    super().__init__(features, shapes, {"center": 1.0}, rngs=rngs, **options)


def _parameters(name, x, center, raw_alpha, raw_beta):
  """Return the offset from the center, the center, alpha and beta / alpha."""
  check_vectors(name, x)
  if center.shape not in (x.shape, x.shape[1:]):
    raise ValueError(f"center must have shape {x.shape[1:]} or {x.shape}, got {center.shape}")
  for label, value in (("raw_alpha", raw_alpha), ("raw_beta", raw_beta)):
    if value.shape not in (x.shape[:1], ()):
      raise ValueError(f"{label} must have shape () or {x.shape[:1]}, got {value.shape}")
  wide = widened(x)
  center = jnp.broadcast_to(center.astype(wide.dtype), x.shape)
  raw_alpha, raw_beta = (
    jnp.broadcast_to(p.astype(wide.dtype), x.shape[:1]) for p in (raw_alpha, raw_beta)
  )
  return wide - center, center, jax.nn.softplus(raw_alpha) + _LEAST_ALPHA, above_minus_one(raw_beta)


def _log_det(d, m, q):
  return (d - 1) * jnp.log1p(m * q) + jnp.log1p(m * q**2)
