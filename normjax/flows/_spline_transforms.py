"""Splines of the line as element-wise transforms, on a box with or without linear tails."""

import abc
import math

from jaxtyping import Array

from normjax._sizes import check_sizes
from normjax.flows._cubic_spline import cubic_spline, cubic_spline_inverse
from normjax.flows._linear_spline import linear_spline, linear_spline_inverse
from normjax.flows._quadratic_spline import quadratic_spline, quadratic_spline_inverse
from normjax.flows._rational_quadratic_spline import (
  rational_quadratic_spline,
  rational_quadratic_spline_inverse,
)
from normjax.flows._transforms import Transform
from normjax.flows._widened import widened


class _SplineTransform(Transform):
  """Maps the interval [low, high] to itself by a spline; lines of slope 1 go on with `tails`."""

  def __init__(
    self, num_bins: int = 8, *, low: float = -3.0, high: float = 3.0, tails: bool = True
  ):
    check_sizes(num_bins=num_bins)
    if not -math.inf < low < high < math.inf:
      raise ValueError(f"low must be below high and both finite, got {low} and {high}")
    self.num_bins, self.tails = num_bins, tails
    self.low, self.high = float(low), float(high)
    self.num_parameters = self._count()

  @abc.abstractmethod
  def _count(self) -> int:
    """Return how many raw numbers an entry takes."""

  @abc.abstractmethod
  def _run(self, inverse: bool, value: Array, raw: Array, box: dict) -> tuple[Array, Array]:
    """Return the spline or its inverse of `value`."""

  def _box(self) -> dict:
    return {"left": self.low, "right": self.high, "bottom": self.low, "top": self.high}

  def forward(self, x, raw):
    """Return `(y, log dy/dx)` of the spline."""
    return self._run(False, x, widened(raw), self._box())

  def inverse(self, y, raw):
    """Return `(x, log dx/dy)` of the spline."""
    return self._run(True, y, widened(raw), self._box())


class LinearSplineTransform(_SplineTransform):
  """Applies `linear_spline`: y = f(x), raw (*batch, K) = heights.

  Args:
    num_bins: K.
    low: where the box starts, on both axes.
    high: where it ends.
    tails: whether lines of slope 1 go on outside; else [low, high] is the domain.

  Raises:
    ValueError: if `num_bins` is below 1 or the box is empty.

  Reference:
    Müller, McWilliams, Rousselle, Gross, Novák, "Neural importance sampling", 2018,
    arXiv 1808.03856.

  Example:
    >>> import jax.numpy as jnp
    >>> transform = LinearSplineTransform(4)
    >>> transform.forward(jnp.array([0.5, 7.0]), jnp.zeros((2, 4)))[0]
    Array([0.5, 7. ], dtype=float32)
  """

  def _count(self):
    return self.num_bins

  def _run(self, inverse, value, raw, box):
    spline = linear_spline_inverse if inverse else linear_spline
    return spline(value, raw, **box, tails=self.tails)


class QuadraticSplineTransform(_SplineTransform):
  """Applies `quadratic_spline`: y = f(x), raw (*batch, P) = [widths | heights].

  P = 2 K - 1 with tails, 2 K + 1 without.

  Args:
    num_bins: K, at least 2 with tails.
    low: where the box starts, on both axes.
    high: where it ends.
    tails: whether lines of slope 1 go on outside; else [low, high] is the domain.

  Raises:
    ValueError: if `num_bins` is too small or the box is empty.

  Reference:
    Müller, McWilliams, Rousselle, Gross, Novák, "Neural importance sampling", 2018,
    arXiv 1808.03856.

  Example:
    >>> import jax.numpy as jnp
    >>> transform = QuadraticSplineTransform(4)
    >>> y, _ = transform.forward(jnp.array([0.5, 7.0]), jnp.zeros((2, 7)))
    >>> bool(jnp.allclose(y, jnp.array([0.5, 7.0]), atol=1e-5))
    True
  """

  def _count(self):
    if self.tails and self.num_bins < 2:
      raise ValueError(f"num_bins must be at least 2 with tails, got {self.num_bins}")
    return 2 * self.num_bins + (-1 if self.tails else 1)

  def _run(self, inverse, value, raw, box):
    spline = quadratic_spline_inverse if inverse else quadratic_spline
    return spline(value, raw[..., : self.num_bins], raw[..., self.num_bins :], **box)


class CubicSplineTransform(_SplineTransform):
  """Applies `cubic_spline`: y = f(x), raw (*batch, 2 K + 2) = [widths | heights | ends].

  Args:
    num_bins: K.
    low: where the box starts, on both axes.
    high: where it ends.
    tails: whether lines of slope 1 go on outside; else [low, high] is the domain.

  Raises:
    ValueError: if `num_bins` is below 1 or the box is empty.

  Reference:
    Durkan, Bekasov, Murray, Papamakarios, "Cubic-spline flows", 2019, arXiv 1906.02145.

  Example:
    >>> import jax.numpy as jnp
    >>> transform = CubicSplineTransform(4)
    >>> y, _ = transform.forward(jnp.array([0.5, 7.0]), jnp.zeros((2, 10)))
    >>> bool(jnp.allclose(y, jnp.array([0.5, 7.0]), atol=1e-5))  # the end bins bend, others not
    True
  """

  def _count(self):
    return 2 * self.num_bins + 2

  def _run(self, inverse, value, raw, box):
    spline, k = cubic_spline_inverse if inverse else cubic_spline, self.num_bins
    raws = raw[..., :k], raw[..., k : 2 * k], raw[..., 2 * k :]
    return spline(value, *raws, **box, tails=self.tails)


class BoundedRQSTransform(_SplineTransform):
  """Applies `rational_quadratic_spline` to an interval, whose ends have slopes of their own.

  y = f(x), x and y in [low, high], raw (*batch, 3 K + 1) = [widths | heights | derivatives]

  Args:
    num_bins: K.
    low: where the box starts, on both axes.
    high: where it ends.

  Raises:
    ValueError: if `num_bins` is below 1 or the box is empty.

  Reference:
    Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows", 2019, arXiv 1906.04032.

  Example:
    >>> import jax.numpy as jnp
    >>> transform = BoundedRQSTransform(2)
    >>> y, _ = transform.forward(jnp.array([0.25, 1.0]), jnp.zeros((2, 7)))
    >>> bool(jnp.allclose(y, jnp.array([0.25, 1.0]), atol=1e-6))
    True
  """

  def __init__(self, num_bins: int = 8, *, low: float = 0.0, high: float = 1.0):
    super().__init__(num_bins, low=low, high=high, tails=False)

  def _count(self):
    return 3 * self.num_bins + 1

  def _run(self, inverse, value, raw, box):
    spline = rational_quadratic_spline_inverse if inverse else rational_quadratic_spline
    k = self.num_bins
    raws = raw[..., :k], raw[..., k : 2 * k], raw[..., 2 * k :]
    return spline(value, *raws, **box, identity_init=True)
