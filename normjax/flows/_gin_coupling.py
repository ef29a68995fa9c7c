"""The coupling of GIN (arXiv 2001.04872): affine, yet it keeps volume."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from normjax.flows._elementwise_coupling import ElementwiseCoupling
from normjax.flows._transforms import LOG_SCALES, AffineTransform
from normjax.flows._widened import widened


class GINCoupling(ElementwiseCoupling):
  """Scales and shifts one part of a vector by functions of the other, with scales of product 1.

  y2 = s * x2 + t, (u, t) = net(x1, cond), log s = v - mean(v), v = 2 tanh(u / 2);  log_det = 0

  The mean is over the transformed features, of which there should be two or more: one is only
  shifted.

  Args:
    order: as for `ElementwiseCoupling`.
    **options: further arguments of `ElementwiseCoupling`.

  Raises:
    ValueError: as `ElementwiseCoupling` does.

  Reference:
    Sorrenson, Rother, Köthe, "Disentanglement by nonlinear ICA with general incompressible-flow
    networks (GIN)", 2020, arXiv 2001.04872.

  Example:
    >>> from flax import nnx
    >>> layer = GINCoupling(jnp.arange(4), rngs=nnx.Rngs(0))
    >>> layer.forward(jnp.ones((3, 4)))[1]
    Array([0., 0., 0.], dtype=float32)
  """

  def __init__(self, order: Int[Array, "d"], **options):
    super().__init__(AffineTransform("tanh"), order, **options)

  @property
  def constant_logdet(self):
    """True: volume stays."""
    return True

  def transform(self, x2, theta):
    """Return `(s x2 + t, 0)`."""
    log_scale, shift = _parameters(theta)
    return (x2 * jnp.exp(log_scale) + shift).astype(x2.dtype), jnp.zeros_like(log_scale[:, 0])

  def untransform(self, y2, theta):
    """Return `((y2 - t) / s, 0)`."""
    log_scale, shift = _parameters(theta)
    return ((y2 - shift) * jnp.exp(-log_scale)).astype(y2.dtype), jnp.zeros_like(log_scale[:, 0])


def _parameters(theta):
  log_scale = LOG_SCALES["tanh"](widened(theta[..., 0]))
  return log_scale - jnp.mean(log_scale, axis=1, keepdims=True), theta[..., 1]
