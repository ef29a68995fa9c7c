"""Running statistics as exact averages ("Rethinking 'Batch' in BatchNorm", arXiv 2105.07576).

A running average forgets old batches and lags behind the weights. What is done here instead is the
"precise" estimate of the paper: with fixed weights, each batch is normalized by its own statistics,
as in training, and those of all batches are put together to mean and variance of the population.

What differs from a plain average over batches: batches count by their positions, so that the last
may be smaller and masks may differ, and the variance is that of all positions around their common
mean, and not the mean of the batches' variances.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from normjax.norms._arguments import as_position_mask, statistics_dtype
from normjax.norms._batch_norm import BatchNorm
from normjax.norms._batch_renorm import BatchRenorm
from normjax.norms._statistics import Reduction, moments


def recalibrate(
  model: nnx.Module,
  batches: Iterable[Any],
  forward: Callable[[Any, Any], Any] = lambda model, batch: model(batch),
) -> dict[str, int]:
  """Replace the running statistics of a model's BatchNorm layers by exact ones over given batches.

  mean = sum(x) / n and var = sum((x - mean)^2) / n, each (c,), over the n valid positions that a
  layer meets in all batches, where each batch is normalized by its own statistics as in training.
  Nothing else of the model changes. Each batch is one call of a jitted step, compiled once per
  shape of a batch; a sharded batch has global statistics.

  Args:
    model: holds `BatchNorm` or `BatchRenorm` layers, or subclasses, at any depth. Their own mode
      does not matter; dropout and the like run in the mode that they are in.
    batches: what `forward` takes, one batch at a time, trees of arrays.
    forward: `forward(model, batch)` runs a copy of the model; its result is not used. A layer that
      it calls with `use_running_average=True` stays as it is. A layer's masks are respected.

  Returns:
    The positions that each layer met, by the path of the layer. A layer that met none, in a branch
    that did not run say, keeps its statistics.

  Raises:
    ValueError: if the model has no such layer, or no layer met a valid position.

  Reference:
    Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021, arXiv 2105.07576.

  Example:
    >>> norm = BatchNorm(1, rngs=nnx.Rngs(0))
    >>> recalibrate(norm, [jnp.array([[0.0], [0.0]]), jnp.array([[3.0]])])
    {'': 3}
    >>> [round(float(v[0]), 3) for v in (norm.mean, norm.var)]
    [1.0, 2.0]
  """
  copy = nnx.merge(*nnx.split(model), copy=True)
  originals = _layers(model)
  if not originals:
    raise ValueError(f"model must hold BatchNorm or BatchRenorm layers, got {type(model).__name__}")
  for layer in _layers(copy).values():
    _observe(layer)
  graphdef, seen, random, rest = nnx.split(copy, _Seen, nnx.RngState, ...)

  @jax.jit
  def step(seen: Any, random: Any, rest: Any, batch: Any) -> Any:
    merged = nnx.merge(graphdef, seen, random, rest, copy=True)
    forward(merged, batch)
    _, seen, random, _ = nnx.split(merged, _Seen, nnx.RngState, ...)
    return seen, random

  for batch in batches:
    seen, random = step(seen, random, rest, batch)
  nnx.update(copy, seen)
  counts = {}
  for path, layer in _layers(copy).items():
    count = layer.seen_count[...]
    counts["/".join(map(str, path))] = int(jnp.sum(count))
    _adopt(originals[path], layer, count[..., None] > 0)
  if not any(counts.values()):
    raise ValueError(f"batches must bring valid positions to a layer of {sorted(counts)}, got none")
  return counts


class _Seen(nnx.Variable):
  """What a layer has met so far: count, mean and variance."""


@functools.cache
def _observing(cls: type) -> type:
  """Returns a subclass whose calls in training add to what the layer has met."""

  def call(
    self: Any,
    x: Float[Array, "*batch c"],
    use_running_average: bool | None = None,
    *,
    mask: Bool[Array, "..."] | None = None,
    **affine: Any,
  ) -> Float[Array, "*batch c"]:
    if use_running_average:
      return cls.__call__(self, x, True, mask=mask, **affine)
    _meet(self, x, as_position_mask(mask, x.shape))
    # The running values stay, as an empty batch is normalized by them.
    kept = nnx.to_pure_dict(nnx.state(self, nnx.BatchStat))
    y = cls.__call__(self, x, False, mask=mask, **affine)
    nnx.update(self, kept)
    return y

  # Without slots of its own it has the layout of `cls`, so that an object can change to it.
  return type(f"Observing{cls.__name__}", (cls,), {"__slots__": (), "__call__": call})


def _meet(layer: Any, x: Float[Array, "*batch c"], mask: Bool[Array, "..."] | None) -> None:
  """Put the moments of a batch together with those of all before (Chan et al. 1979)."""
  x = jax.lax.stop_gradient(x).astype(statistics_dtype(x))
  reduction = Reduction(tuple(range(x.ndim - 1)), x.shape, mask)
  _, mean, var = (v.reshape(-1) for v in moments(x, reduction))
  old, n = layer.seen_count[...], reduction.count(jnp.dtype(jnp.float32)).reshape(-1)[0]
  share = n / jnp.maximum(old + n, 1)
  shift = mean.astype(layer.seen_mean.dtype) - layer.seen_mean[...]
  spread = (1 - share) * layer.seen_var[...] + share * var.astype(layer.seen_var.dtype)
  layer.seen_count[...] = old + n
  layer.seen_mean[...] += share * shift
  layer.seen_var[...] = spread + share * (1 - share) * shift * shift


def _layers(model: nnx.Module) -> dict[tuple[Any, ...], Any]:
  found = nnx.iter_modules(model)
  return {path: m for path, m in found if isinstance(m, BatchNorm | BatchRenorm)}


def _observe(layer: Any) -> None:
  """Make a copy of a layer observe what it meets; a stack of layers does so one by one."""
  mean = layer.mean[...]
  layer.seen_count = _Seen(jnp.zeros(mean.shape[:-1], jnp.float32))
  layer.seen_mean = _Seen(jnp.zeros_like(mean))
  layer.seen_var = _Seen(jnp.zeros_like(mean))
  layer.axis_name, layer.allow_single = None, True
  if isinstance(layer, BatchRenorm):
    layer.r_max, layer.d_max = 1.0, 0.0
  # Past NNX, which would take the class for an attribute of the layer.
  object.__setattr__(layer, "__class__", _observing(type(layer)))


def _adopt(layer: Any, observer: Any, met: Bool[Array, "..."]) -> None:
  """Give what its observer has met to a layer, or to those of a stack that have met something."""
  kind = getattr(layer, "average", "var")  # what a BatchRenorm keeps
  var = observer.seen_var[...]
  spread = getattr(layer, kind)
  layer.mean[...] = jnp.where(met, observer.seen_mean[...], layer.mean[...])
  new = jnp.sqrt(var + layer.epsilon) if kind == "sigma" else var
  spread[...] = jnp.where(met, new, spread[...])
