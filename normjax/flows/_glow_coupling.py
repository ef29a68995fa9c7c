"""The couplings of Glow (https://arxiv.org/abs/1807.03039), between the halves of the channels.

The paper multiplies by exp(log s) and adds the shift last; the authors' code, which we follow, adds
the shift first and multiplies by sigmoid(raw + 2), which is below 1 and 0.88 at first.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from normjax._sizes import check_sizes
from normjax.flows._checks import check_features
from normjax.flows._coupling import Coupling
from normjax.flows._exp import stretched
from normjax.flows._glow_network import GlowNetwork
from normjax.flows._widened import widened


class _ChannelCoupling(Coupling):
  """Splits channels in halves, the first of which conditions by a `GlowNetwork`."""

  outputs_per_channel: int

  def __init__(
    self,
    features: int,
    *,
    width: int = 512,
    use_act_norm: bool = True,
    edge_bias: bool = False,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    if features < 2 or features % 2:
      raise ValueError(f"features must be even and at least 2, got {features}")
    check_sizes(width=width)
    self.features = features
    self.network = GlowNetwork(
      features // 2,
      self.outputs_per_channel * features // 2,
      width=width,
      use_act_norm=use_act_norm,
      edge_bias=edge_bias,
      param_dtype=param_dtype,
      rngs=rngs,
    )

  def split(self, x):
    """Return the first and the last half of the channels."""
    if x.ndim != 4:
      raise ValueError(f"x must have shape (b, h, w, {self.features}), got {x.shape}")
    check_features("x", x, self.features)
    return x[..., : self.features // 2], x[..., self.features // 2 :]

  def join(self, x1, x2):
    """Undo `split`."""
    return jnp.concatenate([x1, x2], axis=-1)

  def conditioner(self, x1, cond):
    """Return the network's outputs, float32 or wider."""
    return self.network(widened(x1))

  def init_conditioner(self, x1, cond):
    """Start the ActNorms inside the network; return its outputs."""
    return self.network.data_init(widened(x1))


class GlowCoupling(_ChannelCoupling):
  """Shifts and scales the last half of the channels by a convolutional network of the first half.

  h = f(x1),  shift = h[..., 0::2],  raw = h[..., 1::2],  x1, x2, y2 (B, H, W, C / 2)
  y2 = (x2 + shift) sigmoid(raw + 2),  log_det (B,) = sum log sigmoid(raw + 2)

  f is conv3 -> ActNorm -> relu -> conv1 -> ActNorm -> relu -> conv3 times exp(3 logs), the last of
  which is zero at first, and it ignores `cond`.

  Args:
    features: C, even.
    width: channels inside the network.
    use_act_norm: whether ActNorm follows the first two convolutions; without it they have biases.
    edge_bias: whether the padding of 3x3 convolutions carries one more channel, 1 on the padding
      and 0 inside.
    param_dtype: dtype of the parameters.
    rngs: the stream `params`.

  Raises:
    ValueError: if `features` is odd or below 2, or `width` below 1.

  Reference:
    Kingma, Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions", 2018,
    arXiv 1807.03039.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from normjax import flows
    >>> coupling = flows.GlowCoupling(4, width=8, rngs=nnx.Rngs(0))
    >>> z, log_det = coupling.forward(jnp.ones((2, 4, 4, 4)))
    >>> z[0, 0, 0].round(2)
    Array([1.  , 1.  , 0.88, 0.88], dtype=float32)
  """

  outputs_per_channel = 2

  def transform(self, x2, theta):
    """Return `((x2 + shift) sigmoid(raw + 2), log_det)`."""
    shift, raw = theta[..., 0::2], theta[..., 1::2] + 2
    log_det = jnp.sum(jax.nn.log_sigmoid(raw), axis=(1, 2, 3))
    return ((x2 + shift) * jax.nn.sigmoid(raw)).astype(x2.dtype), log_det

  def untransform(self, y2, theta):
    """Return `(y2 / sigmoid(raw + 2) - shift, log_det)`."""
    shift, raw = theta[..., 0::2], theta[..., 1::2] + 2
    log_det = -jnp.sum(jax.nn.log_sigmoid(raw), axis=(1, 2, 3))
    # 1 / sigmoid(raw) as 1 + exp(-raw), which is exact where sigmoid underflows.
    return (y2 + stretched(y2, -raw) - shift).astype(y2.dtype), log_det


class AdditiveGlowCoupling(_ChannelCoupling):
  """Shifts the last half of the channels by a convolutional network of the first half.

  y2 = x2 + f(x1),  x1, x2, y2 (B, H, W, C / 2);  log_det (B,) = 0

  f is the network of `GlowCoupling`.

  Args:
    features: C, even.
    width: channels inside the network.
    use_act_norm: as in `GlowCoupling`.
    edge_bias: as in `GlowCoupling`.
    param_dtype: dtype of the parameters.
    rngs: the stream `params`.

  Raises:
    ValueError: if `features` is odd or below 2, or `width` below 1.

  Reference:
    Kingma, Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions", 2018,
    arXiv 1807.03039.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from normjax import flows
    >>> coupling = flows.AdditiveGlowCoupling(4, width=8, rngs=nnx.Rngs(0))
    >>> coupling.forward(jnp.ones((2, 4, 4, 4)))[1]
    Array([0., 0.], dtype=float32)
  """

  outputs_per_channel = 1

  @property
  def constant_logdet(self):
    """True: volume stays."""
    return True

  def transform(self, x2, theta):
    """Return `(x2 + shift, log_det)`, with log_det zero."""
    return (x2 + theta).astype(x2.dtype), jnp.zeros(theta.shape[:1], theta.dtype)

  def untransform(self, y2, theta):
    """Return `(y2 - shift, log_det)`, with log_det zero."""
    return (y2 - theta).astype(y2.dtype), jnp.zeros(theta.shape[:1], theta.dtype)
