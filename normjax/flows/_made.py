"""The masked network of autoregressive flows (arXiv 1502.03509, blocks of arXiv 1906.04032)."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float

from normjax._sizes import check_sizes
from normjax.blocks import Repeat
from normjax.flows._checks import check_cond
from normjax.flows._dropout import make_dropout

SMALL_KERNEL = nnx.initializers.normal(1e-2)


class MaskedLinear(nnx.Module):
  """x (K * mask) + b, where entry (i, o) of the mask lets output o see input i."""

  def __init__(self, mask, *, param_dtype, rngs, kernel_init=None):
    # Bytes, which are static: under a scan every layer has the same mask.
    self.shape, self.packed = mask.shape, np.packbits(mask).tobytes()
    init = nnx.initializers.lecun_normal() if kernel_init is None else kernel_init
    self.kernel = nnx.Param(init(rngs.params(), mask.shape, param_dtype))
    self.bias = nnx.Param(jnp.zeros(mask.shape[1:], param_dtype))

  def mask(self):
    """Return the mask (in, out)."""
    bits = np.unpackbits(np.frombuffer(self.packed, np.uint8), count=math.prod(self.shape))
    return bits.reshape(self.shape).astype(bool)

  def masked_kernel(self):
    """Return K * mask (in, out)."""
    return jnp.where(self.mask(), self.kernel[...], 0)

  def __call__(self, x):
    return x @ self.masked_kernel() + self.bias[...][None]


class MaskedBlock(nnx.Module):
  """h + L1 drop(relu(L0 relu(h) + V cond)), or drop(relu(L0 h)), with masked linear layers."""

  def __init__(self, mask, residual, cond_dim, dropout_rate, param_dtype, rngs):
    options = {"param_dtype": param_dtype, "rngs": rngs}
    self.linear0 = MaskedLinear(mask, **options)
    self.linear1 = MaskedLinear(mask, **options) if residual else None
    linear = lambda: nnx.Linear(cond_dim, len(mask), param_dtype=param_dtype, rngs=rngs)
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

  x (B, D), cond (B, C) -> (B, D, P), with d out_f / d x_g = 0 for g >= f, or where a graph has no
  edge

  Masked linear layers: the hidden units take turns at the sets of features that the outputs may
  see, the empty set left out; a unit, or an output, sees the units whose sets are parts of its own.
  A condition enters after the first layer and in every residual block. The first feature sees no
  unit, and so no condition, unless there is a graph, where some units see the condition alone.

  Args:
    dim: D.
    num_outputs: P, parameters per feature.
    width: units of the hidden layers.
    depth: number of blocks, scanned.
    residual: blocks h + L1(relu(L0(relu(h)))) instead of relu(L0(h)).
    cond_dim: C, or None.
    adjacency: (D, D) booleans: entry (f, g) lets the outputs of f depend on feature g; on those
      before it by default. Each of the different rows should get a unit.
    dropout_rate: chance of a block's units to be dropped, unless `deterministic`.
    out_kernel_init: draws the kernel of the last layer, small numbers by default.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys, and of the stream `dropout`.

  Raises:
    ValueError: if a size is below 1, `dropout_rate` not in [0, 1), or `adjacency`, x or cond has
      another shape.

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
    adjacency: ArrayLike | None = None,
    dropout_rate: float = 0.0,
    out_kernel_init: Callable[..., Array] = SMALL_KERNEL,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    check_sizes(dim=dim, num_outputs=num_outputs, width=width, depth=depth, cond_dim=cond_dim)
    self.dim, self.num_outputs, self.residual, self.cond_dim = dim, num_outputs, residual, cond_dim
    graph = np.tri(dim, k=-1, dtype=bool) if adjacency is None else np.asarray(adjacency)
    if graph.shape != (dim, dim) or graph.dtype != bool:
      raise ValueError(
        f"adjacency must be booleans of shape {(dim, dim)}, got {graph.dtype} {graph.shape}"
      )
    hidden = _hidden_sets(graph, width, alone=adjacency is not None and cond_dim is not None)
    self.degrees = tuple(np.sum(hidden, axis=1).tolist())
    options = {"param_dtype": param_dtype, "rngs": rngs}
    self.first = MaskedLinear(hidden.T, **options)
    self.context = None if cond_dim is None else nnx.Linear(cond_dim, width, **options)
    within = _within(hidden, hidden)
    self.blocks = Repeat(
      lambda rngs: MaskedBlock(within, residual, cond_dim, dropout_rate, param_dtype, rngs),
      depth,
      rngs=rngs,
    )
    self.last = MaskedLinear(
      np.repeat(_within(hidden, graph), num_outputs, axis=1),
      kernel_init=out_kernel_init,
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


def _hidden_sets(graph, width, alone):
  """Return which features each hidden unit may see, (w, d): the different rows of `graph` in turns.

  The empty row is left out, as nothing depends on its units, unless they see a condition `alone`.
  """
  _, where = np.unique(graph, axis=0, return_index=True)
  rows = graph[np.sort(where)]
  if not alone and np.any(rows):
    rows = rows[np.any(rows, axis=1)]
  return rows[np.arange(width) % len(rows)]


def _within(inner, outer):
  """Return a mask (n, m): whether set i of `inner` (n, d) is part of set j of `outer` (m, d)."""
  return inner.astype(np.float32) @ (~outer.T).astype(np.float32) == 0
