"""Every module of normjax for Linen users: one adapter instead of a second implementation.

`normjax.linen.LayerNorm(64)` is `normjax.norms.LayerNorm(64, rngs=...)` as a Linen module, and
`to_linen` does the same for any NNX module. Parameters live in "params", running statistics in
"batch_stats", other variables in the collection of their type, under the names that they have in
NNX; so `params{scale, bias}` of a norm is interchangeable with that of `flax.linen`'s.

What differs from `flax.nnx.bridge.to_linen`: two mistakes that it passes over in silence are errors
here. A layer that updates its statistics while their collection is not mutable would lose the
update, and a layer that draws random numbers without a seed would draw the same ones in each step.
And as for Linen's own layers, "params" stands in for any stream that is not seeded.

State that the backward pass writes (`normjax.carried`) is in "_overwrite_with_gradient", where
flax's `TrainState` replaces values by their "gradients": its own steps train these layers.
"""

import functools
import importlib
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen, nnx
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict, unflatten_dict

from normjax.carried import GradCarried, overwrite

__all__ = ["to_linen"]

_PACKAGES = ("normjax.norms", "normjax.flows")


class FromNNX(linen.Module):
  """Runs an NNX module on the variables of a Linen scope.

  Attributes:
    nnx_class: class of the NNX module.
    args: positional arguments of its constructor.
    kwargs: keyword arguments of its constructor, without `rngs`.
  """

  nnx_class: Callable[..., nnx.Module]
  args: tuple[Any, ...] = ()
  kwargs: Mapping[str, Any] = FrozenDict()

  @linen.compact
  def __call__(self, *args: Any, nnx_method: str = "__call__", **kwargs: Any) -> Any:
    """Call a method of the NNX module and keep what it writes to mutable collections."""
    module = self._construct()
    if self.is_initializing():
      self._store(module)
      return getattr(module, nnx_method)(*args, **kwargs)
    self._load(module)
    before = {path: v.get_value() for path, v in _variables(module)}
    out = getattr(module, nnx_method)(*args, **kwargs)
    self._check([v for path, v in _variables(module) if v.get_value() is not before[path]])
    self._store(module)
    return out

  def __getattr__(self, name: str) -> Any:
    """Offer the other public methods of the NNX module."""
    if name.startswith("_") or not callable(getattr(self.nnx_class, name, None)):
      return super().__getattr__(name)
    call = lambda self, *args, **kwargs: self(*args, nnx_method=name, **kwargs)
    return types.MethodType(call, self)

  def _construct(self) -> nnx.Module:
    init = self.nnx_class.__init__ if isinstance(self.nnx_class, type) else self.nnx_class
    if "rngs" not in inspect.signature(init).parameters:
      return self.nnx_class(*self.args, **self.kwargs)
    keys = {name: self.make_rng(name) for name in self._streams()}
    if "default" not in keys:
      # The initializers need a key even where their results are replaced by stored variables.
      keys["default"] = self.make_rng("params") if "params" in keys else jax.random.key(0)
    return self.nnx_class(*self.args, rngs=nnx.Rngs(**keys), **self.kwargs)

  def _streams(self) -> set[str]:
    return set(self.scope.rngs) if self.scope is not None else set()

  def _load(self, module: nnx.Module) -> None:
    stored = flatten_dict(dict(self.variables))
    values = {}
    for path, variable in _variables(module):
      key = _key(path, variable)
      if key in stored:
        value = stored.pop(key)
        values[path] = overwrite(value) if isinstance(variable, GradCarried) else value
      elif not isinstance(variable, nnx.RngState) and not self.is_mutable_collection(key[0]):
        raise ValueError(f"variables must hold {'/'.join(key)} of {self.nnx_class.__name__}")
    if stored:
      unknown = ", ".join("/".join(key) for key in stored)
      raise ValueError(f"variables hold {unknown}, unknown to {self.nnx_class.__name__}")
    nnx.update(module, unflatten_dict(values))

  def _store(self, module: nnx.Module) -> None:
    values = {
      _key(path, variable): variable.get_value()
      for path, variable in _variables(module)
      if not isinstance(variable, nnx.RngState)
    }
    for collection, tree in unflatten_dict(values).items():
      if self.is_mutable_collection(collection):
        for name, value in tree.items():
          self.put_variable(collection, name, value)

  def _check(self, written: list[nnx.Variable]) -> None:
    who = self.nnx_class.__name__
    for variable in written:
      if isinstance(variable, nnx.RngState):
        if variable.tag == "default" and not {"default", "params"} & self._streams():
          raise ValueError(
            f"{who} draws random numbers: seed a stream, as in apply(..., rngs={{'default': key}}),"
            " or make it deterministic"
          )
      elif not self.is_mutable_collection(_collection(variable)):
        raise ValueError(
          f"{who} updates its statistics: apply it with mutable=[{_collection(variable)!r}], or "
          "with use_running_average=True"
        )


def _variables(module: nnx.Module) -> list[tuple[tuple[Any, ...], nnx.Variable]]:
  return list(nnx.to_flat_state(nnx.state(module)))


def _collection(variable: nnx.Variable) -> str:
  return nnx.variable_name_from_type(type(variable), allow_register=True)


def _key(path: tuple[Any, ...], variable: nnx.Variable) -> tuple[str, ...]:
  return _collection(variable), *map(str, path)


def to_linen(
  nnx_class: Callable[..., nnx.Module], *args: Any, name: str | None = None, **kwargs: Any
) -> FromNNX:
  """Build a Linen module from the class of an NNX module.

  Apply it with `mutable=["batch_stats"]` where its statistics are updated, and with
  `rngs={"default": key}` (or the stream that it names) where it draws random numbers.

  Args:
    nnx_class: class of the NNX module.
    *args: positional arguments of its constructor.
    name: name of the Linen module.
    **kwargs: keyword arguments of its constructor, without `rngs`.

  Returns:
    The Linen module. Called by `apply`, it raises ValueError if statistics are updated in an
    immutable collection, if random numbers are drawn and no stream is seeded, and if the variables
    are not those of the module.

  Example:
    >>> from normjax import norms
    >>> layer = to_linen(norms.RMSNorm, 4, epsilon=1e-5)
    >>> variables = layer.init(jax.random.key(0), jax.numpy.ones((2, 4)))
    >>> jax.tree.map(jax.numpy.shape, variables)
    {'params': {'scale': (4,)}}
  """
  return FromNNX(nnx_class, args, FrozenDict(kwargs), name=name)


def __getattr__(name: str) -> Callable[..., FromNNX]:
  for package in () if name.startswith("_") else _PACKAGES:
    found = getattr(importlib.import_module(package), name, None)
    if isinstance(found, type) and issubclass(found, nnx.Module):
      return functools.partial(to_linen, found)
  raise AttributeError(f"normjax.linen has no module {name!r}: it offers those of {_PACKAGES}")
