"""The context of attentive batch norm: attention over summaries of the frames of a sequence."""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

Scheme = Literal["frame", "utterance"]
WEIGHTS = {
  "summary_kernel": "dk",
  "summary_bias": "k",
  "score_kernel": "ks",
  "score_bias": "s",
  "score_vector": "s",
  "scale_kernel": "kc",
  "bias_kernel": "kc",
}


def attentive_context(
  a: Float[Array, "b n d"],
  weights: Mapping[str, Float[Array, "..."]],
  valid: Bool[Array, "b n"],
  scheme: Scheme,
  window: int,
  start: int,
) -> Float[Array, "b t k"]:
  """Returns the context of the frames from `start` on; (b, 1, k) in the scheme "utterance"."""
  row = lambda name: weights[name].reshape(1, 1, -1)
  s = jnp.tanh(a @ weights["summary_kernel"] + row("summary_bias"))
  e = jnp.tanh(s @ weights["score_kernel"] + row("score_bias")) @ weights["score_vector"]
  if scheme == "utterance":
    return jnp.einsum("bn,bnk->bk", _attention(e, valid), s)[:, None]
  n = a.shape[1]
  window = min(window, n)
  before = lambda v: jnp.pad(v, ((0, 0), (window - 1, 0), *((0, 0),) * (v.ndim - 2)))
  # Frame t is at t + window - 1 behind the padding, its window at t ... t + window - 1.
  frames = jnp.arange(start, n)[:, None] + jnp.arange(window)[None]
  alpha = _attention(before(e)[:, frames], before(valid)[:, frames])
  return jnp.einsum("btw,btwk->btk", alpha, before(s)[:, frames])


def _attention(e: Float[Array, "*batch n"], valid: Bool[Array, "*batch n"]) -> Array:
  """Returns the softmax of the valid scores; all zeros where none is valid."""
  e = jnp.where(valid, e, -1e30)
  p = jnp.where(valid, jnp.exp(e - jax.lax.stop_gradient(jnp.max(e, -1, keepdims=True))), 0)
  total = jnp.sum(p, -1, keepdims=True)
  return p / jnp.where(total > 0, total, 1)


def check_scheme(scheme: str, window: int) -> None:
  """Raise unless there is such a scheme and its window has a frame."""
  if scheme not in ("frame", "utterance"):
    raise ValueError(f"scheme must be 'frame' or 'utterance', got {scheme!r}")
  if scheme == "frame" and window < 1:
    raise ValueError(f"window must be 1 or more frames, got {window}")


def as_weights(
  weights: Mapping[str, ArrayLike], d: int, c: int, dtype: DTypeLike
) -> dict[str, Float[Array, "..."]]:
  """Returns the weights as arrays, or raises if they do not fit together."""
  if set(weights) != set(WEIGHTS):
    raise ValueError(f"weights must be {', '.join(WEIGHTS)}, got {', '.join(sorted(weights))}")
  arrays = {name: jnp.asarray(weights[name]) for name in WEIGHTS}
  sizes = {"d": d, "c": c, "k": arrays["summary_bias"].size, "s": arrays["score_bias"].size}
  for name, letters in WEIGHTS.items():
    wanted = tuple(sizes[letter] for letter in letters)
    if arrays[name].shape != wanted:
      raise ValueError(f"weights must have {name} of shape {wanted}, got {arrays[name].shape}")
  return {name: array.astype(dtype) for name, array in arrays.items()}
