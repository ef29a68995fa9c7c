"""Score matching: objectives that see a density by gradients of its energy only.

They never need the normalizer, so a flow trained by them computes no determinant of a linear layer
(https://arxiv.org/abs/2305.15267). All random numbers are arguments, and every loss is one number
per example. What differs from the authors' code: the finite-difference loss has the factor D in
each trainer, theirs in one of two; divide all losses by D for images.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from normjax.flows._checks import check_above_zero, check_batch
from normjax.flows._energy import Energy, energies, score


def sliced_score_matching(
  energy: Energy, x: Float[Array, "b *event"], directions: Float[Array, "k b *event"]
) -> Float[Array, "b"]:
  """Return the score-matching loss with its trace estimated along random directions (SSM).

  |s(x)|^2 / 2 + mean_k v_k^T (ds/dx) v_k  (b,),  s = -grad E,  v (k, b, ...) with E[v v^T] = I

  One Jacobian-vector product of a gradient for each direction. Its mean over data is smallest
  where s is the score of the data.

  Args:
    energy: maps x to E (b,), each example by itself, twice differentiable.
    x: data.
    directions: v, k for each example: signs (Rademacher) have the least variance.

  Returns:
    The loss per example; it may be negative.

  Raises:
    ValueError: if `directions` is not (k, *x.shape) with k >= 1, or as `score`.

  Reference:
    Song, Garg, Shi, Ermon, "Sliced Score Matching: A Scalable Approach to Density and Score
    Estimation", 2019, arXiv 1905.07088.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> energy, x = flows.StandardNormal((2,)).energy, jnp.array([[1.0, -3.0]])
    >>> flows.sliced_score_matching(energy, x, jnp.ones((1, 1, 2)))  # 10 / 2 - 2
    Array([3.], dtype=float32)
  """
  check_batch("x", x)
  if directions.shape[1:] != x.shape or not directions.shape[0]:
    raise ValueError(
      f"directions must have shape (k, {', '.join(map(str, x.shape))}) with k >= 1, got "
      f"{directions.shape}"
    )
  push = lambda v: jax.jvp(lambda x: score(energy, x), (x,), (v,))
  s, pushed = jax.vmap(push, out_axes=(None, 0))(directions.astype(x.dtype))
  trace = jnp.mean(jnp.sum(_rows(directions * pushed, 2), axis=-1), axis=0)
  return 0.5 * _sum_of_squares(s) + trace


def denoising_score_matching(
  energy: Energy, x: Float[Array, "b *event"], noise: Float[Array, "b *event"], std: float | Array
) -> Float[Array, "b"]:
  """Return the loss of a score that points from noisy data to clean data (DSM).

  |s(x + std noise) + noise / std|^2 / 2  (b,),  s = -grad E,  noise N(0, I)

  Its mean is smallest where s is the score of the noisy data, x plus a normal of deviation std.

  Args:
    energy: maps x to E (b,), each example by itself, differentiable.
    x: data.
    noise: standard normal numbers, of x's shape.
    std: standard deviation of the noise, above 0.

  Returns:
    The loss per example.

  Raises:
    ValueError: if `noise` has another shape, `std` is not above 0, or as `score`.

  Reference:
    Vincent, "A Connection Between Score Matching and Denoising Autoencoders", 2011.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> energy, x = flows.StandardNormal((1,)).energy, jnp.array([[1.0]])
    >>> flows.denoising_score_matching(energy, x, jnp.ones((1, 1)), 0.5)  # (-1.5 + 2)^2 / 2
    Array([0.125], dtype=float32)
  """
  _check_like("noise", noise, x)
  check_above_zero(std=std)
  return 0.5 * _sum_of_squares(score(energy, x + std * noise) + noise / std)


def finite_difference_score_matching(
  energy: Energy, x: Float[Array, "b *event"], directions: Float[Array, "b *event"], epsilon: float
) -> Float[Array, "b"]:
  """Return the sliced loss with differences of energies in place of derivatives (FDSSM).

  (D / e^2) ((E+ - E-)^2 / 8 + 2 E0 - E+ - E-)  (b,),  E0 = E(x),  E+- = E(x +- v),
  v = e w / |w|,  w (b, ...), D entries each

  No gradient of the energy is taken, so that training costs one gradient of three energies. As e
  goes to 0 it tends to (v^T s)^2 / 2 + v^T (ds/dx) v with v = sqrt(D) w / |w|, whose mean over v
  is the sliced loss; but differences of float32 energies E have no digits below 1e-7 D E / e^2.

  Args:
    energy: maps x to E (b,), each example by itself.
    x: data.
    directions: w, standard normal numbers of x's shape.
    epsilon: e, above 0: 0.1 for vectors, up to 1 for images.

  Returns:
    The loss per example; it may be negative.

  Raises:
    ValueError: if `directions` has another shape, `epsilon` is not above 0, or as `score`.

  Reference:
    Pang, Xu, Li, Song, Ermon, Zhu, "Efficient Learning of Generative Models via Finite-Difference
    Score Matching", 2020, arXiv 2007.03317.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> energy, x = flows.StandardNormal((1,)).energy, jnp.array([[2.0]])
    >>> loss = flows.finite_difference_score_matching(energy, x, jnp.ones((1, 1)), 0.5)
    >>> round(float(loss[0]), 4)  # 4 / 2 - 1
    1.0
  """
  _check_like("directions", directions, x)
  check_above_zero(epsilon=epsilon)
  length = jnp.sqrt(_sum_of_squares(directions)).reshape(-1, *(1,) * (x.ndim - 1))
  step = epsilon * directions / length
  # One call for all three: a third of the operations to schedule, and of the weights to read.
  middle, up, down = jnp.split(energies(energy, jnp.concatenate([x, x + step, x - step])), 3)
  scale = math.prod(x.shape[1:]) / epsilon**2
  return scale * ((up - down) ** 2 / 8 + (middle - up) + (middle - down))


def contrastive_loss(
  energy: Energy, x: Float[Array, "b *event"], samples: Float[Array, "n *event"]
) -> Float[Array, ""]:
  """Return the difference of energies whose gradient is that of maximum likelihood (SML).

  mean E(x) - mean E(samples),  no gradient through the samples

  With samples of the density itself the mean of its gradient is that of -log p: the second term is
  the gradient of log Z. Its value says nothing.

  Args:
    energy: maps x to E (b,).
    x: data.
    samples: draws from the density of `energy` with its present parameters.

  Returns:
    The loss, one number.

  Raises:
    ValueError: if `samples` are not events of x's shape, or as `score`.

  Reference:
    Chao, Sun, Hsu, Kira, Lee, "Training Energy-Based Normalizing Flow with Score-Matching
    Objectives", 2023, arXiv 2305.15267.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> energy = flows.StandardNormal((1,)).energy
    >>> loss = flows.contrastive_loss(energy, jnp.array([[1.0]]), jnp.array([[2.0], [0.0]]))
    >>> round(float(loss), 4)  # 1 / 2 - (4 / 2 + 0) / 2
    -0.5
  """
  check_batch("x", x)
  check_batch("samples", samples, x.shape[1:])
  samples = jax.lax.stop_gradient(samples)
  return jnp.mean(energies(energy, x)) - jnp.mean(energies(energy, samples))


def _rows(x, leading):
  return x.reshape(*x.shape[:leading], -1)


def _sum_of_squares(x):
  return jnp.sum(_rows(x, 1) ** 2, axis=1)


def _check_like(name, value, x):
  check_batch("x", x)
  if value.shape != x.shape:
    raise ValueError(f"{name} must have x's shape {x.shape}, got {value.shape}")
