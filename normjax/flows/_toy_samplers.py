"""Two-dimensional toy data, drawn from a key.

Implementations differ in how they scale these sets; ours are given by the equations below and
scaled nowhere else. Points are i.i.d.: each picks its moon, arm or cell by itself, so counts vary.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from normjax._sizes import check_sizes
from normjax.flows._checks import check_sampling, is_concrete


def two_moons(key: Array, n: int, *, noise: float = 0.05) -> Float[Array, "n 2"]:
  """Draw from two interleaved half circles of radius 1.

  (cos t, sin t) or (1 - cos t, 1/2 - sin t), t uniform on [0, pi), plus noise * N(0, I)

  Args:
    key: a PRNG key.
    n: how many points, at least 1.
    noise: standard deviation across the moons.

  Returns:
    Points (n, 2).

  Raises:
    ValueError: if `n` is not an int of at least 1, or `noise` below 0.

  Example:
    >>> import jax
    >>> from normjax import flows
    >>> flows.two_moons(jax.random.key(0), 100).shape
    (100, 2)
  """
  _check(n, noise=noise)
  angle_key, side_key, noise_key = jax.random.split(key, 3)
  t = jax.random.uniform(angle_key, (n,), maxval=jnp.pi)
  upper = jax.random.bernoulli(side_key, shape=(n,))
  x1 = jnp.where(upper, jnp.cos(t), 1 - jnp.cos(t))
  x2 = jnp.where(upper, jnp.sin(t), 0.5 - jnp.sin(t))
  return _blur(noise_key, x1, x2, noise)


def circles(
  key: Array, n: int, *, inner_radius: float = 0.5, noise: float = 0.05
) -> Float[Array, "n 2"]:
  """Draw from two concentric circles, the outer one of radius 1.

  r (cos t, sin t), r = 1 or inner_radius, t uniform on [0, 2 pi), plus noise * N(0, I)

  Args:
    key: a PRNG key.
    n: how many points, at least 1.
    inner_radius: radius of the inner circle, on which half of the points lie.
    noise: standard deviation around the circles.

  Returns:
    Points (n, 2).

  Raises:
    ValueError: if `n` is not an int of at least 1, or `noise` below 0.

  Example:
    >>> import jax
    >>> from normjax import flows
    >>> flows.circles(jax.random.key(0), 100).shape
    (100, 2)
  """
  _check(n, noise=noise)
  angle_key, side_key, noise_key = jax.random.split(key, 3)
  t = jax.random.uniform(angle_key, (n,), maxval=2 * jnp.pi)
  radius = jnp.where(jax.random.bernoulli(side_key, shape=(n,)), 1.0, inner_radius)
  return _blur(noise_key, radius * jnp.cos(t), radius * jnp.sin(t), noise)


def two_spirals(key: Array, n: int, *, noise: float = 0.1) -> Float[Array, "n 2"]:
  """Draw from two spirals of one and a half turns, mirror images of each other.

  +-d / 3 + noise * N(0, I),  d = (-t cos t + u1 / 2, t sin t + u2 / 2),  t = 3 pi sqrt(u0),
  u0, u1, u2 uniform on [0, 1)

  Args:
    key: a PRNG key.
    n: how many points, at least 1.
    noise: standard deviation of the Gaussian blur.

  Returns:
    Points (n, 2).

  Raises:
    ValueError: if `n` is not an int of at least 1, or `noise` below 0.

  Example:
    >>> import jax
    >>> from normjax import flows
    >>> flows.two_spirals(jax.random.key(0), 100).shape
    (100, 2)
  """
  _check(n, noise=noise)
  uniform_key, side_key, noise_key = jax.random.split(key, 3)
  u0, u1, u2 = jax.random.uniform(uniform_key, (3, n))
  t = 3 * jnp.pi * jnp.sqrt(u0)
  sign = jax.random.rademacher(side_key, (n,)) / 3
  return _blur(noise_key, sign * (u1 / 2 - t * jnp.cos(t)), sign * (u2 / 2 + t * jnp.sin(t)), noise)


def pinwheel(
  key: Array,
  n: int,
  *,
  num_arms: int = 5,
  radial_std: float = 0.3,
  tangential_std: float = 0.1,
  rate: float = 0.25,
) -> Float[Array, "n 2"]:
  """Draw from Gaussian arms on a circle, swirled around the origin.

  R(2 pi k / num_arms + rate * exp(v1)) v,  v = (1 + radial_std * eps1, tangential_std * eps2),
  with R(a) the rotation by a, k a uniform arm, eps ~ N(0, I)

  Args:
    key: a PRNG key.
    n: how many points, at least 1.
    num_arms: number of arms.
    radial_std: spread along an arm.
    tangential_std: spread across an arm.
    rate: how strongly the arms swirl.

  Returns:
    Points (n, 2).

  Raises:
    ValueError: if `n` is not an int of at least 1, `num_arms` below 1, or a deviation below 0.

  Reference:
    Johnson, Duvenaud, Wiltschko, Datta, Adams, "Composing graphical models with neural networks for
    structured representations and fast inference", 2016, arXiv 1603.06277.

  Example:
    >>> import jax
    >>> from normjax import flows
    >>> flows.pinwheel(jax.random.key(0), 100).shape
    (100, 2)
  """
  _check(n, radial_std=radial_std, tangential_std=tangential_std)
  check_sizes(num_arms=num_arms)
  arm_key, noise_key = jax.random.split(key)
  eps1, eps2 = jax.random.normal(noise_key, (2, n))
  v1, v2 = 1 + radial_std * eps1, tangential_std * eps2
  arm = jax.random.randint(arm_key, (n,), 0, num_arms)
  angle = 2 * jnp.pi / num_arms * arm + rate * jnp.exp(v1)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  return jnp.stack([cos * v1 - sin * v2, sin * v1 + cos * v2], axis=-1)


def checkerboard(key: Array, n: int) -> Float[Array, "n 2"]:
  """Draw uniformly from the eight dark cells, of side 2, of a checkerboard on [-4, 4)^2.

  2 (x1, x2),  x1 = 4 u1 - 2,  x2 = u2 - 2 b + (floor(x1) mod 2),
  u1, u2 uniform on [0, 1), b a fair coin

  Args:
    key: a PRNG key.
    n: how many points, at least 1.

  Returns:
    Points (n, 2). Their entropy is log 32 nats: see `checkerboard_log_prob`.

  Raises:
    ValueError: if `n` is not an int of at least 1.

  Example:
    >>> import jax
    >>> from normjax import flows
    >>> flows.checkerboard(jax.random.key(0), 100).shape
    (100, 2)
  """
  check_sampling(n)
  uniform_key, coin_key = jax.random.split(key)
  u1, u2 = jax.random.uniform(uniform_key, (2, n))
  x1 = 4 * u1 - 2
  coin = jax.random.bernoulli(coin_key, shape=(n,))
  x2 = u2 - 2 * coin + jnp.mod(jnp.floor(x1), 2)
  return 2 * jnp.stack([x1, x2], axis=-1)


def eight_gaussians(
  key: Array, n: int, *, radius: float = 2.0, std: float = 0.1
) -> Float[Array, "n 2"]:
  """Draw from eight round Gaussians with their centres on a circle.

  radius * (cos(pi k / 4), sin(pi k / 4)) + std * N(0, I),  k uniform on {0, ..., 7}

  Args:
    key: a PRNG key.
    n: how many points, at least 1.
    radius: distance of the centres from the origin.
    std: standard deviation of each Gaussian.

  Returns:
    Points (n, 2); `eight_gaussians_log_prob` is their log-density.

  Raises:
    ValueError: if `n` is not an int of at least 1, or `std` below 0.

  Example:
    >>> import jax
    >>> from normjax import flows
    >>> flows.eight_gaussians(jax.random.key(0), 100).shape
    (100, 2)
  """
  _check(n, std=std)
  mode_key, noise_key = jax.random.split(key)
  angle = jnp.pi / 4 * jax.random.randint(mode_key, (n,), 0, 8)
  return _blur(noise_key, radius * jnp.cos(angle), radius * jnp.sin(angle), std)


def _blur(key, x1, x2, noise):
  points = jnp.stack([x1, x2], axis=-1)
  return points + noise * jax.random.normal(key, points.shape, points.dtype)


def _check(n, **spreads):
  check_sampling(n)
  for name, spread in spreads.items():
    if is_concrete(spread) and not spread >= 0:
      raise ValueError(f"{name} must be at least 0, got {spread}")
