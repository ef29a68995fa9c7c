"""Norms that are affine in evaluation become part of a neighbouring linear layer or convolution.

A BatchNorm that evaluates multiplies each channel by a constant and adds another one. A linear
layer can do that itself, on either side: kernel and bias change, and the norm is gone.
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float

Where = Literal["before", "after"]
Padding = str | int | Sequence[int | tuple[int, int]]
# Paddings whose border holds outputs of the norm, and not zeros that the norm has not seen.
_EXACT = ("VALID", "CIRCULAR", "REFLECT")


class EvaluatesAffinely(Protocol):
  """What can be folded: a layer whose evaluation is a scale and a shift of each channel."""

  def evaluation_affine(self) -> tuple[Array, Array]:
    """Returns `(scale, shift)`, each (c,): evaluation is x * scale + shift."""
    ...


Norm = EvaluatesAffinely | tuple[ArrayLike, ArrayLike]


def fold_norm(
  norm: Norm,
  kernel: ArrayLike,
  bias: ArrayLike | None = None,
  *,
  where: Where,
  feature_group_count: int = 1,
  padding: Padding | None = None,
) -> tuple[Float[Array, "..."], Float[Array, " out"]]:
  """Fold a norm into the kernel and the bias of the layer before or behind it.

  With norm(x) = scale * x + shift, kernel W (..., in, out) and bias b (out,):
  W'[..., i, o] = W[..., i, o] * scale[o] and b' = b * scale + shift if the norm stands after the
  layer, W'[..., i, o] = W[..., i, o] * scale[i] and b'[o] = b[o] + sum(W[..., i, o] * shift[i]) if
  it stands before. Nothing may stand between the two.

  Args:
    norm: a layer with `evaluation_affine()`, as `norms.BatchNorm` and `norms.BatchRenorm`, or the
      `(scale, shift)` of its evaluation, each a vector of all channels.
    kernel: that of `nnx.Linear` (in, out), or of `nnx.Conv` (*window, in / groups, out).
    bias: (out,); None: zeros.
    where: where the norm stands: "after" the layer, norm(layer(x)), or "before", layer(norm(x)).
    feature_group_count: groups of a convolution.
    padding: that of a convolution behind the norm. Zeros around an image stand for outputs of the
      norm; once it is gone they would stand for its inputs, and the border would be off by the
      shift. So a window of more than one position needs "VALID", "CIRCULAR", "REFLECT" or zero
      padding of width 0, unless the shift is exactly 0. Otherwise pad x by hand with -shift /
      scale, which the norm maps to 0, and convolve "VALID".

  Returns:
    The new kernel and bias, in the dtypes of the kernel and the bias (of the kernel without one).

  Raises:
    ValueError: if `where` is unknown, shapes do not fit, or the padding makes folding inexact.

  Example:
    >>> kernel, bias = fold_norm((jnp.array([2.0]), jnp.array([1.0])), jnp.array([[3.0]]),
    ...                          where="before")
    >>> print(kernel, bias)  # 3 (2 x + 1)
    [[6.]] [3.]
  """
  scale, shift = _affine_of(norm)
  kernel = jnp.asarray(kernel)
  _check_kernel(kernel, feature_group_count)
  channels, out = kernel.shape[-2] * feature_group_count, kernel.shape[-1]
  given = jnp.zeros(out, kernel.dtype) if bias is None else jnp.asarray(bias)
  if given.shape != (out,):
    raise ValueError(f"bias must have shape ({out},) as the kernel's outputs, got {given.shape}")
  wide = jnp.promote_types(jnp.promote_types(kernel.dtype, scale.dtype), jnp.float32)
  scale, shift, w, b = (v.astype(wide) for v in (scale, shift, kernel, given))
  if where == "after":
    _check_channels(scale, out, "the outputs of the kernel")
    new_kernel, new_bias = w * _last(scale, w.ndim), b * scale + shift
  elif where == "before":
    _check_channels(scale, channels, "the inputs of the kernel")
    _check_padding(kernel.shape[:-2], padding, shift)
    # Outputs come group by group, and a group sees its own inputs only.
    split = w.reshape(*w.shape[:-1], feature_group_count, -1)
    per_input = lambda v: v.reshape(feature_group_count, -1).T[..., None]  # (in / g, g, 1)
    over_window = tuple(range(w.ndim - 1))
    new_kernel = (split * _leading(per_input(scale), split.ndim)).reshape(w.shape)
    new_bias = b + jnp.sum(split * _leading(per_input(shift), split.ndim), over_window).reshape(-1)
  else:
    raise ValueError(f"where must be 'before' or 'after' (the layer), got {where!r}")
  return new_kernel.astype(kernel.dtype), new_bias.astype(given.dtype)


def fold_norm_into(norm: Norm, layer: nnx.Linear | nnx.Conv, *, where: Where) -> Any:
  """Fold a norm into the linear layer or convolution before or behind it.

  layer'(x) = norm(layer(x)) or layer(norm(x)): `fold_norm` with kernel, bias, groups and padding of
  the layer. The result has a bias, also if the layer has none.

  Args:
    norm: a layer with `evaluation_affine()`, or the `(scale, shift)` of its evaluation.
    layer: an `nnx.Linear` or `nnx.Conv`, which is left as it is.
    where: where the norm stands: "after" the layer or "before" it.

  Returns:
    A layer of the same class that stands for both.

  Raises:
    ValueError: as `fold_norm`, if the layer is of another class, or if the norm stands before a
      convolution that dilates its input with zeros.

  Example:
    >>> from normjax.norms import BatchNorm
    >>> layer, norm = nnx.Linear(3, 2, rngs=nnx.Rngs(0)), BatchNorm(2, rngs=nnx.Rngs(1))
    >>> norm.eval()
    >>> x = jnp.ones((4, 3))
    >>> bool(jnp.allclose(fold_norm_into(norm, layer, where="after")(x), norm(layer(x))))
    True
  """
  if type(layer) not in (nnx.Linear, nnx.Conv):
    raise ValueError(f"layer must be an nnx.Linear or nnx.Conv, got {type(layer).__name__}")
  kernel, options = layer.kernel[...], {}
  if isinstance(layer, nnx.Conv):
    kernel = kernel if layer.mask is None else kernel * layer.mask
    options = {"feature_group_count": layer.feature_group_count, "padding": layer.padding}
    if where == "before" and not _all_equal(layer.input_dilation, 1):
      raise ValueError(
        f"layer must not dilate its input, got input_dilation={layer.input_dilation}: the zeros "
        "between the entries are no outputs of the norm"
      )
  old_bias = None if layer.bias is None else layer.bias[...]
  kernel, bias = fold_norm(norm, kernel, old_bias, where=where, **options)
  folded = nnx.merge(*nnx.split(layer), copy=True)
  folded.kernel[...] = kernel
  if isinstance(folded, nnx.Conv):
    folded.mask = None
  if folded.bias is None:
    folded.bias, folded.use_bias = nnx.Param(bias), True
  else:
    folded.bias[...] = bias
  return folded


def _affine_of(norm: Any) -> tuple[Array, Array]:
  if hasattr(norm, "evaluation_affine"):
    norm = norm.evaluation_affine()
  if not isinstance(norm, tuple) or len(norm) != 2:
    raise ValueError(
      "norm must have evaluation_affine(), as BatchNorm has, or be a pair (scale, shift), got "
      f"{type(norm).__name__}"
    )
  scale, shift = map(jnp.asarray, norm)
  if scale.ndim != 1 or scale.shape != shift.shape:
    raise ValueError(f"norm must scale and shift channels (c,), got {scale.shape}, {shift.shape}")
  return scale, shift


def _check_kernel(kernel: Array, groups: int) -> None:
  if kernel.ndim < 2 or not jnp.issubdtype(kernel.dtype, jnp.floating):
    raise ValueError(
      f"kernel must be floating with axes (..., in, out), got {kernel.dtype}{list(kernel.shape)}"
    )
  if groups < 1 or kernel.shape[-1] % groups:
    raise ValueError(
      f"feature_group_count must divide the {kernel.shape[-1]} outputs of the kernel, got {groups}"
    )


def _check_channels(scale: Array, wanted: int, what: str) -> None:
  if scale.shape != (wanted,):
    raise ValueError(f"norm must have {wanted} channels as {what}, got {scale.shape[0]}")


def _check_padding(window: tuple[int, ...], padding: Any, shift: Array) -> None:
  """Raise if a convolution would pad what was the output of the norm with zeros."""
  if not window:
    return
  single = all(n == 1 for n in window)
  if isinstance(padding, str):
    exact = padding.upper() in _EXACT or single
  elif padding is None:
    exact = single
  else:
    exact = _all_equal(padding, 0)
  if not exact and (isinstance(shift, Tracer) or np.any(shift)):
    raise ValueError(
      f"padding must be one of {_EXACT} or of width 0 to fold a norm into the convolution behind "
      f"it, got {padding!r} for a window of {window}: padded zeros are outputs of the norm, whose "
      "shift would then be missing at the border. Fold it into the layer before the norm, or pad x "
      "with -shift / scale"
    )


def _all_equal(value: Any, wanted: int) -> bool:
  if isinstance(value, Sequence):
    return all(_all_equal(v, wanted) for v in value)
  return value is None or value == wanted


def _last(v: Array, ndim: int) -> Array:
  return v.reshape(*(1,) * (ndim - 1), -1)


def _leading(v: Array, ndim: int) -> Array:
  return v.reshape(*(1,) * (ndim - v.ndim), *v.shape)
