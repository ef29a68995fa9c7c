"""Masked autoregressive flows: MAF, IAF (`Inverted`), and autoregressive splines.

The density takes one pass of the network. Sampling goes from feature to feature, but each time
computes only the units that the last feature completes, so that it costs about one pass too.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Int

from normjax.flows._bijector import Bijector
from normjax.flows._checks import as_order, check_batch
from normjax.flows._fill_features import fill_features
from normjax.flows._generations import generations
from normjax.flows._made import MADE, SMALL_KERNEL
from normjax.flows._reversible import log_det_zeros
from normjax.flows._transforms import AffineTransform, Transform


class MaskedAutoregressive(Bijector):
  """Transforms every feature with parameters computed from those before it.

  z_i = transform(x_i; MADE(x_1 .. x_i-1, cond)_i),  x (B, D),  log_det (B,) = sum_i log|dz_i/dx_i|

  With an affine transform it is MAF, with a spline the autoregressive neural spline flow; its
  `Inverted` is IAF, which samples in one pass. In a graph, z_i depends on x_i, the condition, and
  the features that `adjacency` names: half of them given the other half makes a coupling. Its
  inverse takes a pass of the network for each generation.

  Args:
    dim: D, at least 1.
    transform: `AffineTransform("softplus")` by default.
    order: (D,) the features in the order in which they are conditioned on; 0 to D - 1 by default.
      It may be traced, so that the layers of a `Scan` differ.
    adjacency: (D, D) booleans instead of an order: entry (i, j) says that the parameters of
      feature i may depend on feature j. It has no cycle.
    width: units of the network's hidden layers, at least one for each different row of `adjacency`.
    depth: number of its blocks, scanned.
    residual: as for `MADE`.
    cond_dim: features of the condition (B, C), or None.
    dropout_rate: chance of the network's units to be dropped, unless `deterministic`. Masks change
      with `nnx.reseed(flow, dropout=key, policy="match_shape")` only, once per training step, so
      that a layer and its inverse agree.
    out_kernel_init: as for `MADE`.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys, and of the stream `dropout`.

  Raises:
    ValueError: if a size is below 1, `dropout_rate` not in [0, 1), `order` not a permutation of D
      features, `adjacency` not (D, D) booleans without a cycle, or if both are given.

  Reference:
    Papamakarios, Pavlakou, Murray, "Masked autoregressive flow for density estimation", 2017,
    arXiv 1705.07057; Wehenkel, Louppe, "Graphical Normalizing Flows", 2020, arXiv 2006.02548.

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
    adjacency: ArrayLike | None = None,
    width: int = 64,
    depth: int = 2,
    residual: bool = True,
    cond_dim: int | None = None,
    dropout_rate: float = 0.0,
    out_kernel_init: Callable[..., Array] = SMALL_KERNEL,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    if order is not None and adjacency is not None:
      raise ValueError(f"order must be None where there is an adjacency, got {order}")
    self.generations = None if adjacency is None else generations(adjacency, dim)
    self.transform = AffineTransform("softplus") if transform is None else transform
    self.network = MADE(
      dim, self.transform.num_parameters, width=width, depth=depth, residual=residual,
      cond_dim=cond_dim, adjacency=adjacency, dropout_rate=dropout_rate,
      out_kernel_init=out_kernel_init, param_dtype=param_dtype, rngs=rngs,
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
    if self.generations is not None:
      return self._by_generations(z, cond, np.array(self.generations)[None])
    invert = self.transform.inverse
    x, log_det = fill_features(self.network, z[:, self.order[...]], cond, invert)
    return x[:, jnp.argsort(self.order[...])], log_det

  def _by_generations(self, z, cond, generation):
    """Return `(x, log_det)`; each pass fills a generation, while the later ones are zero."""

    def fill(carry, current):
      x, log_det = carry
      found, log_abs_det = self.transform.inverse(z, self.network(x, cond))
      now = generation == current
      x = jnp.where(now, found.astype(x.dtype), x)
      return (x, log_det + jnp.sum(jnp.where(now, log_abs_det, 0), axis=1)), None

    start = jnp.zeros_like(z), log_det_zeros(z)
    return jax.lax.scan(fill, start, jnp.arange(np.max(generation) + 1))[0]
