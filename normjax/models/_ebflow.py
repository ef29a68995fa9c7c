"""Energy-based flows: unconstrained linear layers, trained without their determinants.

The flows of https://arxiv.org/abs/2305.15267 for vectors, for images taken as vectors, and for
images. All have one base, N(0, I); the authors' toy code trains and evaluates under two different
ones. Their convolutional flows squeeze pixels into channels between groups of layers; ours has one
resolution.
"""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from normjax import flows
from normjax._sizes import check_sizes

STARTS = {
  "identity": lambda key, shape, dtype: jnp.eye(shape[0], dtype=dtype),
  "negative_identity": lambda key, shape, dtype: -jnp.eye(shape[0], dtype=dtype),
  "orthogonal": nnx.initializers.orthogonal(),
}


def ebflow_dense(
  shape: Sequence[int],
  *,
  num_layers: int = 4,
  alpha: float = 0.3,
  start: str = "identity",
  initial_bias: float = 1.0,
  param_dtype: DTypeLike = jnp.float32,
  rngs: nnx.Rngs,
) -> flows.Flow:
  """Build a fully connected energy-based flow over events of any shape.

  z = W_L f( ... f(W_1 x + b_1) ...) + b_L,  x (B, *shape), z (B, D), W (D, D), D entries;
  log p(x) = log N(z; 0, I) + log_det,  f = `flows.SmoothLeakyReLU(alpha)`

  Train it by a score-matching objective of `energy`, which costs D^2 per layer and example;
  `log_prob` and `sample` cost D^3 per layer. Compile time does not grow with depth.

  Args:
    shape: the event shape of data.
    num_layers: L.
    alpha: the least slope of f.
    start: what W starts as: "identity", "negative_identity" or "orthogonal" (random).
    initial_bias: what b starts as.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys.

  Returns:
    A `flows.Flow` over a standard normal.

  Raises:
    ValueError: if `num_layers` is below 1, there is no such `start`, `alpha` is out of range, or
      `shape` is no shape.

  Reference:
    Chao, Sun, Hsu, Kira, Lee, "Training Energy-Based Normalizing Flow with Score-Matching
    Objectives", 2023, arXiv 2305.15267.

  Example:
    >>> flow = ebflow_dense((2, 2, 1), num_layers=3, rngs=nnx.Rngs(0))
    >>> x = jnp.zeros((5, 2, 2, 1))
    >>> flow.energy(x).shape, flows.score(flow.energy, x).shape
    ((5,), (5, 2, 2, 1))
  """
  if start not in STARTS:
    raise ValueError(f"start must be one of {sorted(STARTS)}, got {start!r}")
  size = math.prod(shape)
  linear = lambda rngs: flows.InvertibleLinear(
    size,
    weight_init=STARTS[start],
    bias_init=nnx.initializers.constant(initial_bias),
    param_dtype=param_dtype,
    rngs=rngs,
  )
  layers = [flows.Reshape(shape, (size,)), *_bent(linear, num_layers, alpha, rngs)]
  base = flows.StandardNormal((size,), param_dtype=param_dtype)
  return flows.Flow(flows.Chain(layers), base)


def ebflow_conv(
  shape: Sequence[int],
  *,
  num_layers: int = 4,
  kernel_size: int = 3,
  alpha: float = 0.3,
  param_dtype: DTypeLike = jnp.float32,
  rngs: nnx.Rngs,
) -> flows.Flow:
  """Build an energy-based flow of ordinary convolutions over images.

  z = conv_L( f( ... f(conv_1(x)) ...)),  x and z (B, H, W, C), f = `flows.SmoothLeakyReLU(alpha)`
  log p(x) = log N(z; 0, I) + log_det,  conv = `flows.PaddedConv(C)`

  Train it by a score-matching objective of `energy`, which costs a convolution per layer;
  `log_prob` and `sample` take a dense matrix of D = H W C <= 3072 rows, and D^3 per layer. Kernels
  start as the identity, biases as normal numbers of the standard deviation 0.01 / (k sqrt(C)).
  Compile time does not grow with depth.

  Args:
    shape: (H, W, C) of images.
    num_layers: L.
    kernel_size: k, odd.
    alpha: the least slope of f.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys.

  Returns:
    A `flows.Flow` over a standard normal.

  Raises:
    ValueError: if `shape` is not that of images, `num_layers` is below 1, `kernel_size` is not odd,
      or `alpha` is out of range; at `log_prob` and `sample`, if D is above 3072.

  Reference:
    Chao, Sun, Hsu, Kira, Lee, "Training Energy-Based Normalizing Flow with Score-Matching
    Objectives", 2023, arXiv 2305.15267.

  Example:
    >>> flow = ebflow_conv((4, 4, 1), num_layers=3, rngs=nnx.Rngs(0))
    >>> x = jnp.zeros((5, 4, 4, 1))
    >>> flow.energy(x).shape, flow.log_prob(x).shape
    ((5,), (5,))
  """
  if len(shape) != 3:
    raise ValueError(f"shape must be (height, width, channels), got {shape}")
  base = flows.StandardNormal(shape, param_dtype=param_dtype)
  conv = lambda rngs: flows.PaddedConv(
    shape[2],
    kernel_size=kernel_size,
    # The deviation of Xavier's initialization of the kernel at gain 0.01.
    bias_init=nnx.initializers.normal(0.01 / (kernel_size * math.sqrt(shape[2]))),
    param_dtype=param_dtype,
    rngs=rngs,
  )
  return flows.Flow(flows.Chain(_bent(conv, num_layers, alpha, rngs)), base)


def ebflow_coupling(
  dim: int,
  *,
  num_blocks: int = 10,
  width: int = 64,
  depth: int = 3,
  shift_activation: str = "swish",
  param_dtype: DTypeLike = jnp.float32,
  rngs: nnx.Rngs,
) -> flows.Flow:
  """Build an energy-based flow of linear layers and smooth couplings over vectors.

  z = W h + b,  h = block_N( ... block_1(x)),  block = ActNorm(coupling(linear(x))),  x (B, dim);
  log p(x) = log N(z; 0, I) + log_det

  Linear layers start as random orthogonal matrices, all else as the identity; `init_from_data`
  starts the ActNorms. Halves of the features condition in turn. Compile time does not grow with
  depth.

  Args:
    dim: features, at least 2.
    num_blocks: N.
    width: units of the couplings' networks.
    depth: their hidden layers.
    shift_activation: as for `flows.SmoothAffineCoupling`.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys.

  Returns:
    A `flows.Flow` over a standard normal.

  Raises:
    ValueError: if `dim` is below 2, `num_blocks` below 1, or the layers refuse an argument.

  Reference:
    Chao, Sun, Hsu, Kira, Lee, "Training Energy-Based Normalizing Flow with Score-Matching
    Objectives", 2023, arXiv 2305.15267.

  Example:
    >>> flow = ebflow_coupling(2, num_blocks=2, width=8, rngs=nnx.Rngs(0))
    >>> flow.log_prob(jnp.zeros((3, 2))).shape
    (3,)
  """
  check_sizes(2, dim=dim)
  check_sizes(num_blocks=num_blocks)
  linear = lambda rngs: flows.InvertibleLinear(
    dim, bias_init=nnx.initializers.zeros, param_dtype=param_dtype, rngs=rngs
  )

  def make(rngs, order):
    coupling = flows.SmoothAffineCoupling(
      order, width=width, depth=depth, shift_activation=shift_activation, param_dtype=param_dtype,
      rngs=rngs,
    )  # fmt: skip
    return flows.Chain([linear(rngs), coupling, flows.ActNorm(dim, param_dtype=param_dtype)])

  orders = np.stack([np.arange(dim)[:: -1 if i % 2 else 1] for i in range(num_blocks)])
  blocks = flows.Scan(make, num_blocks, jnp.asarray(orders), rngs=rngs)
  base = flows.StandardNormal((dim,), param_dtype=param_dtype)
  return flows.Flow(flows.Chain([blocks, linear(rngs)]), base)


def _bent(
  linear: Callable[[nnx.Rngs], flows.Bijector], num_layers: int, alpha: float, rngs: nnx.Rngs
) -> list[flows.Bijector]:
  """Return linear layers with a bend after each but the last, these under a scan."""
  check_sizes(num_layers=num_layers)
  make = lambda rngs: flows.Chain([linear(rngs), flows.SmoothLeakyReLU(alpha)])
  layers = [flows.Scan(make, num_layers - 1, rngs=rngs)] if num_layers > 1 else []
  return [*layers, linear(rngs)]
