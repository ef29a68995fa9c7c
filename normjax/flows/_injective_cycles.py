"""Further terms that keep an encoder and a decoder inverses of each other (weight 0 by default).

The authors' code of free-form injective flows (https://arxiv.org/abs/2306.01843) offers them beside
the loss of `injective_loss`. That on shuffled conditions is a second call, with networks that close
over the shuffled ones.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from normjax.flows._widened import widened


def injective_cycles(
  encode: Callable[[Array], Array],
  decode: Callable[[Array], Array],
  z: Float[Array, "b d"],
  reconstruction: Float[Array, "b D"],
  *,
  clean: Float[Array, "b D"] | None = None,
  latents: Float[Array, "n d"] | None = None,
) -> dict[str, Float[Array, "b"]]:
  """Return squared errors of going round encoder and decoder, as regularizers.

  latent        |z - f(x')|^2 (b,),  x' = g(z)
  latent_fixed  |z - f(stop_gradient(x'))|^2 (b,), which trains the encoder alone
  clean         |x0 - x'|^2 (b,), of data x0 before noise was added
  sampled_latent  |e - f(g(e))|^2 (n,), for latents e drawn from the prior
  sampled_data    |g(e) - g(f(g(e)))|^2 (n,)

  Add their weighted means to that of `injective_loss`, whose `parts` give z and x'.

  Args:
    encode: f, maps (b, D) to (b, d) one example at a time.
    decode: g, maps (b, d) to (b, D) likewise.
    z: f(x).
    reconstruction: x' = g(f(x)).
    clean: x0; without it there is no "clean".
    latents: e, for example standard normal; without them there are no sampled terms.

  Returns:
    The terms by name.

  Raises:
    ValueError: if shapes do not fit.

  Reference:
    Sorrenson et al., "Lifting Architectural Constraints of Injective Flows", 2023,
    arXiv 2306.01843.

  Example:
    >>> from normjax import flows
    >>> encode, decode = lambda x: x[:, :1], lambda z: jnp.tile(z, (1, 2))
    >>> x = jnp.array([[1.0, 3.0]])
    >>> z = encode(x)
    >>> {name: float(v[0]) for name, v in
    ...  flows.injective_cycles(encode, decode, z, decode(z), clean=x).items()}
    {'latent': 0.0, 'latent_fixed': 0.0, 'clean': 4.0}
  """
  _check_pair("reconstruction", reconstruction, (z.shape[0], reconstruction.shape[-1]))
  again = encode(reconstruction)
  _check_pair("encode(reconstruction)", again, z.shape)
  terms = {
    "latent": _square(z, again),
    "latent_fixed": _square(z, encode(jax.lax.stop_gradient(reconstruction))),
  }
  if clean is not None:
    _check_pair("clean", clean, reconstruction.shape)
    terms["clean"] = _square(clean, reconstruction)
  if latents is not None:
    _check_pair("latents", latents, (latents.shape[0], z.shape[1]))
    x = decode(latents)
    back = encode(x)
    terms["sampled_latent"] = _square(latents, back)
    terms["sampled_data"] = _square(x, decode(back))
  return terms


def _square(a, b):
  return jnp.sum((widened(a) - widened(b)) ** 2, axis=1)


def _check_pair(name, value, shape):
  if value.shape != shape or len(shape) != 2:
    raise ValueError(f"{name} must have shape {shape}, got {value.shape}")
