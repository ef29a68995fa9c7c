"""Statistics of every layer's output and of the gradient that reaches it, without edits to a model.

The model is copied, and each layer of the copy gets an extra variable of zeros that its output is
tied to: an identity whose backward rule returns, as the cotangent of that variable, statistics of
the output and of its gradient. So the numbers come back from one ordinary `jax.grad`, under any
transformation; in particular layers that are stacked and scanned are told apart, as the cotangents
of stacked variables are stacked themselves.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from normjax.blocks import Repeat

# What is measured of an array (..., c), in this order.
STATISTICS = (
  "mean",
  "rms",
  "std",
  "max",
  "zeros",
  "channel_mean_square",
  "channel_variance",
)


class Profile(NamedTuple):
  """Holds statistics of layers, in the order in which they are called.

  Args:
    names: path of each layer; stacked ones end in their number, as in "blocks.2.norm".
    kinds: class of each layer.
    activations: name in `STATISTICS` -> (layers,) numbers of the layers' outputs.
    gradients: the same of the gradients of the loss with respect to these outputs.

  Example:
    >>> empty = Profile((), (), {}, {})
    >>> empty.names
    ()
  """

  names: tuple[str, ...]
  kinds: tuple[str, ...]
  activations: dict[str, np.ndarray]
  gradients: dict[str, np.ndarray]


class _Probe(nnx.Variable):
  """Zeros (2, statistics + 1) whose cotangent holds the sums over calls of what was measured."""


def _measure(x: Float[Array, "..."]) -> Float[Array, " statistics"]:
  x = jnp.atleast_1d(x).astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)
  rows = tuple(range(x.ndim - 1))
  variance = jnp.var(x, rows)
  return jnp.stack(
    [
      jnp.mean(x),
      jnp.sqrt(jnp.mean(x * x)),
      jnp.std(x),
      jnp.max(jnp.abs(x)),
      jnp.mean(x == 0, dtype=x.dtype),
      # The two axes of signal-propagation plots: Brock et al., 2021, arXiv 2101.08692, section 3.
      jnp.mean(jnp.mean(x, rows) ** 2),
      jnp.mean(variance),
    ]
  )


@jax.custom_vjp
def _tied(y: Float[Array, "..."], probe: Float[Array, "..."]) -> Float[Array, "..."]:
  return y


def _backward(saved: Any, g: Float[Array, "..."]) -> Any:
  y, probe = saved
  # The last column counts calls, so that a layer called twice is averaged.
  rows = [jnp.append(_measure(x), 1.0) for x in (y, g)]
  return g, jnp.stack(rows).astype(probe.dtype)


_tied.defvjp(lambda y, probe: (y, (y, probe)), _backward)


@functools.cache
def _probed(cls: type[nnx.Module]) -> type[nnx.Module]:
  def call(self: Any, *args: Any, **kwargs: Any) -> Any:
    y = cls.__call__(self, *args, **kwargs)
    if not isinstance(y, jax.Array) or not jnp.issubdtype(y.dtype, jnp.floating):
      return y
    if self.probe_path not in _CALLED[-1]:
      _CALLED[-1].append(self.probe_path)
    return _tied(y, self.probe[...])

  return type(cls.__name__, (cls,), {"__call__": call, "__doc__": cls.__doc__})


# Paths in the order of calls, while a profile is traced; a stack, as a layer may profile another.
_CALLED: list[list[str]] = []


def _attach(
  module: Any, path: str, stacks: tuple[tuple[str, int], ...], found: dict[str, Any]
) -> None:
  """Give every layer below `module` a probe; `stacks` are (path, length) of those around it."""
  for name, child in sorted(vars(module).items()):
    members = list(child.items()) if isinstance(child, (nnx.Dict, dict)) else []
    members = list(enumerate(child)) if isinstance(child, (nnx.List, list, tuple)) else members
    parts = [(f"{name}.{key}", value) for key, value in members] or [(name, child)]
    for part, value in parts:
      below = f"{path}.{part}".lstrip(".")
      inner = stacks
      if isinstance(module, Repeat) and name == "blocks":
        inner = (*stacks, (below, len(jax.tree.leaves(nnx.state(child))[0])))
      if isinstance(value, nnx.Module):
        _attach(value, below, inner, found)
  # The root has no output of its own: it is that of its last layer.
  if callable(module) and path and path not in found:
    found[path] = (type(module).__name__, stacks)
    layer: Any = module
    layer.__class__, layer.probe_path = _probed(type(module)), path
    lengths = [length for _, length in stacks]
    layer.probe = _Probe(jnp.zeros((*lengths, 2, len(STATISTICS) + 1)))


def profile(
  model: nnx.Module, *args: Any, loss: Callable[[Any], Array] | None = None, **kwargs: Any
) -> Profile:
  """Measure every layer's output and the gradient of a loss with respect to it.

  Of each array y (..., c) that a layer returns, and of dloss/dy: mean, root mean square, standard
  deviation, largest size, share of zeros, and the mean over channels of the squared channel mean
  and of the channel variance.

  Args:
    model: any NNX module; it stays as it is, running statistics included. Layers are its modules
      that return one floating array when they are called.
    *args: what the model is called with.
    loss: scalar function of the model's output. None: the sum of the output times one fixed draw
      of standard normal numbers, that is, a gradient of N(0, 1) at the output.
    **kwargs: keyword arguments of the call.

  Returns:
    The `Profile`.

  Raises:
    ValueError: if no layer of the model is called or no gradient reaches one.

  Reference:
    Brock, De and Smith, "Characterizing Signal Propagation to Close the Performance Gap in
    Unnormalized ResNets", 2021, arXiv 2101.08692.

  Example:
    >>> from normjax import norms
    >>> rngs = nnx.Rngs(0)
    >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), norms.LayerNorm(8, rngs=rngs))
    >>> found = profile(model, jnp.arange(8.0).reshape(2, 4))
    >>> found.names, round(float(found.activations["rms"][1]), 3)
    (('layers.0', 'layers.1'), 1.0)
  """
  copy = nnx.merge(*nnx.split(model))
  found: dict[str, Any] = {}
  _attach(copy, "", (), found)
  graphdef, probes, rest = nnx.split(copy, _Probe, ...)

  def scalar(probes: Any, rest: Any, args: Any, kwargs: Any) -> Any:
    y = nnx.merge(graphdef, probes, rest, copy=True)(*args, **kwargs)
    if loss is not None:
      return loss(y)
    leaves = [v for v in jax.tree.leaves(y) if jnp.issubdtype(v.dtype, jnp.floating)]
    draws = [jax.random.normal(jax.random.key(i), v.shape, v.dtype) for i, v in enumerate(leaves)]
    return sum(jnp.sum(v * w) for v, w in zip(leaves, draws, strict=True))

  _CALLED.append([])
  try:
    measured = jax.jit(jax.grad(scalar))(probes, rest, args, kwargs)
  finally:
    order = _CALLED.pop()
  values = {
    ".".join(map(str, path[:-1])): np.asarray(v.get_value())
    for path, v in nnx.to_flat_state(measured)
  }
  layers = []
  for path in order:
    kind, stacks = found[path]
    for index in np.ndindex(*(length for _, length in stacks)):
      sums = values[path][index]
      if sums[0, -1]:
        place = _place(path, stacks, index, order)
        layers.append((place, _numbered(path, stacks, index), kind, sums[:, :-1] / sums[:, -1:]))
  if not layers:
    raise ValueError("model must call layers (nnx modules) that a gradient of the loss reaches")
  _, names, kinds, rows = zip(*sorted(layers, key=lambda layer: layer[0]), strict=True)
  table = np.stack(rows)  # (layers, 2, statistics)
  outputs, gradients = (
    {name: table[:, side, i] for i, name in enumerate(STATISTICS)} for side in (0, 1)
  )
  return Profile(names, kinds, outputs, gradients)


def _place(
  path: str, stacks: tuple[tuple[str, int], ...], index: tuple[int, ...], order: list[str]
) -> tuple[int, ...]:
  """Returns a key that sorts layers by their calls: all of a stack's first block, then its next."""
  key = []
  for (stack, _), number in zip(stacks, index, strict=True):
    inside = [i for i, p in enumerate(order) if p == stack or p.startswith(f"{stack}.")]
    key += [inside[0], number]
  return (*key, order.index(path))


def _numbered(path: str, stacks: tuple[tuple[str, int], ...], index: tuple[int, ...]) -> str:
  """Returns a path with the number of each stack written after the stack's own path."""
  parts, done = [], 0
  for (stack, _), number in zip(stacks, index, strict=True):
    parts += [path[done : len(stack)].strip("."), str(number)]
    done = len(stack)
  return ".".join(part for part in (*parts, path[done:].strip(".")) if part)
