"""Quad-coupling: four quarters of the channels, each conditioned on those before it.

Paper: "CInC Flow: Characterizable Invertible 3x3 Convolution", arXiv 2107.01358. The authors' code
takes the unchanged quarter from the end when it inverts; that is a mistake, it is the first one.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from normjax.flows._bijector import Bijector
from normjax.flows._checks import check_batch
from normjax.flows._exp import stretched
from normjax.flows._widened import widened


class MakeNet(Protocol):
  """Builds a conditioner: a module from (b, ..., in_features) to (b, ..., out_features)."""

  def __call__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """Return the module."""
    ...


class QuadCoupling(Bijector):
  """Scales and shifts the quarters of the channels by functions of the quarters before them.

  y_1 = x_1;  y_{n+1} = (x_{n+1} + shift_n) * sigmoid(raw_n + 2),  n = 1, 2, 3,  shift_n and raw_n
  (b, ..., c/4) the even and odd channels of net_n(x_1, ..., x_n) (b, ..., c/2);  log_det (b,) =
  sum over n and entries of log sigmoid(raw_n + 2).

  `forward` evaluates the networks in parallel, `inverse` in turn. Networks that start as zero give
  the scale sigmoid(2) = 0.88, not the identity.

  Args:
    features: c, the channels, a multiple of 4.
    make_net: `make_net(in_features, out_features, rngs=rngs)` builds a network; it is called three
      times, for c/4, c/2 and 3c/4 input channels.
    rngs: what `make_net` gets.

  Raises:
    ValueError: if `features` is not a positive multiple of 4.

  Reference:
    Nagar, Dufraisse, Varma, "CInC Flow: Characterizable Invertible 3x3 Convolution", 2021,
    arXiv 2107.01358.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from normjax import flows
    >>> coupling = flows.QuadCoupling(4, nnx.Linear, rngs=nnx.Rngs(0))
    >>> z, log_det = coupling.forward(jnp.ones((2, 3, 3, 4)))
    >>> bool(abs(coupling.inverse(z)[0] - 1).max() < 1e-5)
    True
  """

  def __init__(self, features: int, make_net: MakeNet, *, rngs: nnx.Rngs):
    if not isinstance(features, int) or features < 4 or features % 4:
      raise ValueError(f"features must be a positive multiple of 4, got {features!r}")
    self.features, quarter = features, features // 4
    self.nets = nnx.List([make_net(n * quarter, 2 * quarter, rngs=rngs) for n in (1, 2, 3)])

  def forward(self, x, cond=None):
    """Return `(y, log_det)` with the three networks side by side."""
    return self._up(x, lambda net, h: net(h))

  def inverse(self, z, cond=None):
    """Return `(x, log_det)`, each quarter from those before it."""
    return self._down(z, lambda net, h: net(h))

  def data_init(self, x, cond=None):
    """Start those networks that start from data, by their method `data_init`; return the latent."""
    return self._up(x, _started)[0]

  def data_init_inverse(self, z, cond=None):
    """Start the networks from latents, each from the quarters before it; return the data."""
    return self._down(z, _started)[0]

  def _up(self, x, run):
    quarters = self._quarters("x", x)
    outputs, log_det = quarters[:1], 0.0
    for n, net in enumerate(self.nets, 1):
      shift, log_scale = _affine(net, quarters[:n], run)
      outputs.append((quarters[n] + shift) * jnp.exp(log_scale))
      log_det = log_det + _sum(log_scale)
    return jnp.concatenate(outputs, axis=-1).astype(x.dtype), log_det

  def _down(self, z, run):
    quarters = self._quarters("z", z)
    outputs, log_det = quarters[:1], 0.0
    for n, net in enumerate(self.nets, 1):
      shift, log_scale = _affine(net, outputs, run)
      outputs.append(stretched(quarters[n], -log_scale) - shift)
      log_det = log_det - _sum(log_scale)
    return jnp.concatenate(outputs, axis=-1).astype(z.dtype), log_det

  def _quarters(self, name, x) -> list[jax.Array]:
    if x.ndim < 2 or x.shape[-1] != self.features or 0 in x.shape:
      raise ValueError(
        f"{name} must have shape (b, ..., {self.features}), none of it zero, got {x.shape}"
      )
    check_batch(name, x)
    return jnp.split(widened(x), 4, axis=-1)


def _started(net, h):
  """Return the outputs of a network, after its start from data if it has one."""
  return net.data_init(h) if hasattr(net, "data_init") else net(h)


def _affine(net, quarters, run):
  """Return `(shift, log_scale)` for the next quarter."""
  theta, (*outer, quarter) = run(net, jnp.concatenate(quarters, axis=-1)), quarters[0].shape
  if theta.shape != (*outer, 2 * quarter):
    raise ValueError(
      f"make_net must build networks that return {(*outer, 2 * quarter)} here, got {theta.shape}"
    )
  theta = theta.astype(quarters[0].dtype)
  return theta[..., 0::2], jax.nn.log_sigmoid(theta[..., 1::2] + 2)


def _sum(log_scale):
  return jnp.sum(log_scale, axis=tuple(range(1, log_scale.ndim)))
