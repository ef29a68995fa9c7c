"""The inverse of a masked autoregressive network, in the time of about one pass.

Other libraries run the network, or its hidden layers, once for every feature. But a hidden unit of
degree d sees the first d features only, so it has its value for good once these are known: behind
feature d the units of degree d are computed, a (D - 1)-th of each layer. Known units are kept as
(units, b), those of a degree side by side, so that they are written in place.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int


def fill_features(
  made: Any,
  z: Float[Array, "b d"],
  cond: Float[Array, "b c"] | None,
  invert: Callable[[Array, Array], tuple[Array, Array]],
) -> tuple[Float[Array, "b d"], Float[Array, "b"]]:
  """Find x, feature by feature, of which `invert` gives x_i for (z_i, parameters of x_<i).

  Args:
    made: the `MADE`.
    z: what is inverted.
    cond: the condition, or None.
    invert: maps z_i (b,) and its parameters (b, p) to x_i and log|dx_i / dz_i|, (b,) each.

  Returns:
    x, and the sum of the logarithms, float32 or wider.
  """
  (batch, dim), cond = z.shape, made.condition(z, cond)
  biases = made.last.bias[...].reshape(dim, -1)
  raw = jnp.broadcast_to(biases[:1], (batch, biases.shape[1]))
  # The first feature's parameters are biases; those of an only one depend on all hidden units.
  first, log = invert(z[:, 0], raw if dim > 1 else made(jnp.zeros_like(z), cond)[:, 0])
  log_det = jnp.zeros(batch, jnp.promote_types(z.dtype, jnp.float32)) + log
  if dim == 1:
    return first[:, None], log_det

  places = _places(made.degrees, dim)
  units, depth = places.size, made.blocks.blocks.linear0.kernel.shape[0]
  weights = _first_weights(made, cond, places), _block_weights(made, cond, batch, places)
  columns = _rows(made.last.masked_kernel(), places).reshape(units, dim, -1)[:, 1:]
  columns = jnp.moveaxis(columns, 0, 2)  # (d - 1, p, units)
  wide = jnp.promote_types(z.dtype, columns.dtype)
  # What the layers of blocks see, and what comes out of the last block.
  known = jnp.zeros((depth, len(weights[1][0]), units, batch), wide)
  top = jnp.zeros((units, batch), wide)

  def step(carry: Any, feature: Any) -> Any:
    x, known, top, log_det = carry
    i, z_i, ((kernel, start), blocks), column, bias = feature
    row = i * places.shape[1]
    group = kernel @ x + start  # (g, b)
    group = group if made.residual else jax.nn.relu(group)
    group, known = _through_blocks(made.residual, group, known, blocks, row)
    top = jax.lax.dynamic_update_slice_in_dim(top, group, row, axis=0)
    # Folded into the product, the transpose would make it several times slower on CPU.
    raw = jax.lax.optimization_barrier(column @ top).T + bias[None]
    x_i, log = invert(z_i, raw)
    x = jax.lax.dynamic_update_slice_in_dim(x, x_i[None], i + 1, axis=0)
    return (x, known, top, log_det + log), None

  x = jnp.zeros((dim, batch), first.dtype).at[0].set(first)
  features = jnp.arange(dim - 1), z.T[1:], weights, columns, biases[1:]
  (x, _, _, log_det), _ = jax.lax.scan(step, (x, known, top, log_det), features)
  return x.T, log_det


def _through_blocks(residual: bool, group: Any, known: Any, blocks: Any, row: Any) -> Any:
  """Return what the blocks make of new units (g, b), and all units that are known by then."""

  def block(carry: Any, level: Any) -> Any:
    group, known = carry
    index, linears, keep = level

    def linear(known: Any, new: Any, place: int) -> Any:
      known = jax.lax.dynamic_update_slice(known, new[None, None], (index, place, row, 0))
      kernel, bias = linears[place]
      return known, kernel @ known[index, place] + bias

    known, step = linear(known, jax.nn.relu(group) if residual else group, 0)
    step = jax.nn.relu(step) if keep is None else keep * jax.nn.relu(step)
    if not residual:
      return (step, known), None
    known, step = linear(known, step, 1)
    return (group + step, known), None

  levels = (jnp.arange(known.shape[0]), *blocks)
  return jax.lax.scan(block, (group, known), levels)[0]


def _places(degrees: tuple[int, ...], dim: int) -> Int[np.ndarray, "degrees g"]:
  """Return the units of each degree 1 to d - 1, filled up by one that does not exist."""
  members = [[j for j, d in enumerate(degrees) if d == degree] for degree in range(1, dim)]
  size = max(map(len, members))
  return np.array([m + [len(degrees)] * (size - len(m)) for m in members])


def _rows(kernel: Float[Array, "... w o"], places: Any) -> Float[Array, "... units o"]:
  """Return rows by degree, zeros for those that do not exist."""
  return jnp.take(kernel, places.ravel(), axis=-2, mode="fill", fill_value=0)


def _groups(v: Float[Array, "... n w"], places: Any) -> Float[Array, "degrees ... g n"]:
  """Return what belongs to the units of each degree, zeros for those that do not exist."""
  groups = jnp.take(v, places, axis=-1, mode="fill", fill_value=0)  # (..., n, d - 1, g)
  return jnp.swapaxes(jnp.moveaxis(groups, -2, 0), -1, -2)


def _first_weights(made: Any, cond: Any, places: Any) -> tuple[Array, Array]:
  """Return kernel (d - 1, g, d) and bias (d - 1, g, 1 or b) of the first layer."""
  bias = made.first.bias[...][None]
  if made.context is not None:
    bias = bias + jax.nn.relu(made.context(cond))
  return _groups(made.first.masked_kernel(), places), _groups(bias, places)


def _block_weights(made: Any, cond: Any, batch: int, places: Any) -> tuple[list, Array | None]:
  """Return kernels (d - 1, depth, g, units), biases (d - 1, depth, g, 1 or b), and what is kept."""
  blocks = made.blocks.blocks
  biases = [blocks.linear0.bias[...][:, None]]  # (depth, 1 or b, w)
  if blocks.context is not None:
    added = jnp.einsum("bc,lcw->lbw", cond, blocks.context.kernel[...])
    biases[0] = biases[0] + added + blocks.context.bias[...][:, None]
  linears = [blocks.linear0]
  if blocks.linear1 is not None:
    linears.append(blocks.linear1)
    biases.append(blocks.linear1.bias[...][:, None])
  weights = [
    (_groups(_rows(linear.masked_kernel(), places), places), _groups(bias, places))
    for linear, bias in zip(linears, biases, strict=True)
  ]
  if blocks.dropout is None:
    return weights, None
  graphdef, state = nnx.split(blocks.dropout)
  ones = jnp.ones((batch, len(made.degrees)), weights[0][0].dtype)
  keep = jax.vmap(lambda state: nnx.merge(graphdef, state)(ones))(nnx.to_pure_dict(state))
  return weights, _groups(keep, places)
