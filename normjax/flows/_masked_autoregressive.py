"""Masked autoregressive flows: MAF, IAF (`Inverted`), and autoregressive splines.

The density takes one pass of the network. Sampling goes from feature to feature, but each time
computes only the units that the last feature completes, so that it costs about one pass too.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from normjax.flows._bijector import Bijector
from normjax.flows._checks import as_order, check_batch
from normjax.flows._fill_features import fill_features
from normjax.flows._made import MADE
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
    dropout_rate: chance of the network's units to be dropped, unless `deterministic`. Masks change
      with `nnx.reseed(flow, dropout=key, policy="match_shape")` only, once per training step, so
      that a layer and its inverse agree.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys, and of the stream `dropout`.

  Raises:
    ValueError: if a size is below 1, `dropout_rate` not in [0, 1), or `order` not a permutation of
      D features.

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
    dropout_rate: float = 0.0,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.transform = AffineTransform("softplus") if transform is None else transform
    self.network = MADE(
      dim, self.transform.num_parameters, width=width, depth=depth, residual=residual,
      cond_dim=cond_dim, dropout_rate=dropout_rate, param_dtype=param_dtype, rngs=rngs,
    )  # fmt: skip
    order = as_order(jnp.arange(dim) if order is None else order)
    if order.shape != (dim,):
      raise ValueError(f"order must be a permutation of {dim} features, got {order}")
    self.order = nnx.Variable(order)

  @property
  def constant_logdet(self):
    """Whether that of the transform is constant."""
    return self.transform.constant_logdet

  def forward(self, x, cond=None):
    """Return `(z, log_det)` with one pass of the network."""
    check_batch("x", x, self.order.shape)
    x = x[:, self.order[...]]
    z, log_abs_det = self.transform.forward(x, self.network(x, cond))
    return z[:, jnp.argsort(self.order[...])], jnp.sum(log_abs_det, axis=1)

  def inverse(self, z, cond=None):
    """Return `(x, log_det)`, feature by feature; the products of all cost about one pass."""
    check_batch("z", z, self.order.shape)
    invert = self.transform.inverse
    x, log_det = fill_features(self.network, z[:, self.order[...]], cond, invert)
    return x[:, jnp.argsort(self.order[...])], log_det
