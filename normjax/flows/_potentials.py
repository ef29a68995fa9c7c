"""The four two-dimensional energies on which flows are fitted by reverse KL: p(z) ~ exp(-U(z)).

With w1 = sin(pi z1 / 2), w2 = 3 exp(-((z1 - 1) / 0.6)^2 / 2), w3 = 3 sigmoid((z1 - 1) / 0.3). The
logarithms of sums are taken with logaddexp, so that energies and forces stay finite far from the
modes, where the paper's formulas underflow to log 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from normjax.flows._checks import check_batch
from normjax.flows._safe_length import safe_length


def energy_u1(z: Float[Array, "b 2"]) -> Float[Array, "b"]:
  """Return the energy of a ring of radius 2 that is heavy on its left and right.

  U1 = ((|z| - 2) / 0.4)^2 / 2 - log(exp(-((z1 - 2) / 0.6)^2 / 2) + exp(-((z1 + 2) / 0.6)^2 / 2))

  Args:
    z: points (b, 2).

  Returns:
    U1 (b,), minus the log-density up to a constant.

  Raises:
    ValueError: if `z` is not floating (b, 2).

  Reference:
    Rezende, Mohamed, "Variational Inference with Normalizing Flows", 2015, arXiv 1505.05770.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> energy = flows.energy_u1(jnp.array([[0.0, 2.0]]))
    >>> round(float(energy[0]), 3)  # half of (2 / 0.6)^2, minus log 2
    4.862
  """
  z1, _ = _columns(z)
  sides = jnp.logaddexp(_log_bump((z1 - 2) / 0.6), _log_bump((z1 + 2) / 0.6))
  return -_log_bump((safe_length(z) - 2) / 0.4) - sides


def energy_u2(z: Float[Array, "b 2"]) -> Float[Array, "b"]:
  """Return the energy of a sine wave.

  U2 = ((z2 - w1) / 0.4)^2 / 2,  w1 = sin(pi z1 / 2)

  Args:
    z: points (b, 2).

  Returns:
    U2 (b,), minus the log-density up to a constant. It does not decay along the wave: to normalize
    it, bound z1.

  Raises:
    ValueError: if `z` is not floating (b, 2).

  Reference:
    Rezende, Mohamed, "Variational Inference with Normalizing Flows", 2015, arXiv 1505.05770.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> energy = flows.energy_u2(jnp.array([[0.0, 0.4]]))
    >>> round(float(energy[0]), 3)
    0.5
  """
  z1, z2 = _columns(z)
  return -_log_bump((z2 - _wave(z1)) / 0.4)


def energy_u3(z: Float[Array, "b 2"]) -> Float[Array, "b"]:
  """Return the energy of a sine wave with a second branch around z1 = 1.

  U3 = -log(exp(-((z2 - w1) / 0.35)^2 / 2) + exp(-((z2 - w1 + w2) / 0.35)^2 / 2)),
  w1 = sin(pi z1 / 2), w2 = 3 exp(-((z1 - 1) / 0.6)^2 / 2)

  Args:
    z: points (b, 2).

  Returns:
    U3 (b,), minus the log-density up to a constant; see `energy_u2` on its normalization.

  Raises:
    ValueError: if `z` is not floating (b, 2).

  Reference:
    Rezende, Mohamed, "Variational Inference with Normalizing Flows", 2015, arXiv 1505.05770.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> energy = flows.energy_u3(jnp.array([[-4.0, 0.0]]))
    >>> round(float(energy[0]), 3)  # both branches: -log 2
    -0.693
  """
  z1, z2 = _columns(z)
  w2 = 3 * jnp.exp(_log_bump((z1 - 1) / 0.6))
  ridge = z2 - _wave(z1)
  return -jnp.logaddexp(_log_bump(ridge / 0.35), _log_bump((ridge + w2) / 0.35))


def energy_u4(z: Float[Array, "b 2"]) -> Float[Array, "b"]:
  """Return the energy of a sine wave that splits into two for z1 > 1.

  U4 = -log(exp(-((z2 - w1) / 0.4)^2 / 2) + exp(-((z2 - w1 + w3) / 0.35)^2 / 2)),
  w1 = sin(pi z1 / 2), w3 = 3 sigmoid((z1 - 1) / 0.3)

  Args:
    z: points (b, 2).

  Returns:
    U4 (b,), minus the log-density up to a constant; see `energy_u2` on its normalization.

  Raises:
    ValueError: if `z` is not floating (b, 2).

  Reference:
    Rezende, Mohamed, "Variational Inference with Normalizing Flows", 2015, arXiv 1505.05770.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> energy = flows.energy_u4(jnp.array([[4.0, 0.4]]))
    >>> round(float(energy[0]), 3)
    0.5
  """
  z1, z2 = _columns(z)
  w3 = 3 * jax.nn.sigmoid((z1 - 1) / 0.3)
  ridge = z2 - _wave(z1)
  return -jnp.logaddexp(_log_bump(ridge / 0.4), _log_bump((ridge + w3) / 0.35))


def _columns(z):
  check_batch("z", z, (2,))
  return z[:, 0], z[:, 1]


def _wave(z1):
  return jnp.sin(jnp.pi / 2 * z1)


def _log_bump(t):
  return -0.5 * t**2
