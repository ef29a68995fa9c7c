"""The learned scale and bias of a norm: their shapes, their parameters and their application."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from normjax.norms._arguments import broadcasts_explicitly, floating_dtype, normalized_axes


def apply_affine(
  y: Float[Array, "..."],
  scale: ArrayLike | None,
  bias: ArrayLike | None,
  axes: tuple[int, ...],
  dtype: DTypeLike,
  *,
  scalar_scale: bool = False,
) -> Float[Array, "..."]:
  """Returns `y * scale + bias`, computed no narrower than float32 and cast to `dtype` last."""
  dtype = floating_dtype(dtype, "dtype")
  if scale is not None or bias is not None:
    y = y.astype(jnp.promote_types(y.dtype, jnp.float32))
  if scale is not None:
    y = y * _align("scale", scale, y, () if scalar_scale else axes)
  if bias is not None:
    y = y + _align("bias", bias, y, axes)
  return y.astype(dtype)


def _align(
  name: str, value: ArrayLike, y: Float[Array, "..."], axes: tuple[int, ...]
) -> Float[Array, "..."]:
  value = jnp.asarray(value)
  own = tuple(y.shape[a] for a in axes)
  if value.shape == own:
    value = value.reshape([n if a in axes else 1 for a, n in enumerate(y.shape)])
  elif not broadcasts_explicitly(value.shape, y.shape):
    raise ValueError(
      f"{name} must have shape {own}, or {y.ndim} axes each of size 1 or as in {y.shape}, "
      f"got {value.shape}"
    )
  return value.astype(y.dtype)


def matching(
  num_features: int | Sequence[int], axis: int | Sequence[int]
) -> tuple[int | tuple[int, ...], int | tuple[int, ...]]:
  """Returns both arguments in hashable form, or raises if they name different numbers of axes."""
  sizes = (num_features,) if isinstance(num_features, int) else tuple(num_features)
  axes = (axis,) if isinstance(axis, int) else tuple(axis)
  if len(sizes) != len(axes) or any(n < 1 for n in sizes):
    raise ValueError(
      f"num_features must be one positive size per normalized axis, got {num_features} for "
      f"axis={axis}"
    )
  return (
    num_features if isinstance(num_features, int) else sizes,
    axis if isinstance(axis, int) else axes,
  )


def make_param(
  use: bool,
  init: Initializer,
  shape: int | tuple[int, ...],
  dtype: DTypeLike,
  rngs: nnx.Rngs,
) -> nnx.Param[Array] | None:
  """Returns a new parameter if one is to be used."""
  if not use:
    return nnx.data(None)
  return new_param(init, (shape,) if isinstance(shape, int) else shape, dtype, rngs)


def new_param(
  init: Initializer, shape: tuple[int, ...], dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.Param[Array]:
  """Returns a new parameter. It takes one key, as each parameter of flax's norms does."""
  return nnx.Param(init(rngs.params(), shape, floating_dtype(dtype, "param_dtype")))


def value_or(given: ArrayLike | None, param: nnx.Param[Array] | None) -> ArrayLike | None:
  """Returns what the caller passed, else the module's own parameter, if it has one."""
  return given if given is not None or param is None else param[...]


def check_features(
  x: Float[Array, "..."], num_features: int | tuple[int, ...], axis: int | tuple[int, ...]
) -> None:
  """Raise unless the normalized axes of `x` have the sizes the module was built for."""
  shape = jnp.shape(x)
  sizes = (num_features,) if isinstance(num_features, int) else num_features
  if tuple(shape[a] for a in normalized_axes(axis, shape)) != sizes:
    raise ValueError(f"x must have {num_features} entries along axis={axis}, got shape {shape}")
