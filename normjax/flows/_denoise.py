"""Tweedie's formula: the noise that a density was trained with, taken off again by its score."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from normjax.flows._checks import check_batch, is_concrete
from normjax.flows._distribution import Distribution


def denoise(
  flow: Distribution,
  x: Float[Array, "b *event"],
  sigma: float | jax.Array,
  cond: PyTree | None = None,
) -> Float[Array, "b *event"]:
  """Return the mean of clean data given noisy data, for a density of data with Gaussian noise.

  E[clean | x] = x + sigma^2 grad_x log p(x | cond),  x (b, ...) = clean + sigma N(0, I)

  It is exact where `flow` is the density of noisy data, and turns the noisy samples of such a flow
  into clean ones.

  Args:
    flow: the density of the noisy data, a `Flow` or any other distribution.
    x: noisy data, floating.
    sigma: standard deviation of the noise, at least 0.
    cond: what `flow` is conditioned on, if it is.

  Returns:
    Clean data in the shape and dtype of `x`.

  Raises:
    ValueError: if `x` is no floating batch, or `sigma` is negative or no scalar.

  Reference:
    Efron, "Tweedie's Formula and Selection Bias", 2011. Zhai et al., "Normalizing Flows are Capable
    Generative Models", 2024, arXiv 2412.06329.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> noisy = flows.StandardNormal((2,))  # clean data of variance 0.75, noise of 0.25
    >>> flows.denoise(noisy, jnp.array([[4.0, 0.0]]), 0.5)
    Array([[3., 0.]], dtype=float32)
  """
  check_batch("x", x)
  if jnp.ndim(sigma) != 0:
    raise ValueError(f"sigma must be a scalar, got shape {jnp.shape(sigma)}")
  if is_concrete(sigma) and not sigma >= 0:
    raise ValueError(f"sigma must be at least 0, got {sigma}")
  score = jax.grad(lambda x: jnp.sum(flow.log_prob(x, cond)))(x)
  return x + jnp.square(jnp.asarray(sigma, x.dtype)) * score
