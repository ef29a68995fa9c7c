"""Assembled flows over vectors: couplings and masked autoregressive layers, scanned."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from normjax import flows
from normjax._sizes import check_sizes
from normjax.models._paired_orders import paired_orders


def rqs_coupling_flow(
  dim: int,
  *,
  num_layers: int = 10,
  width: int = 256,
  depth: int = 2,
  num_bins: int = 8,
  tail_bound: float = 3.0,
  cond_dim: int | None = None,
  dropout_rate: float = 0.0,
  memory: str = "store",
  param_dtype: DTypeLike = jnp.float32,
  rngs: nnx.Rngs,
) -> flows.Flow:
  """Build a neural spline flow of couplings over vectors.

  log p(x) = log N(z; 0, I) + log_det,  z = coupling_L( ... coupling_1(x)),  x (B, dim)

  Every pair of layers has a random order of the features, and its second layer transforms what the
  first one conditioned on. A new flow is the identity. Compile time does not grow with depth.

  Args:
    dim: number of features, at least 2.
    num_layers: number of couplings.
    width: units of the networks' hidden layers.
    depth: residual blocks of a network.
    num_bins: bins of a spline.
    tail_bound: the splines live on [-tail_bound, tail_bound].
    cond_dim: features of the condition, or None.
    dropout_rate: as for `flows.ElementwiseCoupling`.
    memory: as for `flows.Scan`.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys and of the orders.

  Returns:
    A `flows.Flow` over a standard normal.

  Raises:
    ValueError: if a size is out of range or there is no such `memory`.

  Reference:
    Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows", 2019, arXiv 1906.04032.

  Example:
    >>> flow = rqs_coupling_flow(4, num_layers=2, width=8, rngs=nnx.Rngs(0))
    >>> flow.log_prob(jnp.zeros((2, 4))).shape
    (2,)
  """
  make = lambda rngs, order: flows.RQSCoupling(
    order, num_conditioning=dim // 2, num_bins=num_bins, tail_bound=tail_bound, identity_init=True,
    width=width, depth=depth, cond_dim=cond_dim, dropout_rate=dropout_rate,
    param_dtype=param_dtype, rngs=rngs,
  )  # fmt: skip
  # Every second layer transforms what the one before kept.
  return _scanned(make, dim, num_layers, dim - dim // 2, memory, param_dtype, rngs)


def affine_coupling_flow(
  dim: int,
  *,
  num_layers: int = 10,
  width: int = 256,
  depth: int = 2,
  scale: str = "tanh",
  cond_dim: int | None = None,
  memory: str = "store",
  param_dtype: DTypeLike = jnp.float32,
  rngs: nnx.Rngs,
) -> flows.Flow:
  """Build a Real NVP over vectors.

  log p(x) = log N(z; 0, I) + log_det,  z = coupling_L( ... coupling_1(x)),  x (B, dim)

  Orders of the features as in `rqs_coupling_flow`. Compile time does not grow with depth.

  Args:
    dim: number of features, at least 2.
    num_layers: number of couplings.
    width: units of the networks' hidden layers.
    depth: residual blocks of a network.
    scale: as for `flows.AffineTransform`; with "tanh" a new flow is the identity.
    cond_dim: features of the condition, or None.
    memory: as for `flows.Scan`.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys and of the orders.

  Returns:
    A `flows.Flow` over a standard normal.

  Raises:
    ValueError: if a size is out of range or there is no such `scale` or `memory`.

  Reference:
    Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2016, arXiv 1605.08803.

  Example:
    >>> flow = affine_coupling_flow(4, num_layers=2, width=8, rngs=nnx.Rngs(0))
    >>> flow.log_prob(jnp.zeros((2, 4))).shape
    (2,)
  """
  make = lambda rngs, order: flows.AffineCoupling(
    order, scale=scale, num_conditioning=dim // 2, width=width, depth=depth, cond_dim=cond_dim,
    param_dtype=param_dtype, rngs=rngs,
  )  # fmt: skip
  # Every second layer transforms what the one before kept.
  return _scanned(make, dim, num_layers, dim - dim // 2, memory, param_dtype, rngs)


def maf(
  dim: int,
  *,
  num_layers: int = 5,
  width: int = 128,
  depth: int = 2,
  cond_dim: int | None = None,
  memory: str = "store",
  dropout_rate: float = 0.0,
  param_dtype: DTypeLike = jnp.float32,
  rngs: nnx.Rngs,
) -> flows.Flow:
  """Build a masked autoregressive flow over vectors.

  log p(x) = log N(z; 0, I) + log_det,  z = layer_L( ... layer_1(x)),  x (B, dim)

  The order of the features is random and turns round from one layer to the next. Compile time does
  not grow with depth.

  Args:
    dim: number of features.
    num_layers: number of autoregressive layers.
    width: units of the networks' hidden layers.
    depth: residual blocks of a network.
    cond_dim: features of the condition, or None.
    memory: as for `flows.Scan`; "reversible" takes `dim` passes per layer to rebuild its input.
    dropout_rate: as for `flows.MaskedAutoregressive`.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys and of the orders.

  Returns:
    A `flows.Flow` over a standard normal.

  Raises:
    ValueError: if a size is below 1 or there is no such `memory`.

  Reference:
    Papamakarios, Pavlakou, Murray, "Masked autoregressive flow for density estimation", 2017,
    arXiv 1705.07057.

  Example:
    >>> flow = maf(3, num_layers=2, width=8, rngs=nnx.Rngs(0))
    >>> flow.log_prob(jnp.zeros((2, 3))).shape
    (2,)
  """
  make = lambda rngs, order: flows.MaskedAutoregressive(
    dim, order=order, width=width, depth=depth, cond_dim=cond_dim, dropout_rate=dropout_rate,
    param_dtype=param_dtype, rngs=rngs,
  )  # fmt: skip
  return _scanned(make, dim, num_layers, None, memory, param_dtype, rngs)


def rqs_autoregressive_flow(
  dim: int,
  *,
  num_layers: int = 5,
  width: int = 128,
  depth: int = 2,
  num_bins: int = 8,
  tail_bound: float = 3.0,
  cond_dim: int | None = None,
  dropout_rate: float = 0.0,
  memory: str = "store",
  param_dtype: DTypeLike = jnp.float32,
  rngs: nnx.Rngs,
) -> flows.Flow:
  """Build a neural spline flow of masked autoregressive layers over vectors.

  log p(x) = log N(z; 0, I) + log_det,  z = layer_L( ... layer_1(x)),  x (B, dim)

  Orders of the features as in `maf`. A new flow is the identity. Compile time does not grow with
  depth.

  Args:
    dim: number of features.
    num_layers: number of autoregressive layers.
    width: units of the networks' hidden layers.
    depth: residual blocks of a network.
    num_bins: bins of a spline.
    tail_bound: the splines live on [-tail_bound, tail_bound].
    cond_dim: features of the condition, or None.
    dropout_rate: as for `flows.MaskedAutoregressive`.
    memory: as for `maf`.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys and of the orders.

  Returns:
    A `flows.Flow` over a standard normal.

  Raises:
    ValueError: if a size is out of range or there is no such `memory`.

  Reference:
    Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows", 2019, arXiv 1906.04032.

  Example:
    >>> flow = rqs_autoregressive_flow(3, num_layers=2, width=8, rngs=nnx.Rngs(0))
    >>> flow.log_prob(jnp.zeros((2, 3))).shape
    (2,)
  """
  make = lambda rngs, order: flows.MaskedAutoregressive(
    dim, flows.RQSTransform(num_bins, tail_bound=tail_bound, identity_init=True), order=order,
    width=width, depth=depth, cond_dim=cond_dim, dropout_rate=dropout_rate,
    out_kernel_init=nnx.initializers.zeros, param_dtype=param_dtype, rngs=rngs,
  )  # fmt: skip
  return _scanned(make, dim, num_layers, None, memory, param_dtype, rngs)


def _scanned(make, dim, num_layers, shift, memory, param_dtype, rngs):
  """Return a flow of scanned layers, each with its order of the features."""
  check_sizes(1 if shift is None else 2, dim=dim)
  check_sizes(num_layers=num_layers)
  orders = paired_orders(rngs.params(), dim, num_layers, shift)
  scan = flows.Scan(make, num_layers, orders, memory=memory, rngs=rngs)
  return flows.Flow(scan, flows.StandardNormal((dim,), param_dtype=param_dtype))
