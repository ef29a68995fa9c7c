"""Gaussianization flows: rotations, and marginals made normal, in turn."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from normjax import flows
from normjax._sizes import check_sizes


def gaussianization_flow(
  dim: int,
  *,
  num_layers: int = 6,
  num_components: int = 8,
  num_reflections: int | None = None,
  param_dtype: DTypeLike = jnp.float32,
  rngs: nnx.Rngs,
) -> flows.Flow:
  """Build a Gaussianization flow over vectors.

  log p(x) = log N(z; 0, I) + log_det,  z = layer_L( ... layer_1(x)),  x (B, dim)

  A layer rotates, by a product of reflections, and makes every marginal normal by the distribution
  function of a trained mixture of logistics. There is no other network: parameters are few, and
  all passes take constant time per layer. Standardize data before, and start the mixtures from a
  batch by `flows.init_from_data`, layer by layer; rotations are random from the start. Compile time
  does not grow with depth.

  Args:
    dim: number of features.
    num_layers: number of layers.
    num_components: components of each mixture.
    num_reflections: of each rotation; `dim` by default.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys.

  Returns:
    A `flows.Flow` over a standard normal.

  Raises:
    ValueError: if a size is below 1.

  Reference:
    Meng, Song, Song, Ermon, "Gaussianization Flows", 2020, arXiv 2003.01941.

  Example:
    >>> flow = gaussianization_flow(3, num_layers=2, num_components=2, rngs=nnx.Rngs(0))
    >>> flow.log_prob(jnp.zeros((2, 3))).shape
    (2,)
  """
  check_sizes(dim=dim, num_layers=num_layers)

  def make(rngs):
    rotation = flows.HouseholderLinear(
      dim, num_reflections=num_reflections, param_dtype=param_dtype, rngs=rngs
    )
    transform = flows.GaussianizationTransform(num_components)
    marginals = flows.Elementwise(transform, (dim,), param_dtype=param_dtype)
    return flows.Chain([rotation, marginals])

  base = flows.StandardNormal((dim,), param_dtype=param_dtype)
  return flows.Flow(flows.Scan(make, num_layers, rngs=rngs), base)
