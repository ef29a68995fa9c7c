"""Stacked kernel couplings as a density model of tables (https://arxiv.org/abs/2307.14839).

The paper's FF-Real NVP. Its splits are fixed but not told: ours come in pairs that condition on
complementary features, so that two layers change every feature.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from normjax import flows
from normjax._sizes import check_sizes
from normjax.models._paired_orders import paired_orders

SPLITS = ("alternating", "random")


def ferumal_flow(
  dim: int,
  *,
  num_layers: int = 6,
  num_points: int = 50,
  kernel: str = "squared_exponential",
  split: str = "random",
  bound: float | None = None,
  trainable_points: bool = True,
  cond_dim: int | None = None,
  memory: str = "store",
  param_dtype=jnp.float32,
  rngs: nnx.Rngs,
) -> flows.Flow:
  """Build a Ferumal flow: `num_layers` kernel couplings of tables x (b, dim), base N(0, I).

  z = f_L( ... f_1(x)),  log p(x) = log N(z; 0, I) + sum of log_dets;  d = dim // 2 features
  condition. Each layer has 2 N (dim - d) + (N + 1) (d + cond_dim) + 1 parameters for N points, N
  (d + cond_dim) fewer if the points are not trained.

  It is the identity at first; start it from shuffled data: `flow = flows.init_from_data(flow, x)`.

  Args:
    dim: features, at least 2.
    num_layers: number of couplings, scanned.
    num_points: N, auxiliary points of each.
    kernel: a key of `flows.KERNELS`.
    split: "alternating" conditions on the first and the last features in turn; "random" draws a new
      permutation for every pair of layers.
    bound: bound of the log-scales; None: unbounded.
    trainable_points: False keeps the points out of the parameters.
    cond_dim: features of `cond` (b, cond_dim); None: unconditional.
    memory: "store", "remat" or "reversible", as for `flows.Scan`.
    param_dtype: dtype of the parameters.
    rngs: source of the points' and the splits' keys.

  Returns:
    A `flows.Flow` of a `flows.Scan` of `flows.KernelCoupling`s.

  Raises:
    ValueError: if `dim` is below 2, `split` unknown, or the layers refuse an argument.

  Reference:
    English, Kirchler, Lippert, "Kernelised Normalising Flows", 2023, arXiv 2307.14839.

  Example:
    >>> flow = ferumal_flow(3, num_layers=2, num_points=5, rngs=nnx.Rngs(0))
    >>> flow.log_prob(jnp.ones((4, 3))).shape
    (4,)
  """
  check_sizes(2, dim=dim)
  if split not in SPLITS:
    raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
  check_sizes(num_layers=num_layers)

  def make(rngs: nnx.Rngs, order: Array) -> flows.KernelCoupling:
    return flows.KernelCoupling(
      order,
      dim // 2,
      num_points=num_points,
      kernel=kernel,
      cond_dim=cond_dim,
      bound=bound,
      trainable_points=trainable_points,
      param_dtype=param_dtype,
      rngs=rngs,
    )

  orders = paired_orders(None if split == "alternating" else rngs.params(), dim, num_layers)
  couplings = flows.Scan(make, num_layers, orders, memory=memory, rngs=rngs)
  return flows.Flow(couplings, flows.StandardNormal((dim,), param_dtype=param_dtype))
