"""Rows of the last axis, standardized and differentiated in as few passes as memory allows.

y = (x - mean) * rstd * scale + bias keeps x, the mean (in two parts) and rstd for its derivatives,
and nothing of the size of x. On CPU, XLA would fuse what is written here into loops that recompute
or store such arrays after all; so there every pass is a function of its own that it can't inline.
On other platforms it is free to fuse.

The tangent map is a primitive, because it needs what no custom rule of JAX offers together: forward
mode, a transpose of our own for reverse mode, and derivatives of any order, which those of the
plain formula are.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from normjax.norms._arguments import statistics_dtype
from normjax.norms._statistics import Reduction, shifted_moments


def are_plain_rows(
  x: Float[Array, "..."], axes: tuple[int, ...], scale: ArrayLike | None, bias: ArrayLike | None
) -> bool:
  """Returns whether the last axis is normalized, with a gain and a shift per feature or none."""
  own = all(v is None or jnp.shape(v) == x.shape[-1:] for v in (scale, bias))
  return axes == (x.ndim - 1,) and own


def standardize_rows(
  x: Float[Array, "*rows c"],
  scale: ArrayLike | None,
  bias: ArrayLike | None,
  *,
  epsilon: float,
  center: bool,
  dtype: DTypeLike,
) -> Float[Array, "*rows c"]:
  """Returns `(x - mean) / sqrt(mean((x - mean)^2) + epsilon) * scale + bias` over the last axis.

  Without `center` the mean is taken as 0. Statistics are float32 or wider.
  """
  wide = statistics_dtype(x)
  row = (*(1,) * (x.ndim - 1), -1)
  affine = [jnp.reshape(v, row) for v in (scale, bias) if v is not None]
  flags = (center, scale is not None, bias is not None)

  def statistics(x: Any) -> Any:
    x = x.astype(wide)
    reduction = Reduction((x.ndim - 1,), x.shape)
    if center:
      shift, mean, variance = shifted_moments(x, reduction)
      return shift, mean, jax.lax.rsqrt(variance + epsilon)
    return (jax.lax.rsqrt(reduction.mean(x * x) + epsilon),)

  def output(x: Any, *rest: Any) -> Any:
    kept, (a, b) = rest[: 1 + 2 * center], _optional(rest[1 + 2 * center :], flags[1:])
    y = _standardized(x, kept)
    y = y if a is None else y * a.astype(wide)
    y = y if b is None else y + b.astype(wide)
    return y.astype(dtype)

  @jax.custom_jvp
  def run(x: Any, *affine: Any) -> Any:
    return _pass(output)(x, *_pass(statistics)(x), *affine)

  @run.defjvp
  def _jvp(primals: Any, tangents: Any) -> Any:
    x, *affine = primals
    kept = _pass(statistics)(x)
    y = _pass(output)(x, *kept, *affine)
    gain = affine[:1] if scale is not None else []
    operands = _alike(x, *kept, *gain, *tangents)
    return y, _tangent_p.bind(*operands, flags=flags, dtype=jnp.dtype(dtype))

  return run(x, *affine)


def _pass(f: Callable[..., Any]) -> Callable[..., Any]:
  """Returns `f` as one pass over memory on CPU. Elsewhere it is itself: the values are the same."""
  if jax.default_backend() != "cpu":
    return f
  alone = jax.jit(f, inline=False)

  def call(*args: Any) -> Any:
    with set_xla_metadata(inlineable="false"):
      return alone(*args)

  return call


def _optional(values: Any, present: tuple[bool, ...]) -> list[Any]:
  left = iter(values)
  return [next(left) if there else None for there in present]


def _alike(*arrays: Any) -> list[Any]:
  """Returns arrays that vary over the same mesh axes, as operands of one primitive must."""
  varying = [jax.typeof(a).manual_axis_type.varying for a in arrays]
  missing = [tuple(sorted(frozenset().union(*varying) - own)) for own in varying]
  return [
    jax.lax.pcast(a, m, to="varying") if m else a for a, m in zip(arrays, missing, strict=True)
  ]


def _standardized(x: Any, kept: Any) -> Any:
  *means, rstd = kept
  x = x.astype(rstd.dtype)
  for mean in means:  # the shift and then the mean of what it left, never their rounded sum
    x = x - mean
  return x * rstd


def _split(operands: Any, flags: tuple[bool, bool, bool]) -> Any:
  """Returns x, its statistics, the gain or None, and the tangents of x, gain and bias or None."""
  center, gain, bias = flags
  x, *rest = operands
  kept, rest = rest[: 1 + 2 * center], rest[1 + 2 * center :]
  a, dx, da, db = _optional(rest, (gain, True, gain, bias))
  return x, kept, a, (dx, da, db)


def _tangent(*operands: Any, flags: tuple[bool, bool, bool], dtype: Any) -> Any:
  """The tangent of y, linear in the tangents of x, gain and bias."""
  x, kept, a, (dx, da, db) = _split(operands, flags)
  wide, mean = kept[-1].dtype, lambda v: jnp.mean(v, -1, keepdims=True)
  y, dx = _standardized(x, kept), dx.astype(wide)
  t = kept[-1] * (dx - (mean(dx) if flags[0] else 0) - y * mean(dx * y))
  t = t if a is None else t * a.astype(wide) + y * da.astype(wide)
  t = t if db is None else t + db.astype(wide)
  return t.astype(dtype)


def _transpose(ct: Any, *operands: Any, flags: tuple[bool, bool, bool], dtype: Any) -> Any:
  del dtype
  x, kept, a, tangents = _split(operands, flags)
  center, wide, n = flags[0], kept[-1].dtype, x.shape[-1]
  outer = tuple(range(x.ndim - 1))
  gain = [] if a is None else [a]

  def weighted(ct: Any, gain: Any) -> Any:
    return ct.astype(wide) * gain[0].astype(wide) if gain else ct.astype(wide)

  def sums(ct: Any, x: Any, kept: Any, gain: Any) -> Any:
    g = weighted(ct, gain)
    total = [jnp.sum(g, -1, keepdims=True)] if center else []
    return [*total, jnp.sum(g * _standardized(x, kept), -1, keepdims=True)]

  def to_x(ct: Any, x: Any, kept: Any, gain: Any, totals: Any) -> Any:
    *total, along = totals
    g = weighted(ct, gain) - (total[0] / n if total else 0)
    return (kept[-1] * (g - _standardized(x, kept) * (along / n))).astype(x.dtype)

  def to_gain(ct: Any, x: Any, kept: Any) -> Any:
    return jnp.sum(ct.astype(wide) * _standardized(x, kept), outer, keepdims=True)

  def to_bias(ct: Any) -> Any:
    return jnp.sum(ct.astype(wide), outer, keepdims=True)

  def to_both(ct: Any, x: Any, kept: Any) -> Any:
    return to_gain(ct, x, kept), to_bias(ct)

  wanted = [ad.is_undefined_primal(t) for t in tangents]
  found: list[Any] = [None, None, None]
  if type(ct) is not ad.Zero:
    if wanted[0]:
      found[0] = _pass(to_x)(ct, x, kept, gain, _pass(sums)(ct, x, kept, gain))
    if wanted[1] and wanted[2]:
      found[1:] = _pass(to_both)(ct, x, kept)
    elif wanted[1]:
      found[1] = _pass(to_gain)(ct, x, kept)
    elif wanted[2]:
      found[2] = _pass(to_bias)(ct)
  rows = [v if v is None else v.astype(t.aval.dtype) for v, t in zip(found, tangents, strict=True)]
  present = (True, *flags[1:])
  rows = [v for v, there in zip(rows, present, strict=True) if there]
  return [None] * (len(operands) - len(rows)) + rows


def _batch(operands: Any, axes: Any, **params: Any) -> Any:
  return jax.vmap(lambda *v: _tangent(*v, **params), axes)(*operands), 0


def _abstract(*operands: Any, flags: tuple[bool, bool, bool], dtype: Any) -> Any:
  x = operands[0]
  return x.update(dtype=dtype, weak_type=False)


def _jvp(primals: Any, tangents: Any, **params: Any) -> Any:
  tangents = [ad.instantiate_zeros(t) for t in tangents]
  return jax.jvp(lambda *v: _tangent(*v, **params), tuple(primals), tuple(tangents))


_tangent_p = Primitive("row_standardization_tangent")
_tangent_p.def_impl(jax.jit(_tangent, static_argnames=("flags", "dtype")))
_tangent_p.def_abstract_eval(_abstract)
ad.primitive_jvps[_tangent_p] = _jvp
ad.primitive_transposes[_tangent_p] = _transpose
batching.primitive_batchers[_tangent_p] = _batch
mlir.register_lowering(_tangent_p, mlir.lower_fun(_tangent, multiple_results=False))
