"""A model as plain dicts of arrays, the form in which it is trained and saved.

Plain dicts outlive refactors of NNX and are readable from Linen; `nnx.State` is neither.
"""

from typing import Any

from flax import nnx
from jaxtyping import PyTree


def to_state(model: nnx.Module) -> tuple[Any, PyTree, PyTree]:
  """Split a model into its structure, its parameters and everything else it keeps.

  Args:
    model: any NNX module.

  Returns:
    `(graphdef, params, rest)`: the static structure, a nested dict with the arrays of every
    `nnx.Param`, and one with those of every other Variable (running statistics, carried state,
    rng keys and counts, subclasses unknown to us).

  Example:
    >>> from flax import nnx
    >>> from normjax import checkpoint
    >>> graphdef, params, rest = checkpoint.to_state(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    >>> sorted(params), sorted(rest)
    (['bias', 'scale'], ['mean', 'var'])
  """
  graphdef, params, rest = nnx.split(model, nnx.Param, ...)
  return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(rest)


def from_state(graphdef: Any, params: PyTree, *rest: PyTree) -> Any:
  """Merge what `to_state` split into a new model; works under any jax transform.

  Args:
    graphdef: the static structure.
    params: nested dict of parameters.
    *rest: nested dicts that together hold all other Variables.

  Returns:
    The model. Its Variables are new: changing them changes no dict.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from normjax import checkpoint
    >>> parts = checkpoint.to_state(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    >>> checkpoint.from_state(*parts)(jnp.ones((2, 3))).shape
    (2, 3)
  """
  return nnx.merge(graphdef, params, *rest)
