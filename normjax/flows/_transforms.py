"""Element-wise transforms: what couplings and autoregressive flows do to one entry.

Each takes `num_parameters` raw numbers per entry, zero at first, and (but for `UMNNTransform`)
holds no parameters itself.
"""

import abc
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from normjax._sizes import check_sizes
from normjax.flows._checks import check_above_zero
from normjax.flows._modified_spline import modified_spline, modified_spline_inverse
from normjax.flows._rational_quadratic_spline import (
  rational_quadratic_spline,
  rational_quadratic_spline_inverse,
)
from normjax.flows._widened import widened


class Transform(nnx.Module):
  """Maps single entries, increasingly, as `num_parameters` raw numbers per entry say.

  y, log|dy/dx| (*batch) = forward(x, raw),  x (*batch), raw (*batch, num_parameters)
  """

  num_parameters: int
  constant_logdet = False  # whether log|dy/dx| is the same for all x and raw

  @abc.abstractmethod
  def forward(
    self, x: Float[Array, "*batch"], raw: Float[Array, "*batch p"]
  ) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Return `(y, log|dy/dx|)` per entry."""

  @abc.abstractmethod
  def inverse(
    self, y: Float[Array, "*batch"], raw: Float[Array, "*batch p"]
  ) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Return `(x, log|dx/dy|)` per entry."""

  def init_raw(self, x: Float[Array, "n *batch"]) -> Float[Array, "*batch p"] | None:
    """Return raw numbers to start from, given n examples of every entry; None: zeros will do."""
    return None


def apply_to_event(
  method: Callable[[Array, Array], tuple[Array, Array]],
  x: Float[Array, "b *event"],
  raw: Float[Array, "b *event p"],
) -> tuple[Float[Array, "b *event"], Float[Array, "b"]]:
  """Return `(y, log_det)` of `forward` or `inverse` of a transform, log_det the sum of entries'."""
  y, log_abs_det = method(x, raw)
  return y, jnp.sum(log_abs_det, axis=tuple(range(1, x.ndim)))


# log s of a raw number: each bounds the scale in its own way.
LOG_SCALES = {
  "sigmoid": lambda u: jnp.log(jax.nn.sigmoid(u + 2) + 1e-3),
  "softplus": lambda u: jnp.log(jax.nn.softplus(u) + 1e-3),
  "tanh": lambda u: 2 * jnp.tanh(u / 2),
}


class AffineTransform(Transform):
  """Scales and shifts: y = s x + t, raw (*batch, 2) = (u, t).

  s = sigmoid(u + 2) + 1e-3 ("sigmoid", Real NVP), softplus(u) + 1e-3 ("softplus", MAF), or
  exp(2 tanh(u / 2)) ("tanh", bounded on both sides).

  Args:
    scale: "sigmoid", "softplus" or "tanh".

  Raises:
    ValueError: if there is no such scale.

  Reference:
    Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2016, arXiv 1605.08803.

  Example:
    >>> y, log_abs_det = AffineTransform("tanh").forward(jnp.ones(1), jnp.array([[0.0, 2.0]]))
    >>> y, log_abs_det
    (Array([3.], dtype=float32), Array([0.], dtype=float32))
  """

  num_parameters = 2

  def __init__(self, scale: str = "sigmoid"):
    if scale not in LOG_SCALES:
      raise ValueError(f"scale must be one of {sorted(LOG_SCALES)}, got {scale!r}")
    self.scale = scale

  def forward(self, x, raw):
    """Return `(s x + t, log s)`."""
    log_scale, shift = LOG_SCALES[self.scale](widened(raw[..., 0])), raw[..., 1]
    return (x * jnp.exp(log_scale) + shift).astype(x.dtype), log_scale

  def inverse(self, y, raw):
    """Return `((y - t) / s, -log s)`."""
    log_scale, shift = LOG_SCALES[self.scale](widened(raw[..., 0])), raw[..., 1]
    return ((y - shift) * jnp.exp(-log_scale)).astype(y.dtype), -log_scale


class AdditiveTransform(Transform):
  """Adds a shift: y = x + t, raw (*batch, 1) = t; volume stays.

  Reference:
    Dinh, Krueger, Bengio, "NICE: non-linear independent components estimation", 2014,
    arXiv 1410.8516.

  Example:
    >>> AdditiveTransform().forward(jnp.ones(1), jnp.array([[2.0]]))[0]
    Array([3.], dtype=float32)
  """

  num_parameters = 1
  constant_logdet = True

  def forward(self, x, raw):
    """Return `(x + t, 0)`."""
    return (x + raw[..., 0]).astype(x.dtype), jnp.zeros_like(widened(raw[..., 0]))

  def inverse(self, y, raw):
    """Return `(y - t, 0)`."""
    return (y - raw[..., 0]).astype(y.dtype), jnp.zeros_like(widened(raw[..., 0]))


class RQSTransform(Transform):
  """Applies a rational-quadratic spline with linear tails.

  raw (*batch, 3 K - 1) = [widths | heights | inner derivatives] of `rational_quadratic_spline` on
  [-tail_bound, tail_bound]; widths and heights are multiplied by `raw_scale` first.

  Args:
    num_bins: K, at least 1.
    tail_bound: half the side of the box, above 0.
    raw_scale: 1 / sqrt(width of the network) in couplings, 1 in autoregressive flows.
    identity_init: let zeros give the identity.

  Raises:
    ValueError: if `num_bins` or `tail_bound` is out of range.

  Reference:
    Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows", 2019, arXiv 1906.04032.

  Example:
    >>> transform = RQSTransform(4, tail_bound=2.0, identity_init=True)
    >>> y, _ = transform.forward(jnp.array([0.5, 7.0]), jnp.zeros((2, transform.num_parameters)))
    >>> bool(jnp.allclose(y, jnp.array([0.5, 7.0])))
    True
  """

  def __init__(
    self,
    num_bins: int = 8,
    *,
    tail_bound: float = 3.0,
    raw_scale: float = 1.0,
    identity_init: bool = False,
  ):
    check_sizes(num_bins=num_bins)
    check_above_zero(tail_bound=tail_bound)
    self.num_bins, self.tail_bound, self.raw_scale = num_bins, tail_bound, raw_scale
    self.identity_init = identity_init
    self.num_parameters = 3 * num_bins - 1

  def _run(self, spline, value, raw):
    k, bound = self.num_bins, self.tail_bound

    def run(value, raw):
      # `split`, since its transpose is one array put together; that of slices is a sum of three.
      widths, heights, slopes = jnp.split(widened(raw), (k, 2 * k), axis=-1)
      return spline(
        value, widths * self.raw_scale, heights * self.raw_scale, slopes, left=-bound,
        right=bound, bottom=-bound, top=bound, identity_init=self.identity_init,
      )  # fmt: skip

    # Backward passes do a spline again: storing its arrays of all bins takes longer.
    return jax.checkpoint(run, prevent_cse=False)(value, raw)

  def forward(self, x, raw):
    """Return `(y, log dy/dx)` of the spline."""
    return self._run(rational_quadratic_spline, x, raw)

  def inverse(self, y, raw):
    """Return `(x, log dx/dy)` of the spline."""
    return self._run(rational_quadratic_spline_inverse, y, raw)


class ModifiedRQSTransform(Transform):
  """Applies `modified_spline`, then shifts: y = f(x) + t, raw (*batch, 4) = (w, h, d, t).

  The shift comes after the spline, so |x| <= |y| + |t| + 2 bound whatever the parameters.

  Args:
    bound: half the side of the spline's box.
    minimum: its least share and slope, in (0, 1/2).

  Raises:
    ValueError: if `bound` is not above 0 and finite, or `minimum` out of range.

  Reference:
    Hong, Park, Chun, "On the robustness of normalizing flows for inverse problems in imaging",
    2022, arXiv 2212.04319.

  Example:
    >>> ModifiedRQSTransform().forward(jnp.zeros(1), jnp.array([[0.0, 0.0, 0.0, 2.0]]))[0]
    Array([2.], dtype=float32)
  """

  num_parameters = 4

  def __init__(self, *, bound: float = 0.5, minimum: float = 1e-3):
    check_above_zero(bound=bound)
    if not 0 < minimum < 0.5:
      raise ValueError(f"minimum must be inside (0, 1/2), got {minimum}")
    self.bound, self.minimum = bound, minimum

  def forward(self, x, raw):
    """Return `(f(x) + t, log f')`."""
    w, h, d, t = (raw[..., i] for i in range(4))
    y, log_abs_det = modified_spline(widened(x), w, h, d, bound=self.bound, minimum=self.minimum)
    return (y + t).astype(x.dtype), log_abs_det

  def inverse(self, y, raw):
    """Return `(f^-1(y - t), -log f')`."""
    w, h, d, t = (raw[..., i] for i in range(4))
    x, log_abs_det = modified_spline_inverse(
      widened(y) - t, w, h, d, bound=self.bound, minimum=self.minimum
    )
    return x.astype(y.dtype), log_abs_det


class ConditionalAffineTransform(Transform):
  """Applies a shift, then a scale.

  y = (x + t) s, s = sigmoid(u + 2) + epsilon, raw (*batch, 2) = (t, u)

  The affine map of conditional super-resolution flows. Its inverse may multiply by 1 / epsilon
  ("exploding inverse"); `reciprocal` takes 1 / s instead, and moves the explosion to `forward`.

  Args:
    epsilon: the least scale, above 0.
    reciprocal: take 1 / s.

  Raises:
    ValueError: if `epsilon` is not above 0 and finite.

  Reference:
    Hong, Park, Chun, "On the robustness of normalizing flows for inverse problems in imaging",
    2022, arXiv 2212.04319.

  Example:
    >>> y, _ = ConditionalAffineTransform().forward(jnp.ones(1), jnp.zeros((1, 2)))
    >>> round(float(y[0]), 4)
    0.8809
  """

  num_parameters = 2

  def __init__(self, *, epsilon: float = 1e-4, reciprocal: bool = False):
    check_above_zero(epsilon=epsilon)
    self.epsilon, self.sign = epsilon, -1 if reciprocal else 1

  def _log_scale(self, raw):
    return self.sign * jnp.log(jax.nn.sigmoid(widened(raw[..., 1]) + 2) + self.epsilon)

  def forward(self, x, raw):
    """Return `((x + t) s, log s)`."""
    log_scale = self._log_scale(raw)
    return ((x + raw[..., 0]) * jnp.exp(log_scale)).astype(x.dtype), log_scale

  def inverse(self, y, raw):
    """Return `(y / s - t, -log s)`."""
    log_scale = self._log_scale(raw)
    return (y * jnp.exp(-log_scale) - raw[..., 0]).astype(y.dtype), -log_scale
