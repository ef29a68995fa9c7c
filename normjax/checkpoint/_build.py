"""Models from JSON: the one place where a name in a file becomes an object.

Only what `normjax` itself offers in public is ever constructed, so a record from a stranger can at
worst build a large model; nothing in it is imported, evaluated or unpickled.
"""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx

import normjax

_MODELS = "normjax.models"


def _constructors(module_name: str) -> dict[str, Callable]:
  """Return what may be built from one public module: its classes, and functions of models."""
  module = importlib.import_module(module_name)
  found = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
  return {
    f"{module_name}.{name}": value
    for name, value in found.items()
    if getattr(value, "__module__", "").startswith("normjax.")
    and (
      (inspect.isclass(value) and issubclass(value, nnx.Module) and not inspect.isabstract(value))
      or (module_name == _MODELS and inspect.isfunction(value))
    )
  }


def _resolve(path: Any) -> Callable:
  public = [m.name for m in pkgutil.iter_modules(normjax.__path__, "normjax.")]
  public = [name for name in public if not name.rpartition(".")[2].startswith("_")]
  module_name = path.rpartition(".")[0] if isinstance(path, str) else ""
  known = _constructors(module_name) if module_name in public else {}
  if module_name and path in known:
    return known[path]
  every = {name for module in public for name in _constructors(module)}
  near = difflib.get_close_matches(str(path), sorted(every), n=1, cutoff=0.5)
  # A right name in a wrong module is closer to what was meant than the spelling of the whole says.
  same_name = [name for name in sorted(every) if name.split(".")[-1] == str(path).split(".")[-1]]
  hint = (same_name or near or ["a name in __all__ of normjax.flows, normjax.norms, ..."])[0]
  raise ValueError(
    f"class must name a public nnx.Module of normjax (or a function of {_MODELS}), got {path!r}; "
    f"nearest: {hint}"
  )


def _value(name: str, value: Any, rngs: nnx.Rngs) -> Any:
  """Turn one JSON value into an argument: nested specs, tuples for lists, dtypes for names."""
  if isinstance(value, dict):
    if "class" in value and set(value) <= {"class", "kwargs"}:
      return build(value, rngs)
    return {key: _value(key, item, rngs) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return tuple(_value(name, item, rngs) for item in value)
  if isinstance(value, str) and (name == "dtype" or name.endswith("_dtype")):
    return jnp.dtype(value)
  return value


def build(spec: dict[str, Any], rngs: nnx.Rngs) -> Any:
  """Construct a model of normjax from its JSON spec.

  `{"class": "normjax.package.Name", "kwargs": {...}}`; every dict inside `kwargs` with just these
  keys is built first. Lists become tuples and the string in an argument called `dtype` or
  `*_dtype` a dtype, because JSON has neither.

  Args:
    spec: the spec. `kwargs` may be left out.
    rngs: given to every constructor that has an argument `rngs`. Use one with a default stream,
      `nnx.Rngs(seed)`: the set of streams is part of some models' state, and `load` uses that form.

  Returns:
    The model (an `nnx.Module`).

  Raises:
    ValueError: if a class is not a public `nnx.Module` of a public package of normjax (or a public
      function of `normjax.models`), or if its arguments do not fit.

  Example:
    >>> from flax import nnx
    >>> from normjax import checkpoint
    >>> spec = {"class": "normjax.flows.StandardNormal", "kwargs": {"shape": [2, 2]}}
    >>> checkpoint.build(spec, nnx.Rngs(0)).shape
    (2, 2)
  """
  if not isinstance(spec, dict) or "class" not in spec or not set(spec) <= {"class", "kwargs"}:
    raise ValueError(f'a model spec is {{"class": name, "kwargs": {{...}}}}, got {spec!r}')
  kwargs = spec.get("kwargs", {})
  if not isinstance(kwargs, dict):
    raise ValueError(f"kwargs of {spec['class']} must be a dict, got {kwargs!r}")
  make = _resolve(spec["class"])
  # The signature of an nnx class is that of its metaclass: (*args, **kwargs).
  constructor = partial(make.__init__, None) if inspect.isclass(make) else make
  signature = inspect.signature(constructor)
  arguments = {name: _value(name, value, rngs) for name, value in kwargs.items()}
  if "rngs" in signature.parameters:
    arguments["rngs"] = rngs
  try:
    signature.bind(**arguments)
  except TypeError as error:
    raise ValueError(f"{spec['class']}{signature}: {error}") from error
  return make(**arguments)
