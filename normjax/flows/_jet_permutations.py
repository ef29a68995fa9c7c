"""Which entries each of Jet's couplings conditions on, as integer gathers.

All kinds of coupling are one operation here: permute the features inside each token, cut every
token in two half-tokens, permute the 2n half-tokens; the first n condition, the last n are
transformed. The authors store dense permutation matrices among the parameters instead; gathers are
exact in every precision, and integers can't be trained by mistake.
"""

import difflib
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

KINDS = ("channels", "spatial")
CHANNEL_PROJECTIONS = ("random",)
SPATIAL_PROJECTIONS = (
  "checkerboard", "checkerboard-inv", "hstripes", "hstripes-inv", "vstripes", "vstripes-inv",
)  # fmt: skip


def coupling_permutations(
  key: Array,
  grid: tuple[int, int],
  features: int,
  depth: int,
  kinds: Sequence[str],
  channel_projections: Sequence[str],
  spatial_projections: Sequence[str],
) -> tuple[Int[Array, "depth c"], Int[Array, "depth 2n"]]:
  """Return the feature and the half-token permutation of every coupling.

  Args:
    key: random key of the channel permutations.
    grid: (rows, columns) of tokens; n is their product.
    features: c, the features of a token.
    depth: number of couplings.
    kinds: "channels" or "spatial", drawn cyclically.
    channel_projections: drawn cyclically, one step per "channels" coupling.
    spatial_projections: drawn cyclically, one step per "spatial" coupling.

  Returns:
    `(feature_order, half_order)`, (depth, c) and (depth, 2 n): entry j of the permuted axis is
    entry `order[j]` of the original.

  Raises:
    ValueError: for an unknown or missing name, an odd number of features, or a pattern that the
      grid can't hold.
  """
  _check_names("kinds", kinds, KINDS)
  _check_names("channel_projections", channel_projections, CHANNEL_PROJECTIONS)
  _check_names("spatial_projections", spatial_projections, SPATIAL_PROJECTIONS)
  if features % 2:
    raise ValueError(
      f"a token must have an even number of features (patch_size^2 * channels), got {features}"
    )
  num_tokens = grid[0] * grid[1]
  # (n, 2) numbers of the half-tokens; all first halves condition in a channel coupling.
  halves = np.arange(2 * num_tokens).reshape(num_tokens, 2)
  spatial = itertools.cycle(spatial_projections)
  drawn = list(itertools.islice(itertools.cycle(kinds), depth))
  half_order = np.stack(
    [
      halves.T.ravel() if kind == "channels" else halves[token_order(next(spatial), grid)].ravel()
      for kind in drawn
    ]
  )
  feature_order = jax.vmap(lambda key: jax.random.permutation(key, features))(
    jax.random.split(key, depth)
  )
  is_channels = jnp.asarray([kind == "channels" for kind in drawn])
  feature_order = jnp.where(is_channels[:, None], feature_order, jnp.arange(features)[None])
  return feature_order.astype(jnp.int32), jnp.asarray(half_order, jnp.int32)


def token_order(pattern: str, grid: tuple[int, int]) -> np.ndarray:
  """Return the (n,) tokens of a spatial pattern, the conditioning half first.

  Args:
    pattern: one of `SPATIAL_PROJECTIONS`; "-inv" swaps the two halves.
    grid: (rows, columns) of tokens, row-major.

  Returns:
    Token numbers, each half in row-major order.

  Raises:
    ValueError: if the pattern would not be what its name says on this grid.
  """
  rows, columns = grid
  name = pattern.removesuffix("-inv")
  # Parity of the token index alternates along columns only if there is an even number of them.
  if name in ("checkerboard", "vstripes") and columns % 2:
    raise ValueError(f"{pattern!r} needs an even number of token columns, got a {grid} grid")
  if name == "hstripes" and rows % 2:
    raise ValueError(f"{pattern!r} needs an even number of token rows, got a {grid} grid")
  row, column = np.divmod(np.arange(rows * columns), columns)
  second = {"checkerboard": row + column, "vstripes": column, "hstripes": row}[name] % 2
  second = 1 - second if pattern.endswith("-inv") else second
  return np.argsort(second, kind="stable")


def _check_names(argument, names, known):
  if isinstance(names, str) or not names:
    raise ValueError(f"{argument} must be a non-empty sequence of names, got {names!r}")
  for name in names:
    if name not in known:
      nearest = difflib.get_close_matches(str(name), known, 1)
      hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
      raise ValueError(f"{argument} must be among {known}, got {name!r}{hint}")
