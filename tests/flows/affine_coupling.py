"""A small conditional coupling, for tests of what is made of couplings."""

import jax
import jax.numpy as jnp
from flax import nnx

from normjax.flows import Coupling


class AffineCoupling(Coupling):
  """y2 = (x2 + shift) exp(1.5 tanh(raw)), (raw, shift) = tanh(x1 w0 + b0 [+ cond v0]) w1 + b1.

  x (b, d), cond (b, c). `order` (d,) lists the features, those that condition first.
  """

  def __init__(self, order, w0, b0, w1, b1, v0=None):
    self.order = nnx.Variable(order)
    self.w0, self.b0, self.w1, self.b1 = (nnx.Param(v) for v in (w0, b0, w1, b1))
    self.v0 = None if v0 is None else nnx.Param(v0)

  def split(self, x):
    if x.ndim != 2 or x.shape[1] != self.order.shape[0]:
      raise ValueError(f"x must have shape (b, {self.order.shape[0]}), got {x.shape}")
    x = x[:, self.order[...]]
    return x[:, : self.w0.shape[0]], x[:, self.w0.shape[0] :]

  def join(self, x1, x2):
    return jnp.concatenate([x1, x2], axis=1)[:, jnp.argsort(self.order[...])]

  def conditioner(self, x1, cond):
    hidden = x1 @ self.w0[...] + self.b0[...][None]
    if self.v0 is not None:
      if cond is None or cond.shape != (x1.shape[0], self.v0.shape[0]):
        raise ValueError(f"cond must have shape {(x1.shape[0], self.v0.shape[0])}, got {cond}")
      hidden = hidden + cond @ self.v0[...]
    raw, shift = jnp.split(jnp.tanh(hidden) @ self.w1[...] + self.b1[...][None], 2, axis=1)
    return 1.5 * jnp.tanh(raw), shift

  def transform(self, x2, theta):
    log_scale, shift = theta
    return ((x2 + shift) * jnp.exp(log_scale)).astype(x2.dtype), _sum(log_scale)

  def untransform(self, y2, theta):
    log_scale, shift = theta
    return (y2 * jnp.exp(-log_scale) - shift).astype(y2.dtype), -_sum(log_scale)


def _sum(log_scale):
  return jnp.sum(log_scale.astype(jnp.promote_types(log_scale.dtype, jnp.float32)), axis=1)


def alternating_orders(dim, length):
  """Return (length, dim): each layer transforms the half that the one before conditioned on."""
  return jnp.stack([jnp.roll(jnp.arange(dim), (i % 2) * (dim // 2)) for i in range(length)])


def random_coupling(rngs, order, *, width=5, cond_dim=None, param_dtype=jnp.float32):
  """Return a coupling of an even number of features with random weights of order one."""
  half = order.shape[0] // 2
  shapes = {"w0": (half, width), "b0": (width,), "w1": (width, 2 * half), "b1": (2 * half,)}
  if cond_dim is not None:
    shapes["v0"] = (cond_dim, width)
  draw = lambda shape: jax.random.normal(rngs.params(), shape, param_dtype) * 0.7
  return AffineCoupling(order, **{name: draw(shape) for name, shape in shapes.items()})
