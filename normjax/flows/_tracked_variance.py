"""The spread of latents that a volume-preserving flow can't set itself."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from normjax.flows._checks import check_batch


def tracked_variance(
  variance: Float[Array, "*event"], z: Float[Array, "b *event"], *, rate: float = 0.1
) -> Float[Array, "*event"]:
  """Update a running variance, about zero and entry by entry, with a batch of latents.

  variance <- variance + rate (mean_b(z^2) - variance)

  A volume-preserving flow trained under N(0, I) has log_det = 0 and so cannot scale its latents;
  TarFlow's authors sample from N(0, diag(variance)) instead. Start with ones, update after each
  step, and put the result into a base: `base.log_scale[...] = 0.5 * jnp.log(variance)` of a
  `DiagonalNormal`.

  Args:
    variance: the value so far, the shape of one latent.
    z: latents of a batch.
    rate: the share of the new batch, in (0, 1].

  Returns:
    The new variance, in the dtype of the old one.

  Raises:
    ValueError: if `z` is no batch of the shape of `variance`, or `rate` is out of range.

  Reference:
    Zhai et al., "Normalizing Flows are Capable Generative Models", 2024, arXiv 2412.06329.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> flows.tracked_variance(jnp.ones(2), jnp.array([[3.0, 0.0], [1.0, 0.0]]), rate=0.5)
    Array([3. , 0.5], dtype=float32)
  """
  check_batch("z", z, variance.shape)
  if not 0 < rate <= 1:
    raise ValueError(f"rate must be above 0 and at most 1, got {rate}")
  wide = jnp.promote_types(z.dtype, variance.dtype)
  mean = jnp.mean(jnp.square(z.astype(wide)), axis=0)
  return (variance + rate * (mean - variance)).astype(variance.dtype)
