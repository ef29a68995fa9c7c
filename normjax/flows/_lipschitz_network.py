"""Networks that can't stretch: their Lipschitz constant lies below one, whatever their parameters.

Authors of invertible residual networks (https://arxiv.org/abs/1811.00995) divide a weight by an
estimate of its spectral norm from power iteration. That estimate is too small until it has
converged, so that contraction isn't certain, and it is state that training has to carry along.
Here the norm's upper bound by Gram iteration (https://arxiv.org/abs/2305.16173) takes its place:
a smooth function of the weight alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from normjax.blocks import Repeat
from normjax.flows._checks import check_cond

_GRAM_STEPS = 7  # bounds a spectral norm to within the factor rank^(1/256)
_SWISH_SLOPE = 1.1  # above the largest slope of x sigmoid(x), 1.0998


def spectral_norm_bound(kernel: Float[Array, "n m"]) -> Float[Array, ""]:
  """Return (sum_i s_i^(2 q))^(1 / (2 q)) >= max_i s_i of the singular values s_i, q = 2^7.

  The Gram matrix squares the singular values; doing so repeatedly leaves the largest one. Every
  matrix is divided by its norm first, whose logarithm is kept.
  """
  largest = jnp.max(jnp.abs(kernel))
  # Homogeneous: a constant scale changes neither value nor gradient, but squares may overflow.
  scale = jax.lax.stop_gradient(jnp.where(largest > 0, largest, 1))
  kernel = (kernel if kernel.shape[0] >= kernel.shape[1] else kernel.T) / scale
  square = lambda a: jnp.matmul(a.T, a, precision="highest")

  def step(carry, _):
    gram, log_scale = carry
    norm = _frobenius(gram)
    return (square(gram / norm), 2 * (log_scale + jnp.log(norm))), None

  norm = _frobenius(kernel)
  carry = square(kernel / norm), jnp.zeros((), kernel.dtype)
  (gram, log_scale), _ = jax.lax.scan(step, carry, length=_GRAM_STEPS - 1)
  return scale * norm * jnp.exp((log_scale + jnp.log(_frobenius(gram))) / 2**_GRAM_STEPS)


def _frobenius(matrix):
  """Return the Frobenius norm, or a tiny number, whose gradient is zero, where that is zero."""
  return jnp.sqrt(jnp.maximum(jnp.sum(matrix**2), jnp.finfo(matrix.dtype).tiny))


def lip_swish(x: Float[Array, "b n"], raw_beta: Float[Array, ""]) -> Float[Array, "b n"]:
  """Return x sigmoid(softplus(raw_beta) x) / 1.1, of slopes in (-0.1, 1) whatever `raw_beta`."""
  return x * jax.nn.sigmoid(jax.nn.softplus(raw_beta) * x) / _SWISH_SLOPE


class LipschitzLinear(nnx.Module):
  """x K min(1, c / |K|) + b, where |K| bounds the spectral norm of K, and c that of the layer."""

  def __init__(self, inputs, outputs, *, coefficient, param_dtype, rngs):
    self.coefficient = coefficient
    kernel = nnx.initializers.orthogonal()(rngs.params(), (inputs, outputs), param_dtype)
    self.kernel = nnx.Param(kernel)
    self.bias = nnx.Param(jnp.zeros((outputs,), param_dtype))

  def __call__(self, x):
    kernel = self.kernel[...].astype(jnp.promote_types(x.dtype, jnp.float32))
    bound = spectral_norm_bound(kernel)
    kernel = kernel * (self.coefficient / jnp.maximum(bound, self.coefficient))
    return jnp.matmul(x, kernel, precision="highest") + self.bias[...][None]


class LipschitzBlock(nnx.Module):
  """A LipSwish, then a linear layer."""

  def __init__(self, inputs, outputs, *, coefficient, param_dtype, rngs):
    self.raw_beta = nnx.Param(jnp.full((), 0.5, param_dtype))
    self.linear = LipschitzLinear(
      inputs, outputs, coefficient=coefficient, param_dtype=param_dtype, rngs=rngs
    )

  def __call__(self, h):
    return self.linear(lip_swish(h, self.raw_beta[...]))


class LipschitzNetwork(nnx.Module):
  """Maps (b, d) to (b, d), and a condition (b, c), with Lipschitz constant below `lipschitz`.

  The condition is added, by an unconstrained linear layer, behind the first linear layer.
  """

  def __init__(self, dim, *, width, depth, lipschitz, cond_dim, param_dtype, rngs):
    # The layers' coefficients multiply.
    options = {
      "coefficient": lipschitz ** (1 / (depth + 2)), "param_dtype": param_dtype, "rngs": rngs
    }  # fmt: skip
    self.cond_dim = cond_dim
    self.first = LipschitzLinear(dim, width, **options)
    self.context = (
      None if cond_dim is None else nnx.Linear(cond_dim, width, param_dtype=param_dtype, rngs=rngs)
    )
    make = lambda rngs: LipschitzBlock(width, width, **(options | {"rngs": rngs}))
    self.blocks = Repeat(make, depth, rngs=rngs)
    self.last = LipschitzBlock(width, dim, **options)

  def __call__(self, x, cond):
    check_cond(cond, x.shape[0], self.cond_dim)
    h: Any = self.first(x)
    if self.context is not None:
      h = h + self.context(cond.astype(x.dtype))
    return self.last(self.blocks(h))
