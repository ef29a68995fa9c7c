"""The residual networks of couplings and of autoregressive flows (arXiv 1906.04032, 1502.03509)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from normjax.blocks import Repeat
from normjax.flows._checks import check_cond, check_sizes


class GatedBlock(nnx.Module):
  """h + W1 relu(W0 relu(h)) * sigmoid(V cond); the gate is left out without a condition."""

  def __init__(self, width, cond_dim, param_dtype, rngs):
    options = {"param_dtype": param_dtype, "rngs": rngs}
    self.linear0 = nnx.Linear(width, width, **options)
    self.linear1 = nnx.Linear(width, width, **options)
    self.gate = None if cond_dim is None else nnx.Linear(cond_dim, width, **options)

  def __call__(self, carry):
    h, cond = carry
    step = self.linear1(jax.nn.relu(self.linear0(jax.nn.relu(h))))
    if self.gate is not None:
      step = step * jax.nn.sigmoid(self.gate(cond))
    return h + step, cond


class ResidualNetwork(nnx.Module):
  """Maps (b, n) and a condition (b, c) to (b, m); zero at first."""

  def __init__(self, inputs, outputs, *, width, depth, cond_dim, param_dtype, rngs):
    options = {"param_dtype": param_dtype, "rngs": rngs}
    self.cond_dim = cond_dim
    self.first = nnx.Linear(inputs + (cond_dim or 0), width, **options)
    make = lambda rngs: GatedBlock(width, cond_dim, param_dtype, rngs)
    self.blocks = Repeat(make, depth, rngs=rngs)
    self.last = nnx.Linear(width, outputs, kernel_init=nnx.initializers.zeros, **options)

  def __call__(self, x, cond):
    check_cond(cond, x.shape[0], self.cond_dim)
    cond = None if self.cond_dim is None else cond.astype(x.dtype)
    carry: Any = (self.first(x if cond is None else jnp.concatenate([x, cond], axis=1)), cond)
    h, _ = self.blocks(carry)
    return self.last(h)


class MaskedLinear(nnx.Module):
  """x (K * mask) + b, where entry (i, o) of the mask lets output o see input i."""

  def __init__(self, in_degrees, out_degrees, *, strict, param_dtype, rngs, kernel_init=None):
    # Tuples, which are static: under a scan every layer has the same masks.
    self.in_degrees, self.out_degrees = tuple(map(int, in_degrees)), tuple(map(int, out_degrees))
    self.strict = strict
    init = nnx.initializers.lecun_normal() if kernel_init is None else kernel_init
    shape = len(self.in_degrees), len(self.out_degrees)
    self.kernel = nnx.Param(init(rngs.params(), shape, param_dtype))
    self.bias = nnx.Param(jnp.zeros(shape[1:], param_dtype))

  def mask(self):
    """Return the mask (in, out)."""
    rows, columns = np.array(self.in_degrees)[:, None], np.array(self.out_degrees)[None]
    return (columns > rows) if self.strict else (columns >= rows)

  def masked_kernel(self):
    """Return K * mask (in, out)."""
    return jnp.where(self.mask(), self.kernel[...], 0)

  def __call__(self, x):
    return x @ self.masked_kernel() + self.bias[...][None]


class MaskedBlock(nnx.Module):
  """h + L1 relu(L0 relu(h) + V cond), or relu(L0 h), with masked linear layers."""

  def __init__(self, degrees, residual, cond_dim, param_dtype, rngs):
    options = {"strict": False, "param_dtype": param_dtype, "rngs": rngs}
    self.linear0 = MaskedLinear(degrees, degrees, **options)
    self.linear1 = MaskedLinear(degrees, degrees, **options) if residual else None
    linear = lambda: nnx.Linear(cond_dim, len(degrees), param_dtype=param_dtype, rngs=rngs)
    self.context = linear() if residual and cond_dim is not None else None

  def __call__(self, carry):
    h, cond = carry
    if self.linear1 is None:
      return jax.nn.relu(self.linear0(h)), cond
    step = self.linear0(jax.nn.relu(h))
    if self.context is not None:
      step = step + self.context(cond)
    return h + self.linear1(jax.nn.relu(step)), cond


class MADE(nnx.Module):
  """Gives every feature parameters that depend on the features before it only.

  x (B, D), cond (B, C) -> (B, D, P), with d out_f / d x_g = 0 for g >= f.

  Masked linear layers: inputs have the degrees 1 to D, unit j of a hidden layer has the degree
  j mod max(1, D - 1) + min(1, D - 1), and a unit sees those of its own degree or less, an output
  those of less. A condition enters after the first layer and in every residual block.

  Args:
    dim: D.
    num_outputs: P, parameters per feature.
    width: units of the hidden layers.
    depth: number of blocks, scanned.
    residual: blocks h + L1(relu(L0(relu(h)))) instead of relu(L0(h)).
    cond_dim: C, or None.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: if a size is below 1, or x or cond has another shape.

  Reference:
    Germain, Gregor, Murray, Larochelle, "MADE: masked autoencoder for distribution estimation",
    2015, arXiv 1502.03509.

  Example:
    >>> made = MADE(4, 2, width=16, depth=1, rngs=nnx.Rngs(0))
    >>> made(jnp.ones((3, 4))).shape
    (3, 4, 2)
  """

  def __init__(
    self,
    dim: int,
    num_outputs: int,
    *,
    width: int = 64,
    depth: int = 2,
    residual: bool = True,
    cond_dim: int | None = None,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    check_sizes(dim=dim, num_outputs=num_outputs, width=width, depth=depth)
    self.dim, self.num_outputs, self.residual, self.cond_dim = dim, num_outputs, residual, cond_dim
    inputs = np.arange(1, dim + 1)
    hidden = np.arange(width) % max(1, dim - 1) + min(1, dim - 1)
    options = {"param_dtype": param_dtype, "rngs": rngs}
    self.first = MaskedLinear(inputs, hidden, strict=False, **options)
    self.context = None if cond_dim is None else nnx.Linear(cond_dim, width, **options)
    self.blocks = Repeat(
      lambda rngs: MaskedBlock(hidden, residual, cond_dim, param_dtype, rngs), depth, rngs=rngs
    )
    self.last = MaskedLinear(
      hidden,
      np.repeat(inputs, num_outputs),
      strict=True,
      kernel_init=nnx.initializers.normal(1e-2),
      **options,
    )

  def __call__(
    self, x: Float[Array, "b d"], cond: Float[Array, "b c"] | None = None
  ) -> Float[Array, "b d p"]:
    """Return the parameters (b, d, p) of every feature."""
    if x.ndim != 2 or x.shape[1] != self.dim:
      raise ValueError(f"x must have shape (b, {self.dim}), got {x.shape}")
    h = self._hidden(self.first(x), self._condition(x, cond))
    return self.last(h).reshape(x.shape[0], self.dim, self.num_outputs)

  def fill(
    self,
    z: Float[Array, "b d"],
    cond: Float[Array, "b c"] | None,
    invert: Callable[[Array, Array], tuple[Array, Array]],
  ) -> tuple[Float[Array, "b d"], Float[Array, "b"]]:
    """Find x, feature by feature, of which `invert` gives x_i for (z_i, parameters of x_<i).

    A feature changes the first layer by one row, and needs its own columns of the last one: only
    the hidden layers are run D times.

    Args:
      z: what is inverted.
      cond: the condition, or None.
      invert: maps z_i (b,) and its parameters (b, p) to x_i and log|dx_i / dz_i|, (b,) each.

    Returns:
      x, and the sum of the logarithms, float32 or wider.
    """
    cond = self._condition(z, cond)
    rows, start = self.first.masked_kernel(), self.first.bias[...]
    split = lambda v: jnp.moveaxis(v.reshape(*v.shape[:-1], self.dim, self.num_outputs), -2, 0)
    columns, biases = split(self.last.masked_kernel()), split(self.last.bias[...])
    wide = jnp.promote_types(z.dtype, rows.dtype)
    first = jnp.broadcast_to(start.astype(wide)[None], (len(z), rows.shape[1]))

    def step(carry: Any, feature: Any) -> Any:
      first, log_det = carry
      z_i, row, column, bias = feature
      x_i, log = invert(z_i, self._hidden(first, cond) @ column + bias[None])
      return (first + x_i[:, None] * row[None], log_det + log), x_i

    log_det = jnp.zeros(z.shape[:1], jnp.promote_types(z.dtype, jnp.float32))
    (_, log_det), x = jax.lax.scan(step, (first, log_det), (z.T, rows, columns, biases))
    return x.T, log_det

  def _condition(self, x, cond):
    check_cond(cond, x.shape[0], self.cond_dim)
    return None if self.context is None else cond.astype(x.dtype)

  def _hidden(self, h: Any, cond: Any) -> Any:
    """Return what the last layer sees, from the first layer without its condition."""
    if self.context is not None:
      h = h + jax.nn.relu(self.context(cond))
    carry: Any = (h if self.residual else jax.nn.relu(h), cond)
    h, _ = self.blocks(carry)
    return h
