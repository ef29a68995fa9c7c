"""Increasing polynomials as transforms, on an interval that straight lines continue.

What differs from the papers (https://arxiv.org/abs/2102.03509, https://arxiv.org/abs/1905.02325):
the tangents at both ends take over outside the interval. Bernstein polynomials would otherwise be
limited to it, and polynomials of a high degree overflow soon behind it.
"""

import math

import jax.numpy as jnp
import numpy as np

from normjax._sizes import check_sizes
from normjax.flows._checks import check_above_zero
from normjax.flows._monotone_transform import LEAST_SLOPE, MonotoneTransform, positive

_HIGHEST = 100  # degree, for binomial coefficients that float32 can hold


class BernsteinTransform(MonotoneTransform):
  """Applies a Bernstein polynomial with increasing coefficients, with linear tails.

  y = sum_k theta_k C(n, k) u^k (1 - u)^(n - k),  u = (x + B) / (2 B),  |x| <= B = tail_bound
  theta_0 = -B + c, theta_k+1 - theta_k = (2 B / n) (softplus(v_k + 0.54) + 1e-3)
  raw (*batch, n + 1) = (c, v)

  Raw zeros give the identity.

  Args:
    degree: n, 1 to 100.
    tail_bound: half the side of the interval, above 0.

  Raises:
    ValueError: if `degree` or `tail_bound` is out of range.

  Reference:
    Ramasinghe, Fernando, Khan, Barnes, "Robust normalizing flows using Bernstein-type polynomials",
    2021, arXiv 2102.03509.

  Example:
    >>> transform = BernsteinTransform(5, tail_bound=2.0)
    >>> y, _ = transform.forward(jnp.array([0.5, 7.0]), jnp.zeros((2, 6)))
    >>> bool(jnp.allclose(y, jnp.array([0.5, 7.0])))
    True
  """

  def __init__(self, degree: int = 8, *, tail_bound: float = 3.0):
    if not 1 <= degree <= _HIGHEST:
      raise ValueError(f"degree must be 1 to {_HIGHEST}, got {degree}")
    check_above_zero(tail_bound=tail_bound)
    self.tail_bound = float(tail_bound)
    self.degree, self.num_parameters = degree, degree + 1

  def value(self, x, raw):
    """Return y."""
    n, bound = self.degree, self.tail_bound
    slopes = positive(raw[..., 1:])
    steps = jnp.concatenate([raw[..., :1] - bound, slopes * (2 * bound / n)], axis=-1)
    near = jnp.clip(x, -bound, bound)
    u = (near + bound) / (2 * bound)
    counts = jnp.asarray([math.comb(n, k) for k in range(n + 1)], x.dtype)
    basis = counts.reshape((1,) * x.ndim + (-1,)) * _powers(u, n) * _powers(1 - u, n)[..., ::-1]
    inside = jnp.sum(jnp.cumsum(steps, axis=-1) * basis, axis=-1)
    # x - near is zero inside, and how far beyond the end outside.
    return inside + jnp.where(x < 0, slopes[..., 0], slopes[..., -1]) * (x - near)


class SumOfSquaresTransform(MonotoneTransform):
  """Integrates a sum of squared polynomials, with linear tails.

  y = c + int_0^x q(t) dt,  q(t) = 1e-3 + sum_k (sum_l a_kl t^l)^2,  |x| <= B = tail_bound
  raw (*batch, K (r + 1) + 1) = (a, c), k and l from 0;  where raw is 0, a_00 is 1 and a_11, a_22,
  ... are 0.1

  The integral is exact, by Gauss-Legendre quadrature.

  Args:
    num_polynomials: K, 1 to r + 1: further ones would be zero, and stay that in training.
    degree: r, at least 0; y has degree 2 r + 1.
    tail_bound: half the side of the interval, above 0.

  Raises:
    ValueError: if an argument is out of range.

  Reference:
    Jaini, Selby, Yu, "Sum-of-Squares Polynomial Flow", 2019, arXiv 1905.02325.

  Example:
    >>> transform = SumOfSquaresTransform(1, degree=1)
    >>> y, _ = transform.forward(jnp.ones(1), jnp.array([[0.0, 1.0, 0.0]]))
    >>> round(float(y[0]), 4)  # the integral of (1 + t)^2, and 1e-3
    2.3343
  """

  def __init__(self, num_polynomials: int = 2, *, degree: int = 3, tail_bound: float = 5.0):
    check_sizes(num_polynomials=num_polynomials)
    check_sizes(0, degree=degree)
    if num_polynomials > degree + 1:
      raise ValueError(f"num_polynomials must be at most {degree + 1}, got {num_polynomials}")
    check_above_zero(tail_bound=tail_bound)
    self.tail_bound = float(tail_bound)
    self.num_polynomials, self.degree = num_polynomials, degree
    self.num_parameters = num_polynomials * (degree + 1) + 1

  def value(self, x, raw):
    """Return y."""
    shape = self.num_polynomials, self.degree + 1
    start = np.eye(*shape) * np.where(np.arange(shape[0]) == 0, 1, 0.1)[:, None]
    # Equal polynomials would stay equal in training.
    a = raw[..., :-1].reshape(*x.shape, *shape)
    a = a + jnp.asarray(start, x.dtype).reshape((1,) * x.ndim + shape)
    near = jnp.clip(x, -self.tail_bound, self.tail_bound)

    def slope(t):
      values = jnp.zeros((*x.shape, shape[0]), x.dtype)
      for l in reversed(range(shape[1])):
        values = values * t[..., None] + a[..., l]
      return jnp.sum(values**2, axis=-1) + LEAST_SLOPE

    nodes, weights = np.polynomial.legendre.leggauss(shape[1])
    mean = sum(w / 2 * slope(near * ((1 + t) / 2)) for t, w in zip(nodes, weights, strict=True))
    return raw[..., -1] + near * mean + slope(near) * (x - near)


def _powers(u, n):
  """Return u^0 to u^n by products: the power of zero has no derivative."""
  factors = jnp.broadcast_to(u[..., None], (*u.shape, n))
  return jnp.concatenate([jnp.ones_like(u)[..., None], jnp.cumprod(factors, axis=-1)], axis=-1)
