"""ActNorm: a learned scale and shift per channel that starts from the statistics of data.

The parametrization is y = exp(log_scale) x + shift. Glow (https://arxiv.org/abs/1807.03039) writes
y = (x + b) exp(3 logs), which is the same function with log_scale = 3 logs and shift = b exp(3
logs). Glow initializes in the first training step; here `init_from_data` does, a function that is
called once: it is the same on every device and can't run by accident.
"""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from normjax._sizes import check_sizes
from normjax.flows._bijector import Bijector
from normjax.flows._checks import check_features, is_concrete
from normjax.flows._safe_length import safe_length
from normjax.flows._widened import widened

_LARGEST = math.log(1e3)  # of |log_scale|, where a constant channel is allowed


class ActNorm(Bijector):
  """Scales and shifts every channel by trained numbers: the affine layer of flows.

  y = exp(log_scale) x + shift,  x and y (B, C) or (B, H, W, C), any number of axes between
  log_det (B,) = H W sum(log_scale)

  A new layer is the identity. `init_from_data` sets log_scale = -log(std + epsilon) and shift =
  -mean exp(log_scale), statistics over all axes but the last, after which every channel of that
  batch has mean 0 and standard deviation 1.

  Args:
    features: C.
    epsilon: added to the standard deviation, at least 0.
    ddof: subtracted from the number of entries in the variance; 0 is Glow's, 1 gives the unbiased
      variance of some libraries.
    allow_constant: limit the initial scale to [1e-3, 1e3], instead of refusing data in which a
      channel is constant.
    param_dtype: dtype of the parameters.
    rngs: not needed, since parameters start as constants; every module takes it.

  Raises:
    ValueError: if `features` is below 1, or `epsilon` or `ddof` below 0. `init_from_data` raises it
      for batches with a constant channel, and with no more than `ddof` entries per channel.

  Reference:
    Kingma, Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions", 2018,
    arXiv 1807.03039.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> x = jnp.array([[1.0], [3.0]])
    >>> layer = flows.init_from_data(flows.ActNorm(1, epsilon=0.0), x)
    >>> layer.forward(x)[0]
    Array([[-1.],
           [ 1.]], dtype=float32)
  """

  def __init__(
    self,
    features: int,
    *,
    epsilon: float = 1e-6,
    ddof: int = 0,
    allow_constant: bool = False,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs | None = None,
  ):
    del rngs
    check_sizes(features=features)
    if not epsilon >= 0 or ddof < 0:
      raise ValueError(f"epsilon and ddof must be at least 0, got {epsilon} and {ddof}")
    self.features, self.epsilon, self.ddof = features, float(epsilon), ddof
    self.allow_constant = allow_constant
    self.log_scale = nnx.Param(jnp.zeros((features,), param_dtype))
    self.shift = nnx.Param(jnp.zeros((features,), param_dtype))

  @property
  def constant_logdet(self):
    """True: that of a scaling."""
    return True

  def forward(self, x, cond=None):
    """Return `(exp(log_scale) x + shift, log_det)`."""
    check_features("x", x, self.features)
    log_scale, shift = self._parameters(x)
    return (jnp.exp(log_scale) * x + shift).astype(x.dtype), scaling_log_det(x, log_scale)

  def inverse(self, z, cond=None):
    """Return `((z - shift) exp(-log_scale), log_det)`."""
    check_features("z", z, self.features)
    log_scale, shift = self._parameters(z)
    return ((z - shift) * jnp.exp(-log_scale)).astype(z.dtype), scaling_log_det(z, -log_scale)

  def data_init(self, x, cond=None):
    """Set the parameters so that `forward(x)` is standardized; return it."""
    check_features("x", x, self.features)
    if not self.starts_from_data:
      return self.forward(x, cond)[0]
    mean, log_std = self._statistics(x)
    self.log_scale[...] = (-log_std).astype(self.log_scale.dtype)
    self.shift[...] = (-mean * jnp.exp(-log_std)).astype(self.shift.dtype)
    return self.forward(x)[0]

  def data_init_inverse(self, z, cond=None):
    """Set the parameters so that `inverse(z)` is standardized; return it."""
    check_features("z", z, self.features)
    if not self.starts_from_data:
      return self.inverse(z, cond)[0]
    mean, log_std = self._statistics(z)
    self.log_scale[...] = log_std.astype(self.log_scale.dtype)
    self.shift[...] = mean.astype(self.shift.dtype)
    return self.inverse(z)[0]

  def check_initialized(self):
    """Raise ValueError if `init_from_data` had a constant channel; under jit there is no check."""
    log_scale = self.log_scale[...]
    if is_concrete(log_scale) and not np.all(np.isfinite(log_scale)):
      raise ValueError(
        "x must be finite and vary in every channel of every ActNorm, got a constant one, NaN or "
        "infinity: use other data, or allow_constant=True"
      )

  def _parameters(self, x):
    """Return `log_scale` and `shift` (1, ..., 1, C), float32 or wider."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    shape = (1,) * (x.ndim - 1) + (self.features,)
    return (p[...].astype(dtype).reshape(shape) for p in (self.log_scale, self.shift))

  def _statistics(self, x) -> tuple[Float[Array, "c"], Float[Array, "c"]]:
    """Return the mean and the log of the standard deviation of each channel."""
    count = x.size // self.features
    if count <= self.ddof:
      raise ValueError(
        f"x must have more than ddof={self.ddof} entries per channel to start from, got {count}"
      )
    x = widened(x).reshape(count, self.features)
    mean = jnp.mean(x, axis=0)
    std = safe_length((x - mean[None]).T) / math.sqrt(count - self.ddof)
    log_std = jnp.log(std + self.epsilon)
    if self.allow_constant:
      return mean, jnp.clip(log_std, -_LARGEST, _LARGEST)
    # NaN, since no error can be raised in a scan; `check_initialized` raises it afterwards.
    constant = std <= 4 * jnp.finfo(std.dtype).eps * jnp.abs(mean)
    return mean, jnp.where(constant, jnp.nan, log_std)


def scaling_log_det(x, log_scale):
  """Return the log-determinant (b,) of channels scaled alike at every position."""
  positions = math.prod(x.shape[1:-1])
  return jnp.broadcast_to(positions * jnp.sum(log_scale), x.shape[:1])
