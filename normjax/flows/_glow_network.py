"""The convolutions of Glow: a network whose last layer is zero at first."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from normjax.flows._act_norm import ActNorm
from normjax.flows._tap_conv import tap_conv

LOG_SCALE_FACTOR = 3.0  # Glow's: a log-scale that learns three times as fast


def _unpadded(x, kernel, *_, **__):
  """Stand in for `jax.lax.conv_general_dilated` where there is no padding, stride or dilation."""
  return tap_conv(x, kernel)


class EdgeConv(nnx.Module):
  """Convolves images of any size to the same size, and may tell the network where the edge is.

  With `edge_bias` the input is padded by one more channel, 1 on the padding and 0 inside.
  """

  def __init__(
    self,
    in_features: int,
    out_features: int,
    side: int,
    *,
    kernel_init,
    use_bias: bool,
    edge_bias: bool,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    self.margin = side // 2
    self.edge_bias = edge_bias and side > 1
    self.conv = nnx.Conv(
      in_features + self.edge_bias,
      out_features,
      (side, side),
      padding="VALID",
      use_bias=use_bias,
      kernel_init=kernel_init,
      param_dtype=param_dtype,
      conv_general_dilated=_unpadded,
      rngs=rngs,
    )

  def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
    """Return the convolution with as many rows and columns."""
    margin = (self.margin, self.margin)
    padded = jnp.pad(x, ((0, 0), margin, margin, (0, 0)))
    if self.edge_bias:
      inside = jnp.zeros((*x.shape[:3], 1), x.dtype)
      edge = jnp.pad(inside, ((0, 0), margin, margin, (0, 0)), constant_values=1)
      padded = jnp.concatenate([padded, edge], -1)
    return self.conv(padded)


class ZeroConv(nnx.Module):
  """Computes (conv3(x) + bias) exp(3 logs), with everything zero at first."""

  def __init__(
    self,
    in_features: int,
    out_features: int,
    *,
    edge_bias: bool,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    self.conv = EdgeConv(
      in_features,
      out_features,
      3,
      kernel_init=nnx.initializers.zeros,
      use_bias=True,
      edge_bias=edge_bias,
      param_dtype=param_dtype,
      rngs=rngs,
    )
    self.logs = nnx.Param(jnp.zeros((out_features,), param_dtype))

  def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
    """Return the scaled convolution."""
    y = self.conv(x)
    logs = self.logs[...].astype(y.dtype).reshape(1, 1, 1, -1)
    return y * jnp.exp(LOG_SCALE_FACTOR * logs)


class GlowNetwork(nnx.Module):
  """Computes conv3 -> ActNorm -> relu -> conv1 -> ActNorm -> relu -> ZeroConv.

  Without ActNorm the first two convolutions have biases instead.
  """

  def __init__(
    self,
    in_features: int,
    out_features: int,
    *,
    width: int,
    use_act_norm: bool,
    edge_bias: bool,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    def convolution(features, side):
      return EdgeConv(
        features,
        width,
        side,
        kernel_init=nnx.initializers.normal(0.05),
        use_bias=not use_act_norm,
        edge_bias=edge_bias,
        param_dtype=param_dtype,
        rngs=rngs,
      )

    # A unit that is dead for the whole batch stays at a bounded scale.
    norm = lambda: ActNorm(width, allow_constant=True, param_dtype=param_dtype)
    self.conv_0, self.conv_1 = convolution(in_features, 3), convolution(width, 1)
    self.norm_0 = norm() if use_act_norm else None
    self.norm_1 = norm() if use_act_norm else None
    self.head = ZeroConv(
      width, out_features, edge_bias=edge_bias, param_dtype=param_dtype, rngs=rngs
    )

  def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
    """Return the outputs at every pixel."""
    return self._run(x, lambda norm, h: norm.forward(h)[0])

  def data_init(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
    """Start the ActNorms from data, in place; return the outputs."""
    return self._run(x, lambda norm, h: norm.data_init(h))

  def _run(self, x, normalize):
    for conv, norm in ((self.conv_0, self.norm_0), (self.conv_1, self.norm_1)):
      x = conv(x)
      x = jax.nn.relu(x if norm is None else normalize(norm, x))
    return self.head(x)
