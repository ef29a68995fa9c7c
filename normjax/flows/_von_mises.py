"""Angles that gather around one: the base of flows on circles that is not uniform."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from normjax.flows._checks import check_batch, check_sampling, check_shape
from normjax.flows._distribution import Distribution
from normjax.flows._widened import widened


class VonMises(Distribution):
  """Has independent angles of a von Mises law.

  log p(z) = sum_i [k_i (cos(z_i - loc_i) - 1) - log(2 pi I0(k_i) exp(-k_i))],  k the concentration,
  z (b, *shape), on the circle: of period 2 pi, over one of which it integrates to 1

  A sample is loc + T * deviation, wrapped to [-pi, pi], without a gradient to k. The uniform law
  of angles is `Uniform(shape, low=-pi, high=pi)`.

  Args:
    shape: the event shape, a tuple or list of ints.
    concentration: k, above 0: fixed, or where learning starts.
    trainable: learn `loc`, zero at first, and `log_concentration` = log k, both (*shape).
    param_dtype: dtype of the parameters, also of the samples unless narrower than float32.
    rngs: not needed, since parameters start as constants; every module takes it.

  Raises:
    ValueError: if `shape` is not a sequence of positive ints or `concentration` not above 0.

  Reference:
    Best, Fisher, "Efficient simulation of the von Mises distribution", 1979 (how samples are
    drawn).

  Example:
    >>> from normjax import flows
    >>> base = flows.VonMises((2,), concentration=100.0)
    >>> z = base.sample(jax.random.key(0), 1000)
    >>> round(float(z.std()), 1)  # close to 1 / sqrt(k)
    0.1
  """

  def __init__(
    self,
    shape: Sequence[int],
    *,
    concentration: float = 1.0,
    trainable: bool = False,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs | None = None,
  ):
    del rngs
    self.shape = check_shape(shape)
    if not 0 < concentration < math.inf:
      raise ValueError(f"concentration must be above 0 and finite, got {concentration}")
    self.concentration, self.param_dtype = float(concentration), jnp.dtype(param_dtype)
    log_concentration = jnp.full(self.shape, math.log(concentration), self.param_dtype)
    self.loc = nnx.Param(jnp.zeros(self.shape, self.param_dtype)) if trainable else None
    self.log_concentration = nnx.Param(log_concentration) if trainable else None

  def _moments(self, dtype):
    """Return `(loc, k)`, both (1, *shape)."""
    if self.loc is None or self.log_concentration is None:
      zeros = jnp.zeros((1, *self.shape), dtype)
      return zeros, zeros + self.concentration
    loc, log_k = (p[...].astype(dtype)[None] for p in (self.loc, self.log_concentration))
    return loc, jnp.exp(log_k)

  def log_prob(self, z, cond=None):
    """Return log p(z) (b,), float32 or wider."""
    check_batch("z", z, self.shape)
    z = widened(z)
    loc, k = self._moments(z.dtype)
    # cos t - 1 = -2 sin(t / 2)^2 keeps its digits where k is large.
    each = -2 * k * jnp.sin((z - loc) / 2) ** 2 - jnp.log(2 * jnp.pi * jax.scipy.special.i0e(k))
    return jnp.sum(each, axis=tuple(range(1, z.ndim)))

  def sample(self, key, n, cond=None, temperature=1.0):
    """Draw (n, *shape) angles: loc + temperature * deviation, in [-pi, pi]."""
    check_sampling(n, temperature)
    dtype = jnp.promote_types(self.param_dtype, jnp.float32)
    loc, k = self._moments(dtype)
    # Beyond 1e30 deviations are nothing beside any other angle, and no proposal would be accepted.
    k = jnp.minimum(jax.lax.stop_gradient(k), 1e30)
    deviation = _deviations(key, (n, *self.shape), k)
    z = loc + jnp.asarray(temperature, dtype) * deviation
    return jnp.mod(z + jnp.pi, 2 * jnp.pi) - jnp.pi


def _deviations(key, shape, k):
  """Draw angles around 0 by rejection from a wrapped Cauchy law of resultant length rho.

  With d = (1 - rho)^2 / (2 rho) and w = 1 - cos(angle), a proposal is accepted with probability
  c exp(1 - c), c = k (d + w): the paper's rule, without its differences of numbers close to 1.
  With r^2 = 1 + sqrt(1 + 4 k^2), rho = 2 k / (r s) and 1 - rho^2 = 2 sqrt(2) / s, s = r + sqrt(2).
  """
  r = jnp.sqrt(1 + jnp.hypot(1, 2 * k))
  s = r + math.sqrt(2)
  rho = jnp.maximum(2 * (k / r) / s, 1e-6)
  d = 4 / (s * (1 + rho)) ** 2 / rho

  def propose(carry):
    key, angle, accepted = carry
    key, turn_key, keep_key, sign_key = jax.random.split(key, 4)
    half = jnp.pi / 2 * jax.random.uniform(turn_key, shape, k.dtype)
    w = d * jnp.sin(half) ** 2 / (d / 2 + jnp.cos(half) ** 2)
    c = k * (d + w)
    u = jax.random.uniform(keep_key, shape, k.dtype)
    keep = ~(jnp.log(u) > jnp.log(c) + 1 - c)  # NaN too: a loop that waits for a number never ends
    new = (
      2
      * jnp.arcsin(jnp.sqrt(jnp.clip(w / 2, 0, 1)))
      * jax.random.rademacher(sign_key, shape, k.dtype)
    )
    return key, jnp.where(accepted, angle, new), accepted | keep

  start = key, jnp.zeros(shape, k.dtype), jnp.zeros(shape, bool)
  return jax.lax.while_loop(lambda carry: ~jnp.all(carry[2]), propose, start)[1]
