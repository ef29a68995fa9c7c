"""Couplings of vectors: an order of the features, a network, and an element-wise transform.

What differs from the authors' implementations (arXiv 1605.08803, 1906.04032): an order instead of a
mask, since it may then differ between the layers of a `Scan`; and parameters are laid out feature
by feature also for affine maps, whose authors put all shifts before all scales.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Int

from normjax._sizes import check_sizes
from normjax.flows._ordered_coupling import OrderedCoupling
from normjax.flows._periodic_features import as_periods, periodic_features
from normjax.flows._residual_network import ResidualNetwork
from normjax.flows._transforms import (
  AdditiveTransform,
  AffineTransform,
  RQSTransform,
  Transform,
  apply_to_event,
)


def mask_to_order(mask: ArrayLike) -> tuple[Int[Array, "d"], int]:
  """Turn a mask into what couplings take.

  order (D,) = [places of 0 | places of 1],  num_conditioning = number of 0s

  Args:
    mask: D numbers, or an array of any shape that is flattened: 1 is transformed, 0 conditions.

  Returns:
    `(order, num_conditioning)`.

  Raises:
    ValueError: if an entry is neither 0 nor 1, or all are the same.

  Example:
    >>> mask_to_order([1, 0, 1])
    (Array([1, 0, 2], dtype=int32), 1)
  """
  flat = np.asarray(mask).ravel()
  if not np.isin(flat, (0, 1)).all() or not 0 < flat.sum() < flat.size:
    raise ValueError(f"mask must hold zeros and ones, both of them, got {mask}")
  return jnp.asarray(np.argsort(flat, kind="stable"), jnp.int32), int(np.sum(flat == 0))


class ElementwiseCoupling(OrderedCoupling):
  """Transforms some features one by one, with parameters that a network computes from the others.

  (x1, x2) = x[:, order] cut at num_conditioning;  y2_i = transform(x2_i; net(x1, cond)_i),
  x (B, D), cond (B, C), log_det (B,) = sum_i log|dy2_i / dx2_i|

  The network is a residual one whose blocks are gated by the condition; its last kernel is zero at
  first.

  Args:
    transform: what happens to each transformed feature.
    order: (D,) the features, those that condition first: `mask_to_order` makes it from a mask. It
      may be traced, so that the layers of a `Scan` differ.
    num_conditioning: how many condition; half of them, rounded down, by default.
    width: units of the network's hidden layers.
    depth: number of its residual blocks, scanned.
    cond_dim: C, or None.
    dropout_rate: chance of the network's units to be dropped, unless `deterministic`. Masks change
      with `nnx.reseed(flow, dropout=key, policy="match_shape")` only, once per training step, so
      that a layer and its inverse agree.
    periods: (D,) the period of each feature, infinite where there is none, or one for all. The
      network then sees `periodic_features` of x1, and features that condition act the same a period
      further on: angles that a circular transform maps, say.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys, and of the stream `dropout`.

  Raises:
    ValueError: if `order` is not a permutation of at least two features, no feature is left on
      either side, a size is below 1, `dropout_rate` not in [0, 1), or a period is not above 0.

  Reference:
    Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2016, arXiv 1605.08803.

  Example:
    >>> from normjax.flows import AffineTransform
    >>> layer = ElementwiseCoupling(AffineTransform("tanh"), jnp.arange(4), rngs=nnx.Rngs(0))
    >>> z, log_det = layer.forward(jnp.ones((2, 4)))  # a new one is the identity
    >>> z.shape, log_det
    ((2, 4), Array([0., 0.], dtype=float32))
  """

  def __init__(
    self,
    transform: Transform,
    order: Int[Array, "d"],
    *,
    num_conditioning: int | None = None,
    width: int = 64,
    depth: int = 2,
    cond_dim: int | None = None,
    dropout_rate: float = 0.0,
    periods: ArrayLike | None = None,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    self._set_order(order, num_conditioning)
    check_sizes(width=width, depth=depth, cond_dim=cond_dim)
    kept, dim = self.num_conditioning, self.order.shape[0]
    self.elementwise = transform
    self.periods = None if periods is None else nnx.Variable(as_periods(periods, dim))
    inputs = kept if periods is None else 2 * kept
    self.network = ResidualNetwork(
      inputs, (dim - kept) * transform.num_parameters, width=width, depth=depth, cond_dim=cond_dim,
      dropout_rate=dropout_rate, param_dtype=param_dtype, rngs=rngs,
    )  # fmt: skip

  @property
  def constant_logdet(self):
    """Whether that of the transform is constant."""
    return self.elementwise.constant_logdet

  def conditioner(self, x1, cond):
    """Return the raw parameters (b, transformed features, parameters of one)."""
    if self.periods is not None:
      # By feature, as the features that condition may differ between the layers of a `Scan`.
      periods = self.periods[...][self.order[...]]
      x1 = periodic_features(x1, periods[: self.num_conditioning])
    return self.network(x1, cond).reshape(x1.shape[0], -1, self.elementwise.num_parameters)

  def transform(self, x2, theta):
    """Return `(y2, log_det)`."""
    return apply_to_event(self.elementwise.forward, x2, theta)

  def untransform(self, y2, theta):
    """Undo `transform`."""
    return apply_to_event(self.elementwise.inverse, y2, theta)


class AffineCoupling(ElementwiseCoupling):
  """Scales and shifts one part of a vector by functions of the other (Real NVP).

  y2 = s * x2 + t, (u, t) = net(x1, cond), s = sigmoid(u + 2) + 1e-3 or as `AffineTransform` says

  Args:
    order: as for `ElementwiseCoupling`.
    scale: "sigmoid", "softplus" or "tanh".
    **options: further arguments of `ElementwiseCoupling`.

  Raises:
    ValueError: as `ElementwiseCoupling` and `AffineTransform` do.

  Reference:
    Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2016, arXiv 1605.08803.

  Example:
    >>> layer = AffineCoupling(jnp.arange(4), cond_dim=2, rngs=nnx.Rngs(0))
    >>> layer.forward(jnp.ones((3, 4)), jnp.ones((3, 2)))[0].shape
    (3, 4)
  """

  def __init__(self, order: Int[Array, "d"], *, scale: str = "sigmoid", **options):
    super().__init__(AffineTransform(scale), order, **options)


class AdditiveCoupling(ElementwiseCoupling):
  """Shifts one part of a vector by a function of the other (NICE).

  y2 = x2 + net(x1, cond), log_det = 0

  Args:
    order: as for `ElementwiseCoupling`.
    **options: further arguments of `ElementwiseCoupling`.

  Raises:
    ValueError: as `ElementwiseCoupling` does.

  Reference:
    Dinh, Krueger, Bengio, "NICE: non-linear independent components estimation", 2014,
    arXiv 1410.8516.

  Example:
    >>> layer = AdditiveCoupling(jnp.arange(4), rngs=nnx.Rngs(0))
    >>> layer.forward(jnp.ones((3, 4)))[1]
    Array([0., 0., 0.], dtype=float32)
  """

  def __init__(self, order: Int[Array, "d"], **options):
    super().__init__(AdditiveTransform(), order, **options)


class RQSCoupling(ElementwiseCoupling):
  """Maps one part of a vector by splines whose knots are functions of the other part.

  y2_i = spline(x2_i; net(x1, cond)_i), linear outside of [-tail_bound, tail_bound]; raw widths and
  heights are divided by sqrt(width)

  Args:
    order: as for `ElementwiseCoupling`.
    num_bins: bins of each spline.
    tail_bound: half the side of the box.
    identity_init: let a new layer be the identity.
    width: units of the network's hidden layers.
    **options: further arguments of `ElementwiseCoupling`.

  Raises:
    ValueError: as `ElementwiseCoupling` and `RQSTransform` do.

  Reference:
    Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows", 2019, arXiv 1906.04032.

  Example:
    >>> layer = RQSCoupling(jnp.arange(4), width=16, rngs=nnx.Rngs(0))
    >>> layer.forward(jnp.ones((3, 4)))[0].shape
    (3, 4)
  """

  def __init__(
    self,
    order: Int[Array, "d"],
    *,
    num_bins: int = 8,
    tail_bound: float = 3.0,
    identity_init: bool = False,
    width: int = 64,
    **options,
  ):
    check_sizes(width=width)
    transform = RQSTransform(
      num_bins, tail_bound=tail_bound, raw_scale=width**-0.5, identity_init=identity_init
    )
    super().__init__(transform, order, width=width, **options)
