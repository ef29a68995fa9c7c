"""Gaussians whose mean and deviations depend on a condition, or on a class label."""

import abc
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from normjax._sizes import check_sizes
from normjax.flows._checks import (
  as_labels,
  check_above_zero,
  check_batch,
  check_sampling,
  check_shape,
)
from normjax.flows._distribution import Distribution
from normjax.flows._widened import widened


class ConditionalNormal(Distribution):
  """Has independent N(loc_i, s_i^2) entries, with `moments` that depend on `cond`."""

  shape: tuple[int, ...]
  param_dtype: jnp.dtype

  @abc.abstractmethod
  def moments(self, cond: PyTree | None, n: int) -> tuple[Array, Array]:
    """Return `(loc, log_scale)`, both (n, *shape), of `n` conditions."""

  def log_prob(self, z, cond=None):
    """Return log p(z | cond) (b,), float32 or wider."""
    check_batch("z", z, self.shape)
    z = widened(z)
    loc, log_scale = (m.astype(z.dtype) for m in self.moments(cond, z.shape[0]))
    each = jax.scipy.stats.norm.logpdf((z - loc) * jnp.exp(-log_scale)) - log_scale
    return jnp.sum(each, axis=tuple(range(1, z.ndim)))

  def sample(self, key, n, cond=None, temperature=1.0):
    """Draw (n, *shape) events, one for each condition: loc + temperature * s * eps."""
    check_sampling(n, temperature)
    dtype = jnp.promote_types(self.param_dtype, jnp.float32)
    loc, log_scale = (m.astype(dtype) for m in self.moments(cond, n))
    eps = jnp.asarray(temperature, dtype) * jax.random.normal(key, (n, *self.shape), dtype)
    return loc + jnp.exp(log_scale) * eps


class ConditionalDiagonalNormal(ConditionalNormal):
  """Has independent normal entries whose location and scale a network computes from `cond`.

  log p(z | c) = sum_i log N(z_i; loc_i, s_i^2),  [loc | raw] (b, 2 D) = network(c),
  log s = m tanh(raw / m) with m = max_log_scale,  z (b, *shape);  a sample is loc + T * s * eps.

  Args:
    shape: the event shape, a tuple or list of ints, of D entries in all.
    network: any NNX module (or function) from conditions to (b, 2 D).
    max_log_scale: bound of |log s|, above 0.
    param_dtype: dtype of the samples unless narrower than float32.
    rngs: not needed, since the network is made already; every module takes it.

  Raises:
    ValueError: if `shape` is not a sequence of positive ints, `network` is no function,
      `max_log_scale` is not above 0, or the network returns another shape.

  Example:
    >>> from normjax import flows
    >>> base = flows.ConditionalDiagonalNormal((2,), nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
    >>> base.sample(jax.random.key(0), 5, jnp.ones((5, 3))).shape
    (5, 2)
  """

  def __init__(
    self,
    shape: Sequence[int],
    network: Callable[..., Array],
    *,
    max_log_scale: float = 7.0,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs | None = None,
  ):
    del rngs
    self.shape = check_shape(shape)
    check_network(network)
    check_above_zero(max_log_scale=max_log_scale)
    self.network, self.max_log_scale = network, float(max_log_scale)
    self.param_dtype = jnp.dtype(param_dtype)

  def moments(self, cond, n):
    """Return `(loc, log_scale)`, both (n, *shape): what the network says."""
    rows = network_rows(self.network, cond, (n, 2 * math.prod(self.shape)))
    loc, raw = (part.reshape(n, *self.shape) for part in jnp.split(rows, 2, axis=1))
    return loc, self.max_log_scale * jnp.tanh(raw / self.max_log_scale)


class ClassConditionalNormal(ConditionalNormal):
  """Has independent normal entries, with a learned location and scale for every class.

  log p(z | k) = sum_i log N(z_i; loc_ki, s_ki^2),  s = exp(log_scale),  z (b, *shape);
  a sample is loc_k + T * s_k * eps.

  The prior of Glow's last level for class labels. `cond` are labels (b,) in 0..K; K, or no cond,
  means "no label", which has a Gaussian of its own.

  Args:
    shape: the event shape, a tuple or list of ints.
    num_classes: K, at least 1.
    param_dtype: dtype of `loc` and `log_scale`, both (K + 1, *shape) and zero at first.
    rngs: not needed, since parameters start as constants; every module takes it.

  Raises:
    ValueError: if `shape` is not a sequence of positive ints, `num_classes` is below 1, or `cond`
      holds no integers (b,) from 0 to K (they are looked at unless they are being traced).

  Reference:
    Kingma, Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions", 2018,
    arXiv 1807.03039.

  Example:
    >>> from normjax import flows
    >>> base = flows.ClassConditionalNormal((2,), 10)
    >>> base.log_prob(jnp.zeros((3, 2)), jnp.array([0, 9, 9])).shape
    (3,)
  """

  def __init__(
    self,
    shape: Sequence[int],
    num_classes: int,
    *,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs | None = None,
  ):
    del rngs
    self.shape = check_shape(shape)
    check_sizes(num_classes=num_classes)
    self.num_classes, self.param_dtype = num_classes, jnp.dtype(param_dtype)
    table = (num_classes + 1, *self.shape)
    self.loc = nnx.Param(jnp.zeros(table, self.param_dtype))
    self.log_scale = nnx.Param(jnp.zeros(table, self.param_dtype))

  @property
  def null_label(self) -> int:
    """The label that means "no label"."""
    return self.num_classes

  def moments(self, cond, n):
    """Return `(loc, log_scale)`, both (n, *shape): rows of the tables."""
    labels = as_labels(cond, n, self.num_classes, self.null_label)
    return self.loc[...][labels], self.log_scale[...][labels]


def check_network(network) -> None:
  """Raise unless a network can be called."""
  if not callable(network):
    raise ValueError(f"network must be callable, got {network!r}")


def network_rows(
  network: Callable[..., Array], cond: PyTree | None, shape: tuple[int, int]
) -> Float[Array, "n p"]:
  """Return what a network says of `n` conditions, widened, or raise if the shape is another."""
  rows = network(cond)
  if rows.shape != shape:
    raise ValueError(
      f"network must return shape {shape} for {shape[0]} conditions, got {rows.shape}"
    )
  return widened(rows)
