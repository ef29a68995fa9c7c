"""State that the backward pass writes, for layers whose statistics need gradients.

Online, Power and Unified Normalization update statistics while gradients flow back. Such a layer
takes that state as a differentiable argument, and its backward rule returns as the cotangent of
the argument the *increment*, new - old, which is not a gradient. Adding increments, rather than
overwriting with new values as flax's float8 layers do, leaves the state of a layer that was not
called in a step alone.

Increments never go to optax: neither clipping nor averaging over micro-batches has a meaning for
them. Accumulate gradients by a scan that carries the state from one micro-batch to the next. Call
a layer once in each loss: two calls add the increments of both. Never `jax.vmap` over examples.
Under loss scaling, gradient statistics are scaled with the loss.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.linen import fp8_ops
from jax.typing import ArrayLike
from jaxtyping import PyTree

__all__ = ["GradCarried", "apply", "overwrite", "split", "value_and_grad"]


@nnx.register_variable_name(fp8_ops.OVERWRITE_WITH_GRADIENT)
class GradCarried(nnx.Variable):
  """Holds state whose cotangent is its own increment.

  `nnx.split(model, nnx.Param, GradCarried, ...)` separates it from parameters. For Linen it lives
  in the collection whose "gradient" flax's `TrainState` takes as the new value.

  Args:
    value: the initial state, float32 or wider: integers have no cotangent and narrow floats lose
      the increments.
    **metadata: as of every `nnx.Variable`.

  Raises:
    ValueError: if the value is not float32 or wider.

  Example:
    >>> GradCarried(jnp.zeros(2)).get_value().shape
    (2,)
  """

  def __init__(self, value: ArrayLike, **metadata: Any):
    dtype = jnp.result_type(value)
    if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize < 4:
      raise ValueError(f"value must be float32 or wider to take increments, got {dtype}")
    super().__init__(value, **metadata)


def split(model: nnx.Module) -> tuple[Any, PyTree, PyTree, PyTree]:
  """Split a model into structure, parameters, carried state and everything else.

  Args:
    model: any NNX module.

  Returns:
    `(graphdef, params, carried, rest)`, the last three as nested dicts of arrays. `nnx.merge` puts
    them together again.

  Example:
    >>> model = nnx.Dict(norm=nnx.Dict(err=GradCarried(jnp.zeros(2))))
    >>> graphdef, params, carried, rest = split(model)
    >>> params, jax.tree.map(jnp.shape, carried), rest
    ({}, {'norm': {'err': (2,)}}, {})
  """
  graphdef, *states = nnx.split(model, nnx.Param, GradCarried, ...)
  params, carried, rest = map(nnx.to_pure_dict, states)
  return graphdef, params, carried, rest


def value_and_grad(loss_fn: Callable[..., tuple[Any, Any]]) -> Callable[..., Any]:
  """Differentiate a loss and collect what its backward pass wrote.

  Args:
    loss_fn: `loss_fn(params, carried, *args) -> (loss, aux)`. Statistics that the forward pass
      updates leave through aux.

  Returns:
    A function of the same arguments that returns `(loss, aux), gradients, increments`: gradients
    are for optax, increments for `apply`.

  Example:
    >>> @jax.custom_vjp
    ... def count(x, state):
    ...   return x
    >>> count.defvjp(lambda x, state: (x, None), lambda _, g: (g, jnp.ones(())))
    >>> loss_fn = lambda w, state, x: (count(w * x, state), None)
    >>> (loss, _), gradient, increment = value_and_grad(loss_fn)(2.0, jnp.zeros(()), 3.0)
    >>> print(loss, gradient, apply(jnp.zeros(()), increment))
    6.0 3.0 1.0
  """

  def run(params: PyTree, carried: PyTree, *args: Any) -> Any:
    differentiated = jax.value_and_grad(loss_fn, (0, 1), has_aux=True)
    value, (gradients, increments) = differentiated(params, carried, *args)
    return value, gradients, increments

  return run


def apply(state: PyTree, increments: PyTree) -> PyTree:
  """Add increments to the state that they belong to.

  state <- state + increment, leaf by leaf.

  Args:
    state: the carried state that went into the loss.
    increments: its "gradient".

  Returns:
    The new state.

  Example:
    >>> print(apply({"err": jnp.ones(2)}, {"err": jnp.full(2, 0.5)})["err"])
    [1.5 1.5]
  """
  return jax.tree.map(jnp.add, state, increments)


@jax.custom_vjp
def overwrite(state: PyTree) -> PyTree:
  """Turn the increment of a state into its new value, which is what flax's `TrainState` takes.

  The identity, whose cotangent is the state plus the increment that comes back.

  Args:
    state: state of a Linen variable in the collection `_overwrite_with_gradient`.

  Returns:
    The same state.

  Example:
    >>> bool(jax.grad(lambda s: jnp.sum(overwrite(s)))(jnp.ones(())) == 2.0)
    True
  """
  return state


overwrite.defvjp(lambda state: (state, state), lambda state, increment: (apply(state, increment),))
