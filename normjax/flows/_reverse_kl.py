"""Flows fitted to an energy instead of data: reverse KL, its bounds, and how good the fit is."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from normjax.flows._distribution import Distribution
from normjax.flows._widened import widened


def importance_log_weights(
  flow: Distribution,
  energy: Callable[..., Array],
  key: Array,
  n: int,
  cond: PyTree | None = None,
  *,
  path_derivative: bool = False,
) -> Float[Array, "n"]:
  """Draw from a flow q and weigh the draws by the density p = exp(-U) / Z that it stands for.

  log w (n,) = -U(x) - log q(x),  x (n, ...) drawn from q;  E[w] = Z

  Args:
    flow: q; its samples must be differentiable to train it.
    energy: U, (n, ...) -> (n,), for example one of `flows.POTENTIALS`.
    key: a PRNG key.
    n: how many draws, at least 1.
    cond: what the flow is conditioned on, if it is.
    path_derivative: leave out the gradient of log q by its parameters at fixed x. What is left is
      zero for every draw once q = p ("sticking the landing"). It costs a forward pass. What was
      left out has mean zero only in a mean of the log w; `renyi_bound` makes up for it if told.

  Returns:
    log w (n,), float32 or wider.

  Raises:
    ValueError: if the energy returns another shape.

  Reference:
    Roeder, Wu, Duvenaud, "Sticking the Landing: Simple, Lower-Variance Gradient Estimators for
    Variational Inference", 2017, arXiv 1703.09194.

  Example:
    >>> from normjax import flows
    >>> normal = flows.StandardNormal((2,))
    >>> energy = lambda x: jnp.sum(x**2, axis=1) / 2
    >>> flows.importance_log_weights(normal, energy, jax.random.key(0), 3).round(3)  # log(2 pi)
    Array([1.838, 1.838, 1.838], dtype=float32)
  """
  if path_derivative:
    x = flow.sample(key, n, cond)
    graphdef, params, rest = nnx.split(flow, nnx.Param, ...)
    fixed = jax.tree.map(jax.lax.stop_gradient, nnx.to_pure_dict(params))
    log_q = nnx.merge(graphdef, fixed, nnx.to_pure_dict(rest)).log_prob(x, cond)
  else:
    x, log_q = flow.sample_and_log_prob(key, n, cond)
  u = energy(x)
  if u.shape != (n,):
    raise ValueError(f"energy must return shape ({n},) for x of shape {x.shape}, got {u.shape}")
  return -widened(u) - log_q


def reverse_kl(
  flow: Distribution,
  energy: Callable[..., Array],
  key: Array,
  n: int,
  cond: PyTree | None = None,
  *,
  path_derivative: bool = False,
) -> Float[Array, ""]:
  """Estimate the divergence of an energy's density from a flow, up to a constant.

  KL(q | p) - log Z = E_q[log q(x) + U(x)],  p = exp(-U) / Z

  the loss of variational inference, and its negative evidence lower bound. Where p has modes that q
  misses it does not notice.

  Args:
    flow: q.
    energy: U, (n, ...) -> (n,).
    key: a PRNG key.
    n: how many draws.
    cond: what the flow is conditioned on, if it is.
    path_derivative: as for `importance_log_weights`: less noise close to the optimum.

  Returns:
    The mean over the draws, a scalar.

  Raises:
    ValueError: as `importance_log_weights` does.

  Reference:
    Rezende, Mohamed, "Variational Inference with Normalizing Flows", 2015, arXiv 1505.05770.

  Example:
    >>> from normjax import flows
    >>> flow = flows.Flow(flows.ElementwiseAffine(1.0, 2.0), flows.DiagonalNormal((2,)))
    >>> loss = flows.reverse_kl(flow, flows.energy_u1, jax.random.key(0), 100)
    >>> loss.shape
    ()
  """
  weights = importance_log_weights(flow, energy, key, n, cond, path_derivative=path_derivative)
  return -jnp.mean(weights)


def renyi_bound(
  log_weights: Float[Array, "n"], alpha: float = 0.0, *, path_derivative: bool = False
) -> Float[Array, ""]:
  """Bound log Z by draws of a flow: the variational Renyi bound.

  L_alpha = log((1/n) sum_i w_i^(1 - alpha)) / (1 - alpha),  L_1 = (1/n) sum_i log w_i

  alpha = 1 is minus the `reverse_kl`; alpha = 0 estimates log Z itself by importance sampling.
  Less alpha covers more of the density's modes; it must be 0 to 1 for a lower bound.

  Weights with `path_derivative` lack a gradient that has a mean unless alpha = 1. Integrated by
  parts it is one along the path too, so that an unbiased gradient, zero once q = p, is

  dL_alpha = sum_i (alpha v_i + (1 - alpha) v_i^2) dlog w_i,  v = softmax((1 - alpha) log w) (n,)

  at alpha = 0 the doubly reparameterized gradient, at alpha = 1 the plain one.

  Args:
    log_weights: log w (n,), from `importance_log_weights`.
    alpha: order of the divergence.
    path_derivative: what `importance_log_weights` was told: the value is the same, the gradient
      biased where the two differ.

  Returns:
    L_alpha, a scalar; its negative is a loss.

  Raises:
    ValueError: if `log_weights` is not (n,) with n >= 1 or `alpha` not finite.

  Reference:
    Li, Turner, "Renyi Divergence Variational Inference", 2016, arXiv 1602.02311; Tucker, Lawson,
    Gu, Maddison, "Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives", 2018,
    arXiv 1810.04152.

  Example:
    >>> from normjax import flows
    >>> log_weights = jnp.log(jnp.array([1.0, 3.0]))
    >>> float(jnp.exp(flows.renyi_bound(log_weights)))
    2.0
  """
  _check_weights(log_weights)
  if not math.isfinite(alpha):
    raise ValueError(f"alpha must be finite, got {alpha}")
  return (_bound_of_paths if path_derivative else _bound)(log_weights, alpha)


def effective_sample_size(log_weights: Float[Array, "n"]) -> Float[Array, ""]:
  """Count how many independent draws of the target weighted draws are worth.

  (sum_i w_i)^2 / sum_i w_i^2,  1 to n

  n if the flow has the target's density; close to 1 if one draw outweighs all others. A flow that
  misses a mode may still reach n.

  Args:
    log_weights: log w (n,), from `importance_log_weights`, up to a constant.

  Returns:
    The effective sample size, a scalar.

  Raises:
    ValueError: if `log_weights` is not (n,) with n >= 1.

  Example:
    >>> from normjax import flows
    >>> round(float(flows.effective_sample_size(jnp.log(jnp.array([1.0, 1.0, 2.0])))), 4)  # 16 / 6
    2.6667
  """
  _check_weights(log_weights)
  return jnp.exp(2 * jax.nn.logsumexp(log_weights) - jax.nn.logsumexp(2 * log_weights))


def _check_weights(log_weights):
  if log_weights.ndim != 1 or not log_weights.size:
    raise ValueError(f"log_weights must have shape (n,) with n >= 1, got {log_weights.shape}")


def _bound(log_weights, alpha):
  """Return L_alpha."""
  if alpha == 1:
    return jnp.mean(log_weights)
  total = jax.nn.logsumexp((1 - alpha) * log_weights)
  return (total - math.log(log_weights.shape[0])) / (1 - alpha)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _bound_of_paths(log_weights, alpha):
  """Return L_alpha, with the gradient that belongs to path derivatives."""
  return _bound(log_weights, alpha)


@_bound_of_paths.defjvp
def _bound_of_paths_jvp(alpha, primals, tangents):
  (log_weights,), (step,) = primals, tangents
  v = jax.nn.softmax((1 - alpha) * log_weights)
  return _bound(log_weights, alpha), jnp.sum((alpha * v + (1 - alpha) * v**2) * step)
