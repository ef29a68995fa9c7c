"""Training objectives of flows by their names, with the random numbers that each draws.

`OBJECTIVES[name](flow, x, key, *, std, epsilon) -> (b,)`, a loss per example; each has its own
constant, so values of different objectives can't be compared.
"""

import jax
import jax.numpy as jnp

from normjax import flows


def maximum_likelihood(flow, x, key, *, std, epsilon):
  """Return -log p(x): with dense linear layers the one objective that takes determinants."""
  return -flow.log_prob(x)


def sliced(flow, x, key, *, std, epsilon):
  """Return the sliced score-matching loss, one direction of signs for each example."""
  directions = jax.random.rademacher(key, (1, *x.shape), x.dtype)
  return flows.sliced_score_matching(flow.energy, x, directions)


def denoising(flow, x, key, *, std, epsilon):
  """Return the denoising loss at noise of deviation `std`."""
  return flows.denoising_score_matching(flow.energy, x, jax.random.normal(key, x.shape), std)


def finite_difference(flow, x, key, *, std, epsilon):
  """Return the finite-difference loss with steps of length `epsilon`."""
  directions = jax.random.normal(key, x.shape)
  return flows.finite_difference_score_matching(flow.energy, x, directions, epsilon)


def contrastive(flow, x, key, *, std, epsilon):
  """Return the contrastive loss with as many samples of the flow as there are data."""
  samples = jax.lax.stop_gradient(flow.sample(key, x.shape[0]))
  return jnp.broadcast_to(flows.contrastive_loss(flow.energy, x, samples), x.shape[:1])


OBJECTIVES = {
  "ml": maximum_likelihood,
  "ssm": sliced,
  "dsm": denoising,
  "fdssm": finite_difference,
  "sml": contrastive,
}
