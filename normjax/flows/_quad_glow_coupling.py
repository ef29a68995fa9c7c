"""Quad-coupling with the networks of Glow (https://arxiv.org/abs/2107.01358)."""

import functools

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from normjax._sizes import check_sizes
from normjax.flows._glow_network import GlowNetwork
from normjax.flows._quad_coupling import QuadCoupling


class QuadGlowCoupling(QuadCoupling):
  """Scales and shifts three quarters of the channels by convolutional networks of those before.

  y_1 = x_1;  y_{n+1} = (x_{n+1} + shift_n) * sigmoid(raw_n + 2),  n = 1, 2, 3, as `QuadCoupling`,
  x and y (B, H, W, C), with the network of `GlowCoupling` for each n.

  Args:
    features: C, a multiple of 4.
    width: channels inside each network.
    use_act_norm: as in `GlowCoupling`.
    edge_bias: as in `GlowCoupling`.
    param_dtype: dtype of the parameters.
    rngs: the stream `params`.

  Raises:
    ValueError: if `features` is not a positive multiple of 4, or `width` below 1.

  Reference:
    Nagar, Dufraisse, Varma, "CInC Flow: Characterizable Invertible 3x3 Convolution", 2021,
    arXiv 2107.01358.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from normjax import flows
    >>> coupling = flows.QuadGlowCoupling(4, width=8, rngs=nnx.Rngs(0))
    >>> coupling.forward(jnp.ones((2, 4, 4, 4)))[0][0, 0, 0].round(2)
    Array([1.  , 0.88, 0.88, 0.88], dtype=float32)
  """

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
    check_sizes(width=width)
    make_net = functools.partial(
      GlowNetwork, width=width, use_act_norm=use_act_norm, edge_bias=edge_bias,
      param_dtype=param_dtype,
    )  # fmt: skip
    super().__init__(features, make_net, rngs=rngs)
