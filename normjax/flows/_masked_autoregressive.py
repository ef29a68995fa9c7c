"""Masked autoregressive flows: MAF, IAF (`Inverted`), and autoregressive splines.

The density takes one pass of the network, sampling exactly D passes, one for each feature.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from normjax.flows._bijector import Bijector
from normjax.flows._checks import as_order, check_batch
from normjax.flows._residual_network import MADE
from normjax.flows._transforms import AffineTransform, Transform


class MaskedAutoregressive(Bijector):
  """Transforms every feature with parameters computed from those before it.

  z_i = transform(x_i; MADE(x_1 .. x_i-1, cond)_i),  x (B, D),  log_det (B,) = sum_i log|dz_i/dx_i|

  With an affine transform it is MAF, with a spline the autoregressive neural spline flow; its
  `Inverted` is IAF, which samples in one pass.

  Args:
    dim: D, at least 1.
    transform: `AffineTransform("softplus")` by default.
    order: (D,) the features in the order in which they are conditioned on; 0 to D - 1 by default.
      It may be traced, so that the layers of a `Scan` differ.
    width: units of the network's hidden layers.
    depth: number of its blocks, scanned.
    residual: as for `MADE`.
    cond_dim: features of the condition (B, C), or None.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: if a size is below 1 or `order` is not a permutation of D features.

  Reference:
    Papamakarios, Pavlakou, Murray, "Masked autoregressive flow for density estimation", 2017,
    arXiv 1705.07057.

  Example:
    >>> layer = MaskedAutoregressive(3, width=8, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 3))
    >>> z, log_det = layer.forward(x)
    >>> bool(jnp.allclose(layer.inverse(z)[0], x, atol=1e-4))
    True
  """

  def __init__(
    self,
    dim: int,
    transform: Transform | None = None,
    *,
    order: Int[Array, "d"] | None = None,
    width: int = 64,
    depth: int = 2,
    residual: bool = True,
    cond_dim: int | None = None,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.transform = AffineTransform("softplus") if transform is None else transform
    self.network = MADE(
      dim, self.transform.num_parameters, width=width, depth=depth, residual=residual,
      cond_dim=cond_dim, param_dtype=param_dtype, rngs=rngs,
    )  # fmt: skip
    order = as_order(jnp.arange(dim) if order is None else order)
    if order.shape != (dim,):
      raise ValueError(f"order must be a permutation of {dim} features, got {order}")
    self.order = nnx.Variable(order)

  def forward(self, x, cond=None):
    """Return `(z, log_det)` with one pass of the network."""
    check_batch("x", x, self.order.shape)
    x = x[:, self.order[...]]
    z, log_abs_det = self.transform.forward(x, self.network(x, cond))
    return z[:, jnp.argsort(self.order[...])], jnp.sum(log_abs_det, axis=1)

  def inverse(self, z, cond=None):
    """Return `(x, log_det)` with D passes, each of which fills one more feature."""
    check_batch("z", z, self.order.shape)
    x, log_det = self.network.fill(z[:, self.order[...]], cond, self.transform.inverse)
    return x[:, jnp.argsort(self.order[...])], log_det
