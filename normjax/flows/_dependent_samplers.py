"""Two-dimensional toy data in blocks of dependent examples (https://arxiv.org/abs/2209.14933).

Normal latents are correlated within blocks and then warped one by one: each example alone has the
same density as without blocks. Block sizes have a heavy tail, so a few blocks hold most data.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from normjax._sizes import check_sizes
from normjax.flows._checks import check_sampling


def dependent_blocks(
  key: Array,
  n: int,
  *,
  tail: float = 0.5,
  max_size: int = 1000,
  low: float = 0.5,
  high: float = 0.99,
) -> tuple[Int[Array, "n"], Float[Array, "n"]]:
  """Draw how n examples fall into blocks, and how strongly each block is correlated.

  sizes = min(1 + round(u^(-1 / tail) - 1), max_size),  rho uniform on [low, high),
  u uniform on (0, 1]; the last block ends with the data

  Args:
    key: a PRNG key.
    n: how many examples, at least 1.
    tail: exponent of the Pareto (Lomax) law of the sizes, above 0; lower means larger blocks.
    max_size: of a block.
    low: least correlation, at least 0.
    high: largest correlation, below 1.

  Returns:
    `(block_id, rho)`: the block of each example (n,), ascending from 0; and the correlations of n
    blocks, of which only the first ones have members. Both go to `block_log_prob`.

  Raises:
    ValueError: if `n` is not an int of at least 1 or an option is out of range.

  Reference:
    Kirchler, Lippert, Kloft, "Training Normalizing Flows from Dependent Data", 2022,
    arXiv 2209.14933.

  Example:
    >>> import jax
    >>> from normjax import flows
    >>> block_id, rho = flows.dependent_blocks(jax.random.key(0), 100)
    >>> block_id.shape, rho.shape
    ((100,), (100,))
  """
  check_sampling(n)
  if not tail > 0 or max_size < 1 or not 0 <= low <= high < 1:
    raise ValueError(
      "tail must be above 0, max_size at least 1 and 0 <= low <= high < 1, got "
      f"{tail}, {max_size}, {low}, {high}"
    )
  size_key, rho_key = jax.random.split(key)
  u = 1 - jax.random.uniform(size_key, (n,))
  sizes = 1 + jnp.round(jnp.minimum(u ** (-1 / tail) - 1, max_size - 1)).astype(int)
  # Sums beyond n do not matter, and must not overflow.
  ends = jax.lax.associative_scan(lambda a, b: jnp.minimum(a + b, n), jnp.minimum(sizes, n))
  block_id = jnp.searchsorted(ends, jnp.arange(n), side="right")
  return block_id, jax.random.uniform(rho_key, (n,), minval=low, maxval=high)


def dependent_normals(
  key: Array, block_id: Int[Array, "n"], rho: Float[Array, "k"], *, dim: int = 2
) -> Float[Array, "n p"]:
  """Draw normal latents that are equicorrelated within blocks.

  z_i = sqrt(rho) c + sqrt(1 - rho) e_i,  c ~ N(0, I) of the block, e_i ~ N(0, I) of the example

  Args:
    key: a PRNG key.
    block_id: block of each example (n,), as `dependent_blocks` draws it.
    rho: correlation of each block (k,); all zeros make the examples independent.
    dim: p, independent columns.

  Returns:
    z (n, p): each row is N(0, I), rows of a block have the correlation rho.

  Raises:
    ValueError: if `block_id` or `rho` is not a vector, or `dim` below 1.

  Reference:
    Kirchler, Lippert, Kloft, "Training Normalizing Flows from Dependent Data", 2022,
    arXiv 2209.14933.

  Example:
    >>> import jax
    >>> from normjax import flows
    >>> key = jax.random.key(0)
    >>> flows.dependent_normals(key, *flows.dependent_blocks(key, 100)).shape
    (100, 2)
  """
  if block_id.ndim != 1 or rho.ndim != 1:
    raise ValueError(
      f"block_id (n,) and rho (k,) must be vectors, got {block_id.shape} and {rho.shape}"
    )
  check_sizes(dim=dim)
  common_key, own_key = jax.random.split(key)
  common = jax.random.normal(common_key, (rho.size, dim), rho.dtype)[block_id]
  own = jax.random.normal(own_key, (block_id.size, dim), rho.dtype)
  rho = rho[block_id].reshape(-1, 1)
  return jnp.sqrt(rho) * common + jnp.sqrt(1 - rho) * own


def warp_abs(z: Float[Array, "n 2"]) -> Float[Array, "n 2"]:
  """Bend normal points into a V: (z1, |z1| - 1 + exp(-1.5) z2).

  Args:
    z: points (n, 2).

  Returns:
    Points (n, 2) of entropy log(2 pi e) - 1.5 nats under standard normal z.

  Raises:
    ValueError: if `z` is not (n, 2).

  Reference:
    Kirchler, Lippert, Kloft, "Training Normalizing Flows from Dependent Data", 2022,
    arXiv 2209.14933.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> flows.warp_abs(jnp.array([[-2.0, 0.0]]))
    Array([[-2.,  1.]], dtype=float32)
  """
  z1, z2 = _columns(z)
  return jnp.stack([z1, jnp.abs(z1) - 1 + math.exp(-1.5) * z2], axis=-1)


def warp_crescent(z: Float[Array, "n 2"]) -> Float[Array, "n 2"]:
  """Bend normal points into a crescent: (z1, z1^2 / 2 - 1 + exp(-1) z2).

  Args:
    z: points (n, 2).

  Returns:
    Points (n, 2) of entropy log(2 pi e) - 1 nats under standard normal z.

  Raises:
    ValueError: if `z` is not (n, 2).

  Reference:
    Kirchler, Lippert, Kloft, "Training Normalizing Flows from Dependent Data", 2022,
    arXiv 2209.14933.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> flows.warp_crescent(jnp.array([[2.0, 0.0]]))
    Array([[2., 1.]], dtype=float32)
  """
  z1, z2 = _columns(z)
  return jnp.stack([z1, z1**2 / 2 - 1 + math.exp(-1) * z2], axis=-1)


def warp_crescent_cubed(z: Float[Array, "n 2"]) -> Float[Array, "n 2"]:
  """Shear normal points along a cubic: (0.2 z1^3 + z2, z1).

  Args:
    z: points (n, 2).

  Returns:
    Points (n, 2) of entropy log(2 pi e) nats under standard normal z.

  Raises:
    ValueError: if `z` is not (n, 2).

  Reference:
    Kirchler, Lippert, Kloft, "Training Normalizing Flows from Dependent Data", 2022,
    arXiv 2209.14933.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> flows.warp_crescent_cubed(jnp.array([[0.0, 3.0]]))
    Array([[3., 0.]], dtype=float32)
  """
  z1, z2 = _columns(z)
  return jnp.stack([0.2 * z1**3 + z2, z1], axis=-1)


def warp_sign(z: Float[Array, "n 2"]) -> Float[Array, "n 2"]:
  """Tear normal points apart: (z1, sign(z1) + z1 + exp(-1.5) z2).

  Args:
    z: points (n, 2).

  Returns:
    Points (n, 2) of entropy log(2 pi e) - 1.5 nats under standard normal z.

  Raises:
    ValueError: if `z` is not (n, 2).

  Reference:
    Kirchler, Lippert, Kloft, "Training Normalizing Flows from Dependent Data", 2022,
    arXiv 2209.14933.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> flows.warp_sign(jnp.array([[-2.0, 0.0]]))
    Array([[-2., -3.]], dtype=float32)
  """
  z1, z2 = _columns(z)
  return jnp.stack([z1, jnp.sign(z1) + z1 + math.exp(-1.5) * z2], axis=-1)


def warp_sine(z: Float[Array, "n 2"]) -> Float[Array, "n 2"]:
  """Bend normal points into a wave: (z1, sin(5 z1) + exp(-1) z2).

  Args:
    z: points (n, 2).

  Returns:
    Points (n, 2) of entropy log(2 pi e) - 1 nats under standard normal z.

  Raises:
    ValueError: if `z` is not (n, 2).

  Reference:
    Kirchler, Lippert, Kloft, "Training Normalizing Flows from Dependent Data", 2022,
    arXiv 2209.14933.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> flows.warp_sine(jnp.array([[0.0, 0.0]]))
    Array([[0., 0.]], dtype=float32)
  """
  z1, z2 = _columns(z)
  return jnp.stack([z1, jnp.sin(5 * z1) + math.exp(-1) * z2], axis=-1)


def _columns(z) -> tuple[Array, Array]:
  if z.ndim != 2 or z.shape[1] != 2:
    raise ValueError(f"z must have shape (n, 2), got {z.shape}")
  return z[:, 0], z[:, 1]
