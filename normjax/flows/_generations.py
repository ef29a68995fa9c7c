"""The generations of a graph: what can be known at once, after all that it depends on."""

import numpy as np
from jaxtyping import ArrayLike

from normjax.flows._checks import is_concrete


def generations(adjacency: ArrayLike, dim: int) -> tuple[int, ...]:
  """Return the generation of each feature: 0, or one more than the latest that it depends on.

  Args:
    adjacency: (d, d) booleans; entry (i, j) says that feature i may depend on feature j.
    dim: d.

  Returns:
    d numbers of at least 0.

  Raises:
    ValueError: if `adjacency` is not (d, d) booleans, is being traced, or has a cycle.
  """
  if not is_concrete(adjacency):
    raise ValueError("adjacency must be known, got a traced array")
  edges = np.asarray(adjacency)
  if edges.shape != (dim, dim) or edges.dtype != bool:
    raise ValueError(
      f"adjacency must be booleans of shape {(dim, dim)}, got {edges.dtype} {edges.shape}"
    )
  found, current = np.full(dim, -1), 0
  while np.any(left := found < 0):
    free = left & ~np.any(edges & left[None], axis=1)
    if not np.any(free):
      raise ValueError(
        "adjacency must have no cycle, nor an edge from a feature to itself, got one among the "
        f"features {np.flatnonzero(left).tolist()}"
      )
    found[free], current = current, current + 1
  return tuple(found.tolist())
