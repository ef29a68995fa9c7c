"""Integrals of positive networks as transforms (https://arxiv.org/abs/1908.05164).

What differs from the authors' code: smooth activations, since the quadrature converges fast only
for smooth integrands, and no approximation of its own for the gradient, which is the quadrature's.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from normjax._sizes import check_sizes
from normjax.blocks import Repeat
from normjax.flows._monotone_transform import MonotoneTransform, positive


def clenshaw_curtis(num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
  """Return nodes and positive weights (n,) of a rule on [-1, 1], exact to degree n - 1."""
  last = num_nodes - 1
  angles = np.pi * np.arange(num_nodes) / last
  # The integral of the interpolating sum of cosines: that of cos(2 j t) sin(t) is 2 / (1 - 4 j^2).
  j = np.arange(last // 2 + 1)
  factors = np.where((j == 0) | (2 * j == last), 1, 2) / (1 - 4.0 * j**2)
  weights = 2 / last * np.cos(2 * angles[:, None] * j) @ factors
  weights[[0, -1]] /= 2
  return np.cos(angles), weights


class PositiveBlock(nnx.Module):
  """tanh of a linear layer."""

  def __init__(self, width, param_dtype, rngs):
    self.linear = nnx.Linear(width, width, param_dtype=param_dtype, rngs=rngs)

  def __call__(self, h):
    return jnp.tanh(self.linear(h))


class PositiveNetwork(nnx.Module):
  """Maps numbers (*batch) and their embeddings (*batch, e) to log g > -7 (*batch)."""

  def __init__(self, embedding_dim, *, width, depth, param_dtype, rngs):
    options = {"param_dtype": param_dtype, "rngs": rngs}
    self.first = nnx.Linear(1 + embedding_dim, width, **options)
    make = lambda rngs: PositiveBlock(width, param_dtype, rngs)
    self.blocks = Repeat(make, depth, rngs=rngs)
    self.last = nnx.Linear(width, 1, **options)

  def __call__(self, t, embedding):
    h: Any = jnp.tanh(self.first(jnp.concatenate([t[..., None], embedding], axis=-1)))
    h = self.last(self.blocks(h))[..., 0]
    return jnp.log(positive(h))


class UMNNTransform(MonotoneTransform):
  """Integrates a positive network: an unconstrained monotonic neural network.

  y = t + int_0^x g(s; h) ds,  log dy/dx = log g(x; h),  raw (*batch, E + 1) = (h, t)

  g is a network with parameters of this transform, shared by all entries, with tanh inside and
  softplus at the end, and the embedding h as further input. The integral is a Clenshaw-Curtis sum
  of `num_nodes` values: log dy/dx is exact for the integral, and for the sum as far as that has
  converged. The error falls geometrically, the slower the larger |x| and the weights are. The
  inverse finds the root of the sum.

  Args:
    embedding_dim: E, at least 1.
    width: units of the network's hidden layers.
    depth: number of hidden layers behind the first; may be 0.
    num_nodes: of the sum, odd and at least 3.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: if a size or `num_nodes` is out of range.

  Reference:
    Wehenkel, Louppe, "Unconstrained Monotonic Neural Networks", 2019, arXiv 1908.05164.

  Example:
    >>> transform = UMNNTransform(2, width=8, rngs=nnx.Rngs(0))
    >>> y, _ = transform.forward(jnp.zeros(1), jnp.array([[0.3, -0.2, 1.5]]))
    >>> y
    Array([1.5], dtype=float32)
  """

  def __init__(
    self,
    embedding_dim: int = 8,
    *,
    width: int = 32,
    depth: int = 1,
    num_nodes: int = 33,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    check_sizes(embedding_dim=embedding_dim, width=width)
    check_sizes(0, depth=depth)
    if num_nodes < 3 or num_nodes % 2 == 0:
      raise ValueError(f"num_nodes must be odd and at least 3, got {num_nodes}")
    self.num_nodes, self.num_parameters = num_nodes, embedding_dim + 1
    self.log_integrand = PositiveNetwork(
      embedding_dim, width=width, depth=depth, param_dtype=param_dtype, rngs=rngs
    )

  def value(self, x, raw):
    """Return y."""
    nodes, weights = (jnp.asarray(v, x.dtype) for v in clenshaw_curtis(self.num_nodes))
    embedding = raw[..., :-1]
    integrand = lambda node: jnp.exp(self.log_integrand(x * ((1 + node) / 2), embedding))
    mean = jnp.tensordot(weights / 2, jax.vmap(integrand)(nodes), axes=1, precision="highest")
    return raw[..., -1] + x * mean

  def value_and_log_slope(self, x, raw):
    """Return y and log g(x)."""
    return self.value(x, raw), self.log_integrand(x, raw[..., :-1])
