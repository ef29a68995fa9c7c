"""Dequantization by a learned density of the noise, and its bound on the probability of images.

With x = low + (q + u) / levels as for `dequantize`, and any density r(u | q) on [0, 1)^D,

  log P(q) + D log(levels) = log E_r[p(x) / r(u | q)] >= E_r[log p(x) - log r(u | q)]

and uniform noise is r = 1. Flow++ learns r as a flow (https://arxiv.org/abs/1902.00275).
"""

import math

import jax
from jaxtyping import Array, Float, Int, PyTree

from normjax._sizes import check_sizes
from normjax.flows._dequantization import dequantize
from normjax.flows._distribution import Distribution


def dequantized_log_prob(
  flow: Distribution,
  dequantizer: Distribution | None,
  image: Int[Array, "b *event"],
  key: Array,
  *,
  levels: float = 256.0,
  low: float = 0.0,
  num_samples: int = 1,
  cond: PyTree | None = None,
) -> Float[Array, "b"]:
  """Bound the log-probability of quantized data under a flow, by noise that is learned as well.

  log((1/K) sum_k p(x_k) / r(u_k | q)) (b,),  x_k = low + (q + u_k) / levels,  u_k drawn from r

  Its mean is at most log P(q) + D log(levels), so `bits_per_dim` turns it into an upper bound of
  bits per dimension; it grows with K in expectation (importance weighting). Both the flow and the
  dequantizer get gradients.

  Args:
    flow: p, a density of continuous data.
    dequantizer: r, a distribution of noise in [0, 1] of `image`'s event shape that is conditioned
      on the image, such as `models.VariationalDequantizer`; None: uniform noise.
    image: levels q of an integer dtype.
    key: a PRNG key.
    levels: bins per unit of x.
    low: where level 0 starts.
    num_samples: K, at least 1.
    cond: what the flow is conditioned on, if it is.

  Returns:
    The bound (b,) in nats, up to D log(levels).

  Raises:
    ValueError: if `num_samples` is below 1, or as `dequantize` does.

  Reference:
    Ho, Chen, Srinivas, Duan, Abbeel, "Flow++: Improving Flow-Based Generative Models with
    Variational Dequantization and Architecture Design", 2019, arXiv 1902.00275. Burda, Grosse,
    Salakhutdinov, "Importance Weighted Autoencoders", 2015, arXiv 1509.00519.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> image = jnp.array([[0, 255]], jnp.uint8)
    >>> box = flows.Uniform((2,))
    >>> flows.dequantized_log_prob(box, None, image, jax.random.key(0), num_samples=4)
    Array([0.], dtype=float32)
  """
  check_sizes(num_samples=num_samples)

  def one(key):
    if dequantizer is None:
      noise = jax.random.uniform(key, image.shape)
      return flow.log_prob(dequantize(image, noise, levels=levels, low=low), cond)
    noise, log_r = dequantizer.sample_and_log_prob(key, image.shape[0], image)
    return flow.log_prob(dequantize(image, noise, levels=levels, low=low), cond) - log_r

  if num_samples == 1:
    return one(key)
  log_weights = jax.lax.map(one, jax.random.split(key, num_samples))
  return jax.nn.logsumexp(log_weights, axis=0) - math.log(num_samples)
