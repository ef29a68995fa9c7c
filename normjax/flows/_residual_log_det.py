"""Log-determinants of x + g(x), where g contracts: exact, truncated, and estimated without bias.

log det(I + J) = sum_k (-1)^(k+1) tr(J^k) / k,  J = g'(x) of spectral norm below one. The gradient
of both estimates is a Neumann series, linear in dJ, so that no step of the loop is kept for the
backward pass (https://arxiv.org/abs/1906.02735, section 3.2).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from normjax._sizes import check_sizes
from normjax.flows._checks import check_vectors
from normjax.flows._widened import widened


def residual_log_det(
  residual: Callable[[Array], Array], x: Float[Array, "b d"]
) -> Float[Array, "b"]:
  """Compute log|det(I + g'(x))| of a map x + g(x), by the Jacobian's d columns.

  log_det (b,) = log|det(I + J)|,  J (b, d, d) = g'(x)

  Args:
    residual: g, maps (b, d) to (b, d) one example at a time.
    x: data.

  Returns:
    The log-determinants (b,).

  Raises:
    ValueError: if x is not floating and (b, d), or g gives another shape.

  Reference:
    Behrmann, Grathwohl, Chen, Duvenaud, Jacobsen, "Invertible Residual Networks", 2018,
    arXiv 1811.00995.

  Example:
    >>> log_det = residual_log_det(lambda x: x / 2, jnp.ones((1, 2)))
    >>> round(float(log_det[0]), 4)  # 2 log(3 / 2)
    0.8109
  """
  x = _checked(residual, x)
  units = jnp.broadcast_to(jnp.eye(x.shape[1], dtype=x.dtype)[:, None], (x.shape[1], *x.shape))
  columns = jax.vmap(lambda v: jax.jvp(residual, (x,), (v,))[1])(units)
  return jnp.linalg.slogdet(jnp.moveaxis(columns + units, 0, 2))[1]


def series_log_det(
  residual: Callable[[Array], Array],
  x: Float[Array, "b d"],
  probes: Float[Array, "b d K"],
  num_terms: int = 10,
) -> Float[Array, "b"]:
  """Estimate the log-determinant of x + g(x) by the first terms of its power series.

  (1/K) sum_v sum_k=1^n (-1)^(k+1) / k  v^T J^k v  (b,),  J = g'(x)

  For |J| <= c the truncation's error is at most d c^(n+1) / ((n+1) (1 - c)). One reverse-mode
  product per term and probe; the gradient takes no memory that grows with `num_terms`.

  Args:
    residual: g, maps (b, d) to (b, d) one example at a time, of Lipschitz constant below one.
    x: data.
    probes: the vectors v, as `orthogonal_probes` draws them; with K = d traces are exact.
    num_terms: n, at least 1.

  Returns:
    The estimates (b,), whose gradient estimates that of the truncated series.

  Raises:
    ValueError: if shapes do not fit or `num_terms` is below 1.

  Reference:
    Behrmann, Grathwohl, Chen, Duvenaud, Jacobsen, "Invertible Residual Networks", 2018,
    arXiv 1811.00995.

  Example:
    >>> from normjax import flows
    >>> probes = flows.orthogonal_probes(jax.random.key(0), 1, 2, 2)
    >>> log_det = series_log_det(lambda x: x / 2, jnp.ones((1, 2)), probes, 30)
    >>> round(float(log_det[0]), 4)  # 2 log(3 / 2)
    0.8109
  """
  check_sizes(num_terms=num_terms)
  return _series(residual, x, probes, num_terms, jnp.ones_like)


def roulette_log_det(
  key: Array,
  residual: Callable[[Array], Array],
  x: Float[Array, "b d"],
  probes: Float[Array, "b d K"],
  *,
  num_terms: int = 2,
  stop: float = 0.5,
) -> Float[Array, "b"]:
  """Estimate the log-determinant of x + g(x) without bias, by a random number of terms.

  (1/K) sum_v sum_k=1^(n+N) (-1)^(k+1) / k  w_k v^T J^k v  (b,),  J = g'(x)
  N geometric, w_k = 1 for k <= n, then 1 / P(N >= k - n) = (1 - stop)^-(k - n - 1)

  N is drawn once for the batch ("Russian roulette"). The expectation over `key` and over probes is
  the exact value, and that of the gradient the exact gradient.

  Args:
    key: a PRNG key, for N.
    residual: g, maps (b, d) to (b, d) one example at a time, of Lipschitz constant below one.
    x: data.
    probes: the vectors v, as `orthogonal_probes` draws them.
    num_terms: n, terms that are always there, at least 1.
    stop: the probability of every further term to be the last, in (0, 1).

  Returns:
    The estimates (b,).

  Raises:
    ValueError: if shapes do not fit or an option is out of range.

  Reference:
    Chen, Behrmann, Duvenaud, Jacobsen, "Residual Flows for Invertible Generative Modeling", 2019,
    arXiv 1906.02735.

  Example:
    >>> from normjax import flows
    >>> probes = flows.orthogonal_probes(jax.random.key(0), 1, 2, 2)
    >>> half, ones = lambda x: x / 2, jnp.ones((1, 2))
    >>> estimate = lambda key: roulette_log_det(key, half, ones, probes)[0]
    >>> mean = jax.vmap(estimate)(jax.random.split(jax.random.key(1), 10_000)).mean()
    >>> bool(abs(mean - 0.8109) < 0.01)  # 2 log(3 / 2)
    True
  """
  check_sizes(num_terms=num_terms)
  if not 0 < stop < 1:
    raise ValueError(f"stop must be in (0, 1), got {stop}")
  further = jax.random.geometric(key, stop, dtype=jnp.int32)
  weight = lambda k: (1 - stop) ** jnp.minimum(num_terms + 1 - k, 0)
  return _series(residual, x, probes, num_terms + further, weight)


def _series(residual, x, probes, num_terms, weight):
  """Sum `num_terms` terms, which may be traced, with `weight(k)` for term k."""
  x = _checked(residual, x)
  if probes.ndim != 3 or probes.shape[:2] != x.shape or not probes.shape[2]:
    raise ValueError(f"probes must have shape ({x.shape[0]}, {x.shape[1]}, K), got {probes.shape}")
  directions = jnp.moveaxis(probes, 2, 0).astype(x.dtype)  # (K, b, d)
  # The loop's own derivatives are not wanted: those of the surrogate below are.
  pull = jax.tree.map(jax.lax.stop_gradient, jax.vjp(residual, x)[1])
  dot = lambda u, v: jnp.mean(jnp.sum(u * v, axis=2), axis=0)

  def add_term(i, carry):
    u, neumann, total = carry
    k = (i + 1).astype(x.dtype)
    factor = jnp.where(i % 2 == 0, 1, -1) * weight(k)
    neumann = neumann + factor * u  # sum of (-1)^(k+1) w_k (J^T)^(k-1) v
    (u,) = jax.vmap(pull)(u)
    return u, neumann, total + factor / k * dot(u, directions)

  start = directions, jnp.zeros_like(directions), jnp.zeros_like(x[:, 0])
  count = jnp.asarray(num_terms, jnp.int32)
  _, neumann, total = jax.lax.fori_loop(jnp.int32(0), count, add_term, start)
  # d log det(I + J) = tr((I + J)^-1 dJ).
  pushed = jax.vmap(lambda v: jax.jvp(residual, (x,), (v,))[1])(directions)
  surrogate = dot(neumann, pushed)
  return total + surrogate - jax.lax.stop_gradient(surrogate)


def _checked(residual, x):
  """Return x in float32 or wider; raise unless g maps (b, d) to (b, d)."""
  check_vectors("x", x)
  x = widened(x)
  result = jax.eval_shape(residual, x)
  if getattr(result, "shape", None) != x.shape:
    raise ValueError(f"residual must return shape {x.shape}, got {result}")
  return x
