"""Densities as energies: their score, their normalizer, and samples that need the score alone.

p(x) = exp(-E(x)) / Z. `Distribution.energy` gives E, a flow's without the log-determinants of
linear layers (https://arxiv.org/abs/2305.15267). An energy here is any function of a batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from normjax._sizes import check_sizes
from normjax.flows._checks import check_above_zero, check_batch, is_concrete
from normjax.flows._distribution import Distribution

Energy = Callable[[Float[Array, "b *event"]], Float[Array, "b"]]


def score(energy: Energy, x: Float[Array, "b *event"]) -> Float[Array, "b *event"]:
  """Return the score of a density that is given by its energy.

  s(x) = grad_x log p(x) = -grad_x E(x),  x and s (b, ...)

  Args:
    energy: maps x to E (b,), each example by itself.
    x: data.

  Returns:
    The score of each example.

  Raises:
    ValueError: if `x` is no floating batch, or `energy` returns another shape than (b,).

  Reference:
    Chao, Sun, Hsu, Kira, Lee, "Training Energy-Based Normalizing Flow with Score-Matching
    Objectives", 2023, arXiv 2305.15267.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> flows.score(flows.StandardNormal((2,)).energy, jnp.array([[1.0, -3.0]]))
    Array([[-1.,  3.]], dtype=float32)
  """
  check_batch("x", x)
  return jax.grad(lambda x: -jnp.sum(energies(energy, x)))(x)


def energies(energy: Energy, x: Float[Array, "b *event"]) -> Float[Array, "b"]:
  """Return E(x) (b,), or raise if it has another shape."""
  value = energy(x)
  if value.shape != x.shape[:1]:
    raise ValueError(f"energy must return shape {x.shape[:1]}, got {value.shape}")
  return value


def log_normalizer(
  density: Distribution, x: Float[Array, "b *event"], cond: PyTree | None = None
) -> Float[Array, "b"]:
  """Return the log of the normalizer that the energy of a density leaves out.

  log Z = -E(x) - log p(x)  (b,), the same for every x

  of a flow: minus the log-determinants that are constant. After training by score matching one
  example suffices: log p(x) = -E(x) - log Z for all others.

  Args:
    density: a `Flow`, or any other distribution.
    x: any data, for example zeros.
    cond: what the density is conditioned on, if it is; log Z may depend on it.

  Returns:
    log Z per example, in nats.

  Raises:
    ValueError: if a linear layer is singular, so that it is not finite (it is looked at unless it
      is being traced).

  Reference:
    Chao, Sun, Hsu, Kira, Lee, "Training Energy-Based Normalizing Flow with Score-Matching
    Objectives", 2023, arXiv 2305.15267.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> flow = flows.Flow(flows.ElementwiseAffine(0.0, 2.0), flows.StandardNormal((3,)))
    >>> round(float(flows.log_normalizer(flow, jnp.zeros((1, 3)))[0]), 4)  # 3 log 2
    2.0794
  """
  log_z = -density.energy(x, cond) - density.log_prob(x, cond)
  if is_concrete(log_z) and not np.all(np.isfinite(log_z)):
    raise ValueError(
      f"density must have a finite log-normalizer, got {log_z}: a linear layer is singular, or x "
      "lies outside of the support"
    )
  return log_z


def langevin(
  energy: Energy, x: Float[Array, "b *event"], key: Array, *, step_size: float, num_steps: int
) -> Float[Array, "b *event"]:
  """Draw samples by the score alone, walking downhill with noise.

  x <- x + (h^2 / 2) s(x) + h N(0, I),  num_steps times, scanned

  Unadjusted: the stationary density is p only as h goes to 0. A flow's `sample` is exact; this is
  for energies without one, and for flows whose linear layers are too large to invert.

  Args:
    energy: maps x to E (b,).
    x: where to start.
    key: a PRNG key.
    step_size: h, above 0.
    num_steps: at least 1.

  Returns:
    Where the walks end, of x's shape.

  Raises:
    ValueError: if `step_size` or `num_steps` is out of range, or as `score`.

  Reference:
    Chao, Sun, Hsu, Kira, Lee, "Training Energy-Based Normalizing Flow with Score-Matching
    Objectives", 2023, arXiv 2305.15267.

  Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> normal = flows.StandardNormal((1,))
    >>> start = jnp.full((2000, 1), 4.0)
    >>> x = flows.langevin(normal.energy, start, jax.random.key(0), step_size=0.3, num_steps=200)
    >>> bool(abs(x.mean()) < 0.1), bool(abs(x.std() - 1) < 0.1)
    (True, True)
  """
  check_sizes(num_steps=num_steps)
  check_above_zero(step_size=step_size)

  def step(x, key):
    noise = jax.random.normal(key, x.shape, x.dtype)
    return x + step_size**2 / 2 * score(energy, x) + step_size * noise, None

  return jax.lax.scan(step, x, jax.random.split(key, num_steps))[0]


def inpaint(
  energy: Energy,
  x: Float[Array, "b *event"],
  known: Bool[Array, "*event"],
  key: Array,
  *,
  step_size: float,
  num_steps: int,
) -> Float[Array, "b *event"]:
  """Draw the unknown entries of examples given the known ones, by the score alone.

  u <- u + (h^2 / 2) s_u(x) + h N(0, I),  x = the known entries and u,  num_steps times, scanned

  s_u is also the score of p(u | known): the walk is that of `langevin` under the energy of u alone,
  and so are its limits. Known entries come back as they are. A regularizer, such as the distance of
  x from a blurred x, is a term to add to the energy.

  Args:
    energy: maps x to E (b,).
    x: examples; where they are unknown, what to start from.
    known: what stays, boolean, of x's shape, or of an event's where it is the same for all.
    key: a PRNG key.
    step_size: h, above 0.
    num_steps: at least 1.

  Returns:
    The examples with their unknown entries drawn.

  Raises:
    ValueError: if `known` is not boolean or has another shape, or as `langevin`.

  Reference:
    Chao, Sun, Hsu, Kira, Lee, "Training Energy-Based Normalizing Flow with Score-Matching
    Objectives", 2023, arXiv 2305.15267.

  Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> normal = flows.StandardNormal((2,))
    >>> x, known = jnp.full((2000, 2), 4.0), jnp.array([True, False])
    >>> x = flows.inpaint(normal.energy, x, known, jax.random.key(0), step_size=0.3, num_steps=200)
    >>> bool((x[:, 0] == 4).all()), bool(abs(x[:, 1].mean()) < 0.1)
    (True, True)
  """
  check_batch("x", x)
  if known.dtype != jnp.bool_ or known.shape not in (x.shape, x.shape[1:]):
    raise ValueError(
      f"known must be boolean of shape {x.shape} or {x.shape[1:]}, got {known.dtype} of "
      f"{known.shape}"
    )
  known = jnp.broadcast_to(known, x.shape)
  filled = lambda u: jnp.where(known, x, u)
  # Where an entry is known, u takes no part in the energy: its walk there is thrown away.
  of_unknown = lambda u: energy(filled(u))
  return filled(langevin(of_unknown, x, key, step_size=step_size, num_steps=num_steps))
