"""An affine coupling whose networks have all derivatives, for objectives that take two of them.

Its form is that of the authors' toy flow (https://arxiv.org/abs/2305.15267): the shift is
subtracted before the scale divides. Their networks see all features, those that they transform as
zeros; here they see the others only, which is the same function.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from normjax._sizes import check_sizes
from normjax.blocks import Repeat
from normjax.flows._checks import check_cond
from normjax.flows._exp import stretched
from normjax.flows._ordered_coupling import OrderedCoupling
from normjax.flows._widened import widened

ACTIVATIONS = ("elu", "swish")


class _Layer(nnx.Module):
  """activation(x K + b); swish is x sigmoid(beta x) with a trained beta per unit, at first 1."""

  def __init__(self, inputs, outputs, activation, param_dtype, rngs):
    self.linear = nnx.Linear(inputs, outputs, param_dtype=param_dtype, rngs=rngs)
    swish = activation == "swish"
    self.beta = nnx.Param(jnp.ones((outputs,), param_dtype)) if swish else None

  def __call__(self, x):
    h = self.linear(x)
    return jax.nn.elu(h) if self.beta is None else h * jax.nn.sigmoid(self.beta[...][None] * h)


class _Network(nnx.Module):
  """A multi-layer perceptron, zero at first."""

  def __init__(self, inputs, outputs, *, width, depth, activation, param_dtype, rngs):
    options = (activation, param_dtype, rngs)
    self.first = _Layer(inputs, width, *options)
    make = lambda rngs: _Layer(width, width, activation, param_dtype, rngs)
    self.hidden = Repeat(make, depth - 1, rngs=rngs) if depth > 1 else None
    self.last = nnx.Linear(
      width, outputs, kernel_init=nnx.initializers.zeros, param_dtype=param_dtype, rngs=rngs
    )

  def __call__(self, x):
    h = self.first(x)
    return self.last(h if self.hidden is None else self.hidden(h))


class SmoothAffineCoupling(OrderedCoupling):
  """Shifts and scales one part of a vector by smooth networks of the other.

  (x1, x2) = x[:, order] cut at num_conditioning;  z2 = (x2 - t) exp(-s),  s = f(x1, cond),
  t = g(x1, cond),  x (B, D), cond (B, C);  log_det (B,) = -sum(s)

  f and g are multi-layer perceptrons, f with the activation x sigmoid(beta x) and trained betas.

  Args:
    order: (D,) the features, those that condition first: `mask_to_order` makes it from a mask. It
      may be traced, so that the layers of a `Scan` differ.
    num_conditioning: how many condition; half of them, rounded down, by default.
    width: units of the networks' hidden layers.
    depth: how many hidden layers, all but the first scanned.
    shift_activation: that of g: "swish" as in f, or "elu", whose second derivative jumps at 0.
    cond_dim: C, or None.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: if `order` is not a permutation of at least two features, no feature is left on
      either side, a size is below 1, or there is no such activation.

  Reference:
    Chao, Sun, Hsu, Kira, Lee, "Training Energy-Based Normalizing Flow with Score-Matching
    Objectives", 2023, arXiv 2305.15267.

  Example:
    >>> layer = SmoothAffineCoupling(jnp.arange(4), width=8, rngs=nnx.Rngs(0))
    >>> z, log_det = layer.forward(jnp.ones((2, 4)))  # a new one is the identity
    >>> z.shape, log_det
    ((2, 4), Array([-0., -0.], dtype=float32))
  """

  def __init__(
    self,
    order: Int[Array, "d"],
    *,
    num_conditioning: int | None = None,
    width: int = 64,
    depth: int = 3,
    shift_activation: str = "swish",
    cond_dim: int | None = None,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self._set_order(order, num_conditioning)
    check_sizes(width=width, depth=depth, cond_dim=cond_dim)
    if shift_activation not in ACTIVATIONS:
      raise ValueError(f"shift_activation must be one of {ACTIVATIONS}, got {shift_activation!r}")
    self.cond_dim, kept = cond_dim, self.num_conditioning
    inputs, outputs = kept + (cond_dim or 0), self.order.shape[0] - kept
    make = lambda activation: _Network(
      inputs, outputs, width=width, depth=depth, activation=activation, param_dtype=param_dtype,
      rngs=rngs,
    )  # fmt: skip
    self.scale, self.shift = make("swish"), make(shift_activation)

  def conditioner(self, x1, cond):
    """Return `(s, t)`, each (b, transformed features)."""
    check_cond(cond, x1.shape[0], self.cond_dim)
    h = widened(x1)
    if self.cond_dim is not None:
      h = jnp.concatenate([h, jnp.asarray(cond, h.dtype)], axis=1)
    return self.scale(h), self.shift(h)

  def transform(self, x2, theta):
    """Return `((x2 - t) exp(-s), -sum(s))`."""
    s, t = theta
    return stretched(x2 - t, -s).astype(x2.dtype), -jnp.sum(s, axis=1)

  def untransform(self, y2, theta):
    """Return `(y2 exp(s) + t, sum(s))`."""
    s, t = theta
    return (stretched(y2, s) + t).astype(y2.dtype), jnp.sum(s, axis=1)
