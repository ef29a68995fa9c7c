"""Planar flows (arXiv 1505.05770): a bend across one hyperplane.

What differs from the paper: the constraint of u (see `_above_minus_one.py`), and that there is an
inverse: the only unknown is one number per example, the root of an increasing function.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from normjax._sizes import check_sizes
from normjax.flows._above_minus_one import slope_to_origin
from normjax.flows._checks import check_vectors
from normjax.flows._conditional_parameters import ParametricFlow
from normjax.flows._invert_monotone import invert_monotone
from normjax.flows._safe_length import direction_and_length
from normjax.flows._widened import widened


def planar(
  x: Float[Array, "b d"],
  w: Float[Array, "*b d"],
  u: Float[Array, "*b d"],
  bias: Float[Array, "*b"],
) -> tuple[Float[Array, "b d"], Float[Array, "b"]]:
  """Bend the space across a hyperplane.

  z = x + v tanh(w.x + bias),  v = u + (m(w.u) - w.u) w / |w|^2,  m(a) > -1,  x and z (b, d)
  log_det (b,) = log(1 + m(w.u) (1 - tanh(w.x + bias)^2))

  Since w.v = m(w.u) is above -1, the map is invertible whatever the parameters.

  Args:
    x: (b, d).
    w: the normal of the hyperplane, (d,) or one for each example (b, d).
    u: where it moves, likewise.
    bias: () or (b,).

  Returns:
    `(z, log_det)`; log_det is float32 or wider.

  Raises:
    ValueError: if shapes disagree.

  Reference:
    Rezende, Mohamed, "Variational inference with normalizing flows", 2015, arXiv 1505.05770.

  Example:
    >>> z, log_det = planar(jnp.ones((1, 2)), jnp.array([1.0, 0.0]), jnp.zeros(2), jnp.zeros(()))
    >>> z, log_det  # u = 0 is the identity
    (Array([[1., 1.]], dtype=float32), Array([0.], dtype=float32))
  """
  wide, w, bias, v, m = _parameters("x", x, w, u, bias)
  bend = jnp.tanh(jnp.sum(w * wide, axis=1) + bias)
  return (wide + v * bend[:, None]).astype(x.dtype), jnp.log1p(m * (1 - bend**2))


def planar_inverse(
  z: Float[Array, "b d"],
  w: Float[Array, "*b d"],
  u: Float[Array, "*b d"],
  bias: Float[Array, "*b"],
) -> tuple[Float[Array, "b d"], Float[Array, "b"]]:
  """Undo `planar`: solve for the one number that the bend is a function of.

  a + m(w.u) tanh(a + bias) = w.z,  x = z - v tanh(a + bias)

  Args:
    z: (b, d).
    w: as for `planar`.
    u: as for `planar`.
    bias: as for `planar`.

  Returns:
    `(x, log_det)`, with log_det = log|det dx/dz| (b,).

  Raises:
    ValueError: if shapes disagree.

  Reference:
    Rezende, Mohamed, "Variational inference with normalizing flows", 2015, arXiv 1505.05770.

  Example:
    >>> parameters = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0]), jnp.ones(())
    >>> z, _ = planar(jnp.array([[0.25, 0.75]]), *parameters)
    >>> planar_inverse(z, *parameters)[0].round(4)
    Array([[0.25, 0.75]], dtype=float32)
  """
  wide, w, bias, v, m = _parameters("z", z, w, u, bias)
  a = invert_monotone(lambda a: a + m * jnp.tanh(a + bias), jnp.sum(w * wide, axis=1))
  bend = jnp.tanh(a + bias)
  return (wide - v * bend[:, None]).astype(z.dtype), -jnp.log1p(m * (1 - bend**2))


class PlanarFlow(ParametricFlow):
  """Applies `planar` with trained parameters, moved by a network of the condition if there is one.

  z = x + v tanh(w.x + bias),  x and z (B, D);  log_det (B,) as in `planar`

  A new layer is the identity: u starts at zero, w at random.

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
    >>> layer = PlanarFlow(3, rngs=nnx.Rngs(0))
    >>> layer.forward(jnp.ones((2, 3)))[1]
    Array([0., 0.], dtype=float32)
  """

  function, inverse_function = staticmethod(planar), staticmethod(planar_inverse)

  def __init__(self, features: int, *, rngs: nnx.Rngs, **options):
    check_sizes(features=features)
    shapes = {"w": (features,), "u": (features,), "bias": ()}
    super().__init__(features, shapes, {"w": features**-0.5}, rngs=rngs, **options)


def _parameters(name, x, w, u, bias):
  """Return the widened input, `w`, `bias`, the direction v and m(w.u)."""
  check_vectors(name, x)
  for label, value in (("w", w), ("u", u)):
    if value.shape not in (x.shape, x.shape[1:]):
      raise ValueError(f"{label} must have shape {x.shape[1:]} or {x.shape}, got {value.shape}")
  if bias.shape not in (x.shape[:1], ()):
    raise ValueError(f"bias must have shape () or {x.shape[:1]}, got {bias.shape}")
  wide = widened(x)
  w, u = (jnp.broadcast_to(p.astype(wide.dtype), x.shape) for p in (w, u))
  bias = jnp.broadcast_to(bias.astype(wide.dtype), x.shape[:1])
  normal, length = direction_and_length(w)
  along = jnp.sum(normal * u, axis=1)
  # v.normal = m(w.u) / |w| = (u.normal) m(w.u) / (w.u), which has a limit as w goes to zero.
  ratio = slope_to_origin(length * along)
  v = u + normal * (along * (ratio - 1))[:, None]
  return wide, w, bias, v, length * along * ratio
