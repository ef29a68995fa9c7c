"""The true log-densities of those toy data sets that have one in closed form.

They are anchors for trained models: the mean of -log p over samples estimates the entropy, below
which no model's expected negative log-likelihood can fall.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from normjax.flows._checks import check_above_zero, check_batch


def checkerboard_log_prob(x: Float[Array, "n 2"]) -> Float[Array, "n"]:
  """Return the true log-density of `checkerboard`.

  log p(x) = -log 32 if floor(x1 / 2) + floor(x2 / 2) is even and x in [-4, 4)^2, else -inf

  The entropy is log 32 = 3.4657 nats: no model has a lower expected negative log-likelihood. Data
  multiplied by c have log c^2 more.

  Args:
    x: points (n, 2).

  Returns:
    log p(x) (n,) in nats.

  Raises:
    ValueError: if `x` is not floating (n, 2).

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> log_prob = flows.checkerboard_log_prob(jnp.array([[1.0, 1.0], [1.0, -1.0]]))
    >>> round(float(log_prob[0]), 3), float(log_prob[1])
    (-3.466, -inf)
  """
  check_batch("x", x, (2,))
  cells = jnp.floor(x / 2)
  inside = jnp.all((cells >= -2) & (cells < 2), axis=-1)
  dark = jnp.mod(cells[:, 0] + cells[:, 1], 2) == 0
  return jnp.where(inside & dark, jnp.asarray(-math.log(32), x.dtype), -jnp.inf)


def eight_gaussians_log_prob(
  x: Float[Array, "n 2"], *, radius: float = 2.0, std: float = 0.1
) -> Float[Array, "n"]:
  """Return the true log-density of `eight_gaussians`.

  log p(x) = logsumexp_k(-|x - centre_k|^2 / (2 std^2)) - log(8 * 2 pi std^2)

  Args:
    x: points (n, 2).
    radius: as for `eight_gaussians`.
    std: as for `eight_gaussians`.

  Returns:
    log p(x) (n,) in nats.

  Raises:
    ValueError: if `x` is not floating (n, 2), or `std` not above 0.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> log_prob = flows.eight_gaussians_log_prob(jnp.array([[2.0, 0.0]]))
    >>> round(float(log_prob[0]), 3)  # -log(8 * 2 pi / 100)
    0.688
  """
  check_batch("x", x, (2,))
  check_above_zero(std=std)
  angle = jnp.pi / 4 * jnp.arange(8)
  centres = radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
  offsets = x[:, None, :] - centres[None, :, :].astype(x.dtype)  # (n, 8, 2)
  log_modes = -jnp.sum(offsets**2, axis=-1) / (2 * std**2)  # (n, 8)
  return jax.nn.logsumexp(log_modes, axis=-1) - math.log(8 * 2 * math.pi * std**2)
