"""Back-propagation through a stack of bijectors that stores no activations.

Only the stack's output is kept. The backward pass walks the layers from last to first: it rebuilds
a layer's input by its inverse, takes the layer's vector-Jacobian product there, and moves on, so
the memory for activations does not grow with depth (RevNet; Gomez et al., "The Reversible Residual
Network: Backpropagation Without Storing Activations", 2017, arXiv 1707.04585).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from normjax.flows._coupling import Coupling


class Stack(NamedTuple):
  """A stack of identical layers, taken apart: `merge(params, rest)` gives one layer of a slice."""

  params: dict  # differentiable leaves, stacked on axis 0
  rest: dict  # everything else (permutations, counters), stacked on axis 0
  merge: Callable


def log_det_zeros(x):
  """Return the (b,) accumulator of log-determinants: float32 or wider."""
  return jnp.zeros(x.shape[:1], jnp.promote_types(x.dtype, jnp.float32))


def scan_forward(stack: Stack, x, cond, *, remat=False, method="forward"):
  """Apply the layers in order, by the method of that name; return `(z, log_det)`."""

  def body(carry, layer):
    x, total = carry
    y, log_det = getattr(stack.merge(*layer), method)(x, cond)
    return (y, total + log_det.astype(total.dtype)), None  # wider parameters make it wider

  # The two loops of a scan share nothing that could be merged: barriers would only cost time.
  body = jax.checkpoint(body, prevent_cse=False) if remat else body
  carry, _ = jax.lax.scan(body, (x, log_det_zeros(x)), (stack.params, stack.rest))
  return carry


def scan_inverse(stack: Stack, z, cond, *, method="inverse"):
  """Undo the layers, last to first, by the method of that name; return `(x, log_det)`."""

  def body(carry, layer):
    z, total = carry
    x, log_det = getattr(stack.merge(*layer), method)(z, cond)
    return (x, total + log_det.astype(total.dtype)), None

  carry, _ = jax.lax.scan(body, (z, log_det_zeros(z)), (stack.params, stack.rest), reverse=True)
  return carry


def reversible_forward(stack: Stack, x, cond):
  """Apply the layers in order like `scan_forward`, differentiated from the output alone."""
  cond, fixed, rebuild = _partition(cond)

  @jax.custom_vjp
  def run(params, rest, fixed, x, cond):
    return scan_forward(Stack(params, rest, stack.merge), x, rebuild(cond, fixed))

  def run_fwd(params, rest, fixed, x, cond):
    z, log_det = run(params, rest, fixed, x, cond)
    return (z, log_det), (params, rest, fixed, z, cond)

  def run_bwd(saved, cotangents):
    params, rest, fixed, z, cond = saved
    z_bar, log_det_bar = cotangents  # d loss / d log_det is the same for every layer

    def body(carry, layer):
      y, y_bar, cond_bar = carry
      params, rest = layer
      is_coupling = isinstance(stack.merge(params, rest), Coupling)
      layer_vjp = _coupling_vjp if is_coupling else _generic_vjp
      x, params_bar, x_bar, step_bar = layer_vjp(
        stack.merge, params, rest, lambda c: rebuild(c, fixed), y, cond, y_bar, log_det_bar
      )
      return (x, x_bar, jax.tree.map(jnp.add, cond_bar, step_bar)), params_bar

    start = (z, z_bar, jax.tree.map(jnp.zeros_like, cond))
    (_, x_bar, cond_bar), params_bar = jax.lax.scan(body, start, (params, rest), reverse=True)
    return params_bar, None, None, x_bar, cond_bar

  run.defvjp(run_fwd, run_bwd)
  return run(stack.params, stack.rest, fixed, x, cond)


def _generic_vjp(merge, params, rest, rebuild, y, cond, y_bar, log_det_bar):
  """Return a layer's `(input, params_bar, input_bar, cond_bar)` from its output `y`."""
  x, _ = merge(params, rest).inverse(y, rebuild(cond))
  forward = lambda params, x, cond: merge(params, rest).forward(x, rebuild(cond))
  (_, log_det), vjp = jax.vjp(forward, params, x, cond)
  return x, *vjp((y_bar, log_det_bar.astype(log_det.dtype)))


def _coupling_vjp(merge, params, rest, rebuild, y, cond, y_bar, log_det_bar):
  """Do the same with one network evaluation: y1 is x1, so the inverse and the VJP share theta."""
  layer = merge(params, rest)
  y1, y2 = layer.split(y)
  conditioner = lambda params, x1, cond: merge(params, rest).conditioner(x1, rebuild(cond))
  theta, conditioner_vjp = jax.vjp(conditioner, params, y1, cond)
  x2, _ = layer.untransform(y2, theta)
  (_, log_det), transform_vjp = jax.vjp(layer.transform, x2, theta)
  # `split` and `join` rearrange entries, so each is the other's transpose.
  y1_bar, y2_bar = layer.split(y_bar)
  x2_bar, theta_bar = transform_vjp((y2_bar, log_det_bar.astype(log_det.dtype)))
  params_bar, x1_bar, cond_bar = conditioner_vjp(theta_bar)
  return layer.join(y1, x2), params_bar, layer.join(y1_bar + x1_bar, x2_bar), cond_bar


def _partition(tree):
  """Take the leaves that have a tangent out of `tree`; labels and masks are its fixed leaves."""
  leaves, treedef = jax.tree.flatten(tree)
  floating = [jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves]

  def rebuild(inexact, fixed):
    inexact, fixed = iter(inexact), iter(fixed)
    return jax.tree.unflatten(treedef, [next(inexact if f else fixed) for f in floating])

  inexact = [leaf for f, leaf in zip(floating, leaves, strict=True) if f]
  fixed = [leaf for f, leaf in zip(floating, leaves, strict=True) if not f]
  return inexact, fixed, rebuild
