"""Kernelised normalising flows (Ferumal flows), https://arxiv.org/abs/2307.14839.

Affine couplings whose scale and shift are kernel machines on a few auxiliary points instead of
networks: few parameters, which pays where data are few. The authors published no code; this is the
paper's auxiliary-point variant. Initial values are ours where the paper is silent: zero weights, so
that a layer starts as the identity, and unit scales; so is the option `bound`.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int

from normjax._sizes import check_sizes
from normjax.flows._checks import check_above_zero, check_cond
from normjax.flows._kernels import check_scale, matern12, matern32, matern52, squared_exponential
from normjax.flows._ordered_coupling import OrderedCoupling
from normjax.flows._widened import widened

# `kernel(x (b, d), y (n, d), lengthscale, outputscale) -> (b, n)`, by name.
KERNELS: dict[str, Callable[..., Array]] = {
  "matern12": matern12,
  "matern32": matern32,
  "matern52": matern52,
  "squared_exponential": squared_exponential,
}


class KernelCoupling(OrderedCoupling):
  """Scales and shifts some features by kernel machines of the others.

  z_r = exp(s) * r + t,  s = K A_s,  t = K A_t,  K = k(u, points) (B, N),  log_det = sum(s)

  with u the conditioning features of x (B, D), followed by `cond` if there is one; r (B, D - d) the
  others. Far away from all points s = t = 0, so the layer is the identity there. The weights
  A_s, A_t (N, D - d) are zero at first: before training, `init_from_data` chooses the points among
  the data, in their order, so shuffle these.

  Args:
    order: the D features, those that condition first.
    num_conditioning: d, how many of them condition; 1 to D - 1.
    num_points: N, the number of auxiliary points (standard normal at first).
    kernel: a key of `flows.KERNELS`.
    cond_dim: features of `cond` (B, cond_dim); None: unconditional.
    bound: c of s = c tanh(K A_s / c), which bounds the scales; None: unbounded.
    trainable_points: False keeps the points out of the parameters.
    lengthscale: initial lengthscale, a scalar or one per coordinate of the points.
    outputscale: initial k(u, u).
    param_dtype: dtype of the parameters.
    rngs: source of the points' key.

  Raises:
    ValueError: if `order` is no permutation, a number is out of range, a scale is not above 0, or
      there is no such kernel.

  Reference:
    English, Kirchler, Lippert, "Kernelised Normalising Flows", 2023, arXiv 2307.14839.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from normjax import flows
    >>> layer = flows.KernelCoupling([0, 2, 1], 2, num_points=5, rngs=nnx.Rngs(0))
    >>> layer.weights_shift[...] += 1.0
    >>> z, log_det = layer.forward(jnp.ones((4, 3)))
    >>> bool((z[:, 0] == 1).all()), bool((z[:, 1] > 1).all())
    (True, True)
  """

  def __init__(
    self,
    order: Int[ArrayLike, "D"] | Sequence[int],
    num_conditioning: int,
    *,
    num_points: int,
    kernel: str = "squared_exponential",
    cond_dim: int | None = None,
    bound: float | None = None,
    trainable_points: bool = True,
    lengthscale: ArrayLike = 1.0,
    outputscale: ArrayLike = 1.0,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    self._set_order(order, num_conditioning)
    check_sizes(num_points=num_points, cond_dim=cond_dim)
    if kernel not in KERNELS:
      raise ValueError(f"kernel must be one of {sorted(KERNELS)}, got {kernel!r}")
    if bound is not None:
      check_above_zero(bound=bound)
    self.kernel, self.cond_dim, self.bound = kernel, cond_dim, bound
    outputs = self.order.shape[0] - num_conditioning
    inputs = num_conditioning + (cond_dim or 0)
    points = jax.random.normal(rngs.params(), (num_points, inputs), param_dtype)
    self.points = nnx.Param(points) if trainable_points else nnx.Variable(points)
    lengthscale = check_scale("lengthscale", lengthscale, ((), (inputs,)), param_dtype)
    self.log_lengthscale = nnx.Param(jnp.broadcast_to(jnp.log(lengthscale), (inputs,)))
    outputscale = check_scale("outputscale", outputscale, ((),), param_dtype)
    self.log_outputscale = nnx.Param(jnp.log(outputscale))
    self.weights_scale = nnx.Param(jnp.zeros((num_points, outputs), param_dtype))
    self.weights_shift = nnx.Param(jnp.zeros((num_points, outputs), param_dtype))

  def inputs(self, x1: Float[Array, "b d"], cond: Array | None) -> Float[Array, "b e"]:
    """Return what the kernels see: the conditioning features, then `cond`."""
    x1 = widened(x1)
    if self.cond_dim is None:
      return x1
    check_cond(cond, x1.shape[0], self.cond_dim)
    return jnp.concatenate([x1, jnp.asarray(cond, x1.dtype)], axis=1)

  def conditioner(self, x1, cond):
    """Return `(s, t)`, each (B, D - d)."""
    u = self.inputs(x1, cond)
    as_input = lambda parameter: parameter[...].astype(u.dtype)
    lengthscale, outputscale = (
      jnp.exp(as_input(v)) for v in (self.log_lengthscale, self.log_outputscale)
    )
    features = KERNELS[self.kernel](u, as_input(self.points), lengthscale, outputscale)
    s, t = features @ as_input(self.weights_scale), features @ as_input(self.weights_shift)
    return (s if self.bound is None else self.bound * jnp.tanh(s / self.bound)), t

  def init_conditioner(self, x1, cond):
    """Take the points from data and the lengthscales from their distances; return `(s, t)`.

    points = the first N rows of u;  lengthscale_i = the median of |points_ai - points_bi| over
    pairs a < b (1 where that is 0)
    """
    if not self.starts_from_data:
      return self.conditioner(x1, cond)
    count, dtype = self.points.shape[0], self.points.dtype
    if count > x1.shape[0]:
      raise ValueError(f"x must have a row for each of the {count} points, got {x1.shape[0]} rows")
    points = self.inputs(x1, cond)[:count].astype(dtype)
    self.points[...] = points
    self.log_lengthscale[...] = jnp.log(_median_distance(points))
    return self.conditioner(x1, cond)

  def transform(self, x2, theta):
    """Return `(exp(s) r + t, sum(s))`."""
    s, t = theta
    return (jnp.exp(s) * x2 + t).astype(x2.dtype), jnp.sum(s, axis=1)

  def untransform(self, y2, theta):
    """Return `((y - t) exp(-s), -sum(s))`."""
    s, t = theta
    return ((y2 - t) * jnp.exp(-s)).astype(y2.dtype), -jnp.sum(s, axis=1)


def _median_distance(points: Float[Array, "n d"]) -> Float[Array, "d"]:
  if points.shape[0] < 2:
    return jnp.ones(points.shape[1:], points.dtype)
  first, second = np.triu_indices(points.shape[0], 1)
  median = jnp.median(jnp.abs(points[first] - points[second]), axis=0)
  return jnp.where(median > 0, median, 1)
