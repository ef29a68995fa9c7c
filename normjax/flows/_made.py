"""The masked network of autoregressive flows (arXiv 1502.03509, blocks of arXiv 1906.04032)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from normjax.blocks import Repeat
from normjax.flows._checks import check_cond, check_sizes
from normjax.flows._dropout import make_dropout


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
  """h + L1 drop(relu(L0 relu(h) + V cond)), or drop(relu(L0 h)), with masked linear layers."""

  def __init__(self, degrees, residual, cond_dim, dropout_rate, param_dtype, rngs):
    options = {"strict": False, "param_dtype": param_dtype, "rngs": rngs}
    self.linear0 = MaskedLinear(degrees, degrees, **options)
    self.linear1 = MaskedLinear(degrees, degrees, **options) if residual else None
    linear = lambda: nnx.Linear(cond_dim, len(degrees), param_dtype=param_dtype, rngs=rngs)
    self.context = linear() if residual and cond_dim is not None else None
    self.dropout = make_dropout(dropout_rate, rngs)

  def __call__(self, carry):
    h, cond = carry
    drop = (lambda v: v) if self.dropout is None else self.dropout
    if self.linear1 is None:
      return drop(jax.nn.relu(self.linear0(h))), cond
    step = self.linear0(jax.nn.relu(h))
    if self.context is not None:
      step = step + self.context(cond)
    return h + self.linear1(drop(jax.nn.relu(step))), cond


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
    dropout_rate: chance of a block's units to be dropped, unless `deterministic`.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys, and of the stream `dropout`.

  Raises:
    ValueError: if a size is below 1, `dropout_rate` not in [0, 1), or x or cond has another shape.

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
    dropout_rate: float = 0.0,
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
      lambda rngs: MaskedBlock(hidden, residual, cond_dim, dropout_rate, param_dtype, rngs),
      depth,
      rngs=rngs,
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
    h, seen = self.first(x), self.condition(x, cond)
    if self.context is not None:
      h = h + jax.nn.relu(self.context(seen))
    carry: Any = (h if self.residual else jax.nn.relu(h), seen)
    h, _ = self.blocks(carry)
    return self.last(h).reshape(x.shape[0], self.dim, self.num_outputs)

  def condition(self, x: Float[Array, "b d"], cond: Any) -> Any:
    """Return what the layers see of the condition of `x`, in its dtype."""
    check_cond(cond, x.shape[0], self.cond_dim)
    return None if self.context is None else cond.astype(x.dtype)
