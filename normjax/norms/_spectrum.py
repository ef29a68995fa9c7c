"""Amplitude and phase of images: what the frequency norms take apart and put together again.

The half of the spectrum that `rfft2` returns determines the other half, so that the full transform
of the authors' code gives the same values and gradients at twice the cost. As in that code, powers
and real parts between -1e-5 and 1e-5 count as +1e-5. This keeps the gradients of amplitude and
phase finite, and leaves every bin an amplitude of at least sqrt(1e-5) = 3.2e-3.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Complex, Float

from normjax.norms._arguments import as_floating

Method = Literal["fft", "closed_form"]
GUARD = 1e-5


def spectrum(x: Float[Array, "b h w c"]) -> Complex[Array, "b h k c"]:
  """Returns the unnormalized transform over h and w, of which k = w // 2 + 1 columns are free."""
  return jnp.fft.rfft2(x, axes=(1, 2))


def amplitude(f: Complex[Array, "..."]) -> Float[Array, "..."]:
  """Returns |f|, no smaller than sqrt(1e-5)."""
  return jnp.sqrt(_guarded(f.real * f.real + f.imag * f.imag))


def phasor(f: Complex[Array, "..."]) -> Complex[Array, "..."]:
  """Returns f / |f|, which is cos + i sin of the phase, without the angle itself."""
  real = _guarded(f.real)
  return jax.lax.complex(real, f.imag) * jax.lax.rsqrt(real * real + f.imag * f.imag)


def compose(
  phases: Complex[Array, "b h k c"], sizes: Float[Array, "b h k c"], like: Float[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
  """Returns the image of these phasors and amplitudes, with the shape of `like`."""
  return jnp.fft.irfft2(sizes * phases, s=like.shape[1:3], axes=(1, 2))


def with_phase_of(
  content: Float[Array, "b h w c"], style: Float[Array, "b h w c"], method: Method
) -> Float[Array, "b h w c"]:
  """Returns the image with the phases of `content` and the amplitudes of `style`.

  The closed form is for contents that are the style times a positive number plus another number,
  per channel. Then only the constant bin, h * w times the mean, has another phase, namely the other
  sign where the two means differ in sign.
  """
  if method == "fft":
    return compose(phasor(spectrum(content)), amplitude(spectrum(style)), style)
  mean = jnp.mean(style, (1, 2), keepdims=True)
  constant_bin = jnp.sum(content, (1, 2), keepdims=True)
  swapped = jnp.where(constant_bin <= -GUARD, mean > 0, mean < 0)
  return style - 2 * jnp.where(swapped, mean, jnp.zeros_like(mean))


def _guarded(t: Float[Array, "..."]) -> Float[Array, "..."]:
  return jnp.where(jnp.abs(t) < GUARD, jnp.full_like(t, GUARD), t)


def as_whole_images(x: ArrayLike, mask: Any, method: str) -> Float[Array, "b h w c"]:
  """Returns `x` as an array of images, or raises; there is no spectrum of a part of an image."""
  x = as_floating(x)
  if x.ndim != 4 or 0 in x.shape[1:3]:
    raise ValueError(f"x must be images (batch, height, width, channels), got shape {x.shape}")
  if mask is not None:
    raise ValueError("mask must be None: the spectrum of an image takes all of its positions")
  check_method(method)
  return x


def check_method(method: str) -> None:
  """Raise unless there is such a method."""
  if method not in ("fft", "closed_form"):
    raise ValueError(f"method must be 'fft' or 'closed_form', got {method!r}")


def check_temperature(temperature: float) -> None:
  """Raise unless the temperature is positive."""
  if not temperature > 0:
    raise ValueError(f"temperature must be > 0, got {temperature}")


def mixing(logits: ArrayLike, temperature: float, dtype: DTypeLike) -> tuple[Array, Array]:
  """Returns the two weights softmax(logits / temperature).

  Sigmoids are the same, and their gradient, at weights near 0 and 1, is not a small difference.
  """
  logits = jnp.asarray(logits)
  if logits.shape != (2,):
    raise ValueError(f"logits must have shape (2,), got {logits.shape}")
  check_temperature(temperature)
  difference = (logits[0] - logits[1]).astype(dtype) / temperature
  return jax.nn.sigmoid(difference), jax.nn.sigmoid(-difference)


def mixed(
  weights: tuple[Array, Array], first: Float[Array, "..."], second: Float[Array, "..."]
) -> Float[Array, "..."]:
  """Returns weights[0] * first + weights[1] * second, for weights with the sum 1.

  Their common gradient is one sum over first - second, where two sums would cancel.
  """
  w, v = jax.lax.stop_gradient(weights)
  return w * first + v * second + (weights[0] - w) * (first - second)
