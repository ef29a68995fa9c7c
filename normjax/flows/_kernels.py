"""Stationary kernels between two sets of points, with a lengthscale per dimension.

The squared distances are sums of squared differences: |a|^2 + |b|^2 - 2ab would cancel for points
close to each other, just where the Matern kernels bend.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from normjax.flows._checks import is_concrete

_FAR = 1e3


def squared_exponential(
  x: Float[Array, "b d"],
  y: Float[Array, "n d"],
  lengthscale: ArrayLike = 1.0,
  outputscale: ArrayLike = 1.0,
) -> Float[Array, "b n"]:
  """Return the squared exponential kernel, the smoothest one.

  k(x, y) = outputscale * exp(-q / 2),  q = sum_i ((x_i - y_i) / lengthscale_i)^2

  Args:
    x: points (b, d).
    y: points (n, d).
    lengthscale: a scalar or (d,), above 0.
    outputscale: a scalar above 0, the value at distance 0.

  Returns:
    k (b, n), float32 or wider.

  Raises:
    ValueError: if shapes do not fit or a scale is not above 0 and finite.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> flows.squared_exponential(jnp.zeros((1, 2)), jnp.zeros((3, 2)), outputscale=2.0)
    Array([[2., 2., 2.]], dtype=float32)
  """
  q, outputscale = _square_distance(x, y, lengthscale, outputscale)
  return outputscale * jnp.exp(-q / 2)


def matern12(
  x: Float[Array, "b d"],
  y: Float[Array, "n d"],
  lengthscale: ArrayLike = 1.0,
  outputscale: ArrayLike = 1.0,
) -> Float[Array, "b n"]:
  """Return the Matern kernel of order 1/2, continuous with a kink at distance 0.

  k(x, y) = outputscale * exp(-rho),  rho^2 = sum_i ((x_i - y_i) / lengthscale_i)^2

  The gradient at the kink is set to zero.

  Args:
    x: points (b, d).
    y: points (n, d).
    lengthscale: a scalar or (d,), above 0.
    outputscale: a scalar above 0, the value at distance 0.

  Returns:
    k (b, n), float32 or wider.

  Raises:
    ValueError: if shapes do not fit or a scale is not above 0 and finite.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> k = flows.matern12(jnp.array([[3.0, 4.0]]), jnp.zeros((1, 2)))
    >>> round(float(k[0, 0]), 5)  # exp(-5)
    0.00674
  """
  rho, _, outputscale = _distance(x, y, lengthscale, outputscale)
  return outputscale * jnp.exp(-rho)


def matern32(
  x: Float[Array, "b d"],
  y: Float[Array, "n d"],
  lengthscale: ArrayLike = 1.0,
  outputscale: ArrayLike = 1.0,
) -> Float[Array, "b n"]:
  """Return the Matern kernel of order 3/2, once differentiable.

  k(x, y) = outputscale * (1 + sqrt(3) rho) exp(-sqrt(3) rho),
  rho^2 = sum_i ((x_i - y_i) / lengthscale_i)^2

  Args:
    x: points (b, d).
    y: points (n, d).
    lengthscale: a scalar or (d,), above 0.
    outputscale: a scalar above 0, the value at distance 0.

  Returns:
    k (b, n), float32 or wider.

  Raises:
    ValueError: if shapes do not fit or a scale is not above 0 and finite.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> k = flows.matern32(jnp.array([[1.0]]), jnp.zeros((1, 1)))
    >>> round(float(k[0, 0]), 5)
    0.48336
  """
  rho, _, outputscale = _distance(x, y, lengthscale, outputscale)
  rho = math.sqrt(3) * rho
  return outputscale * (1 + rho) * jnp.exp(-rho)


def matern52(
  x: Float[Array, "b d"],
  y: Float[Array, "n d"],
  lengthscale: ArrayLike = 1.0,
  outputscale: ArrayLike = 1.0,
) -> Float[Array, "b n"]:
  """Return the Matern kernel of order 5/2, twice differentiable.

  k(x, y) = outputscale * (1 + sqrt(5) rho + 5 rho^2 / 3) exp(-sqrt(5) rho),
  rho^2 = sum_i ((x_i - y_i) / lengthscale_i)^2

  Args:
    x: points (b, d).
    y: points (n, d).
    lengthscale: a scalar or (d,), above 0.
    outputscale: a scalar above 0, the value at distance 0.

  Returns:
    k (b, n), float32 or wider.

  Raises:
    ValueError: if shapes do not fit or a scale is not above 0 and finite.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> k = flows.matern52(jnp.array([[1.0]]), jnp.zeros((1, 1)))
    >>> round(float(k[0, 0]), 5)
    0.52399
  """
  rho, q, outputscale = _distance(x, y, lengthscale, outputscale)
  root = math.sqrt(5) * rho
  return outputscale * (1 + root + 5 / 3 * q) * jnp.exp(-root)


def _square_distance(x, y, lengthscale, outputscale) -> tuple[Array, Array]:
  """Return q (b, n), and the output scale in its dtype."""
  if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
    raise ValueError(f"x and y must have shapes (b, d) and (n, d), got {x.shape} and {y.shape}")
  dtype = jnp.promote_types(jnp.result_type(x, y), jnp.float32)
  lengthscale = check_scale("lengthscale", lengthscale, ((), x.shape[1:]), dtype)
  outputscale = check_scale("outputscale", outputscale, ((),), dtype)
  offsets = (x[:, None, :] - y[None, :, :]) / lengthscale.reshape(1, 1, -1)  # (b, n, d)
  # Beyond, every kernel is zero to the last digit, and squares must not overflow.
  return jnp.sum(jnp.clip(offsets, -_FAR, _FAR) ** 2, axis=-1), outputscale


def _distance(x, y, lengthscale, outputscale) -> tuple[Array, Array, Array]:
  """Return rho and q (b, n), and the output scale; the gradient of rho is 0 at rho = 0."""
  q, outputscale = _square_distance(x, y, lengthscale, outputscale)
  # The double where keeps the gradient finite where auxiliary points are data points.
  apart = q > 0
  return jnp.where(apart, jnp.sqrt(jnp.where(apart, q, 1)), 0), q, outputscale


def check_scale(name: str, value, shapes: tuple[tuple[int, ...], ...], dtype) -> Array:
  """Return `value` as an array of one of these shapes, in (0, inf) (if it can be looked at)."""
  value = jnp.asarray(value, dtype)
  if value.shape not in shapes:
    raise ValueError(f"{name} must have a shape in {list(shapes)}, got {value.shape}")
  if is_concrete(value) and not np.all((np.asarray(value) > 0) & np.isfinite(value)):
    raise ValueError(f"{name} must be above 0 and finite, got {value}")
  return value
