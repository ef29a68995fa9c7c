"""Standardization, computed and differentiated in as few passes as memory allows.

y = (x - mean) * rstd * scale + bias keeps x, the mean (in two parts) and rstd for its derivatives,
and nothing of the size of x. On CPU, XLA would fuse what is written here into loops that recompute
or store such arrays after all; so there every pass is a function of its own that it can't inline.
What isn't differentiated keeps nothing, and XLA may fuse it; on other platforms it may fuse all.

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


def can_standardize(
  x: Float[Array, "..."], reduction: Reduction, scale: ArrayLike | None, bias: ArrayLike | None
) -> bool:
  """Returns whether all entries of x count, on one device, and gain and shift are (c,) or none."""
  own = all(v is None or jnp.shape(v) == x.shape[-1:] for v in (scale, bias))
  return own and reduction.mask is None and reduction.axis_name is None


def standardize(
  x: Float[Array, "*shape c"],
  scale: ArrayLike | None,
  bias: ArrayLike | None,
  reduction: Reduction,
  *,
  epsilon: float,
  center: bool = True,
  dtype: DTypeLike,
) -> tuple[Float[Array, "*shape c"], tuple[Float[Array, "..."], ...]]:
  """Returns `(x - mean) / sqrt(mean((x - mean)^2) + epsilon) * scale + bias`, and its statistics.

  Statistics are (shift, mean of x - shift, variance), float32 or wider, and constants: no gradient
  passes through them. Without `center` the mean is taken as 0, and they are (mean of x^2,).
  """
  wide = statistics_dtype(x)
  row = (*(1,) * (x.ndim - 1), -1)
  affine = [jnp.reshape(v, row) for v in (scale, bias) if v is not None]
  flags = (center, scale is not None, bias is not None)

  def output(x: Any, kept: Any, affine: Any) -> Any:
    a, b = _optional(affine, flags[1:])
    y = _standardized(x, kept)
    y = y if a is None else y * a.astype(wide)
    y = y if b is None else y + b.astype(wide)
    return y.astype(dtype)

  def values(x: Any, affine: Any, alone: Any) -> Any:
    part = lambda f: alone(lambda x, *rest: f(x.astype(wide), *rest))
    if center:
      found = shifted_moments(x, reduction, part)
    else:
      found = (part(lambda x: reduction.mean(x * x))(x),)
    kept = (*found[:-1], jax.lax.rsqrt(found[-1] + epsilon))
    return alone(output)(x, kept, affine), found, kept

  @jax.custom_jvp
  def run(x: Any, *affine: Any) -> Any:
    return values(x, affine, lambda f: f)[:2]

  @run.defjvp
  def _jvp(primals: Any, tangents: Any) -> Any:
    x, *affine = primals
    y, found, kept = values(x, affine, _pass)
    gain = affine[:1] if scale is not None else []
    operands = _alike(x, *kept, *gain, *tangents)
    dy = _tangent_p.bind(*operands, flags=flags, reduction=reduction, dtype=jnp.dtype(dtype))
    return (y, found), (dy, tuple(_alike(jnp.zeros_like(v), v)[0] for v in found))

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


def _centered(x: Any, means: Any, wide: Any) -> Any:
  x = x.astype(wide)
  for mean in means:  # the shift and then the mean of what it left, never their rounded sum
    x = x - mean
  return x


def _standardized(x: Any, kept: Any) -> Any:
  *means, rstd = kept
  return _centered(x, means, rstd.dtype) * rstd


def _split(operands: Any, flags: tuple[bool, bool, bool]) -> Any:
  """Returns x, its statistics, the gain or None, and the tangents of x, gain and bias or None."""
  center, gain, bias = flags
  x, *rest = operands
  kept, rest = rest[: 1 + 2 * center], rest[1 + 2 * center :]
  a, dx, da, db = _optional(rest, (gain, True, gain, bias))
  return x, kept, a, (dx, da, db)


def _tangent(*operands: Any, flags: Any, reduction: Reduction, dtype: Any) -> Any:
  """The tangent of y, linear in the tangents of x, gain and bias."""
  x, kept, a, (dx, da, db) = _split(operands, flags)
  wide, mean = kept[-1].dtype, reduction.mean
  y, dx = _standardized(x, kept), dx.astype(wide)
  t = kept[-1] * (dx - (mean(dx) if flags[0] else 0) - y * mean(dx * y))
  t = t if a is None else t * a.astype(wide) + y * da.astype(wide)
  t = t if db is None else t + db.astype(wide)
  return t.astype(dtype)


def _transpose(ct: Any, *operands: Any, flags: Any, reduction: Reduction, dtype: Any) -> Any:
  del dtype
  x, kept, a, tangents = _split(operands, flags)
  found: list[Any] = [None, None, None]
  wanted = [ad.is_undefined_primal(t) for t in tangents]
  if type(ct) is not ad.Zero:
    cotangents = _of_rows if x.ndim - 1 in reduction.axes else _of_channels
    found = cotangents(ct, x, kept, a, reduction, wanted)
  rows = [v if v is None else v.astype(t.aval.dtype) for v, t in zip(found, tangents, strict=True)]
  present = (True, *flags[1:])
  rows = [v for v, there in zip(rows, present, strict=True) if there]
  return [None] * (len(operands) - len(rows)) + rows


def _of_rows(
  ct: Any, x: Any, kept: Any, a: Any, reduction: Reduction, wanted: list[bool]
) -> list[Any]:
  """Cotangents of x, gain and bias, where statistics are over the axis of the gain, and others."""
  wide, outer = kept[-1].dtype, tuple(range(x.ndim - 1))

  def to_gain(ct: Any, x: Any, kept: Any) -> Any:
    return jnp.sum(ct.astype(wide) * _standardized(x, kept), outer, keepdims=True)

  def to_bias(ct: Any) -> Any:
    return jnp.sum(ct.astype(wide), outer, keepdims=True)

  found: list[Any] = [None, None, None]
  if wanted[0]:
    found[0] = _to_x(ct, x, kept, a, reduction, *_sums(ct, x, kept, a, reduction.axes))
  if wanted[1]:
    found[1] = _pass(to_gain)(ct, x, kept)
  if wanted[2]:
    found[2] = _pass(to_bias)(ct)
  return found


def _of_channels(
  ct: Any, x: Any, kept: Any, a: Any, reduction: Reduction, wanted: list[bool]
) -> list[Any]:
  """Cotangents of x, gain and bias, where one sum over the positions of a channel serves all."""
  total, along = _sums(ct, x, kept, None, reduction.axes)
  outer = tuple(range(x.ndim - 1))
  found: list[Any] = [None, None, None]
  if wanted[0]:
    gain = 1 if a is None else a.astype(kept[-1].dtype)
    pooled = [reduction.pooled(gain * v) for v in (total, along)]
    found[0] = _to_x(ct, x, kept, a, reduction, *pooled)
  for place, sums in ((1, along), (2, total)):
    if wanted[place]:
      found[place] = jnp.sum(sums, outer, keepdims=True)
  return found


def _weighted(ct: Any, a: Any, wide: Any) -> Any:
  return ct.astype(wide) if a is None else ct.astype(wide) * a.astype(wide)


def _sums(ct: Any, x: Any, kept: Any, a: Any, axes: tuple[int, ...]) -> tuple[Any, Any]:
  """Sums of g = ct * a and of g * (x - mean) * rstd; mean and rstd don't vary over the axes."""
  *means, rstd = kept
  wide = rstd.dtype

  def total(ct: Any, a: Any) -> Any:
    return jnp.sum(_weighted(ct, a, wide), axes, keepdims=True)

  def along(ct: Any, x: Any, a: Any, shift: Any) -> Any:
    return jnp.sum(_weighted(ct, a, wide) * _centered(x, shift, wide), axes, keepdims=True)

  if not means:
    return None, rstd * _pass(along)(ct, x, a, [])
  shift, mean = means
  g = _pass(total)(ct, a)
  return g, rstd * (_pass(along)(ct, x, a, [shift]) - mean * g)


def _to_x(ct: Any, x: Any, kept: Any, a: Any, reduction: Reduction, total: Any, along: Any) -> Any:
  """The cotangent of x: rstd * (g - mean(g) - xh * mean(g * xh)), with xh = (x - mean) * rstd."""
  *means, rstd = kept
  wide, x_dtype, share = rstd.dtype, x.dtype, 1 / reduction.entries
  slope = rstd * (share * along)

  def to_x(ct: Any, x: Any, means: Any, rstd: Any, a: Any, slope: Any, total: Any) -> Any:
    g, x = _weighted(ct, a, wide), _centered(x, means, wide)
    g = g if total is None else g - share * total
    return ((g - x * slope) * rstd).astype(x_dtype)

  return _pass(to_x)(ct, x, means, rstd, a, slope, total if means else None)


def _batch(operands: Any, axes: Any, **params: Any) -> Any:
  return jax.vmap(lambda *v: _tangent(*v, **params), axes)(*operands), 0


def _abstract(*operands: Any, flags: Any, reduction: Reduction, dtype: Any) -> Any:
  del flags, reduction
  x = operands[0]
  return x.update(dtype=dtype, weak_type=False)


def _jvp(primals: Any, tangents: Any, **params: Any) -> Any:
  tangents = [ad.instantiate_zeros(t) for t in tangents]
  return jax.jvp(lambda *v: _tangent(*v, **params), tuple(primals), tuple(tangents))


_tangent_p = Primitive("standardization_tangent")
_tangent_p.def_impl(jax.jit(_tangent, static_argnames=("flags", "reduction", "dtype")))
_tangent_p.def_abstract_eval(_abstract)
ad.primitive_jvps[_tangent_p] = _jvp
ad.primitive_transposes[_tangent_p] = _transpose
batching.primitive_batchers[_tangent_p] = _batch
mlir.register_lowering(_tangent_p, mlir.lower_fun(_tangent, multiple_results=False))
