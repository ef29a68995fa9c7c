"""Continuous flows: ordinary differential equations that carry data to latents (FFJORD).

What differs from the authors' code (https://arxiv.org/abs/1810.01367): the trace is exact unless
`with_probes` asks for an estimate, time is one more input of a plain network, and gradients are
those of the steps that were taken (diffrax's checkpointed backward pass).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from normjax._sizes import check_sizes
from normjax.blocks import Repeat
from normjax.flows._checks import check_above_zero, check_batch, check_cond
from normjax.flows._injective import orthogonal_probes
from normjax.flows._probes import Estimating
from normjax.flows._widened import widened


class VelocityBlock(nnx.Module):
  """A linear layer of the tanh."""

  def __init__(self, width, param_dtype, rngs):
    self.linear = nnx.Linear(width, width, param_dtype=param_dtype, rngs=rngs)

  def __call__(self, h):
    return self.linear(jnp.tanh(h))


class Velocity(nnx.Module):
  """Maps a time (), points (b, d) and a condition (b, c) to bounded velocities (b, d)."""

  def __init__(self, dim, *, width, depth, cond_dim, param_dtype, rngs):
    options = {"param_dtype": param_dtype, "rngs": rngs}
    self.first = nnx.Linear(dim + 1 + (cond_dim or 0), width, **options)
    make = lambda rngs: VelocityBlock(width, param_dtype, rngs)
    self.blocks = Repeat(make, depth, rngs=rngs)
    self.last = nnx.Linear(width, dim, kernel_init=nnx.initializers.zeros, **options)

  def __call__(self, t, x, cond):
    time = jnp.broadcast_to(t.astype(x.dtype), (x.shape[0], 1))
    inputs = [x, time] if cond is None else [x, time, cond.astype(x.dtype)]
    h: Any = self.first(jnp.concatenate(inputs, axis=1))
    return self.last(jnp.tanh(self.blocks(h)))


class ContinuousFlow(Estimating):
  """Moves every point along the velocity of a network for a unit of time.

  z = x(1),  dx/dt = v(t, x, cond),  x(0) = x,  x (B, D), cond (B, C)
  log_det (B,) = int_0^1 tr(dv/dx) dt

  The inverse runs time backwards. diffrax solves both, with steps that keep the error of every
  example below `tolerance`; results are exact to that, the gradient is that of the steps. A new
  layer is the identity.

  The trace is exact, from D products with the Jacobian. `with_probes` gives a copy that estimates
  it without bias (Hutchinson), from `num_probes` products with vectors that stay through all steps.

  Args:
    dim: D, at least 1.
    width: units of the network's hidden layers.
    depth: number of hidden layers behind the first, scanned; may be 0.
    tolerance: absolute and relative, of a step's error; eps^(3/4) of the dtype by default, 6e-6 in
      float32.
    max_steps: where a solution needs more, latents are NaN.
    num_probes: of the estimate, 1 to D.
    cond_dim: C, or None.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys.

  Raises:
    ImportError: if diffrax is not installed.
    ValueError: if a size or `tolerance` is out of range.

  Reference:
    Chen, Rubanova, Bettencourt, Duvenaud, "Neural Ordinary Differential Equations", 2018,
    arXiv 1806.07366. Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud, "FFJORD: Free-form
    Continuous Dynamics for Scalable Reversible Generative Models", 2018, arXiv 1810.01367.

  Example:
    >>> layer = ContinuousFlow(3, width=8, rngs=nnx.Rngs(0))
    >>> z, log_det = layer.forward(jnp.ones((2, 3)))
    >>> z.shape, log_det
    ((2, 3), Array([0., 0.], dtype=float32))
  """

  def __init__(
    self,
    dim: int,
    *,
    width: int = 64,
    depth: int = 1,
    tolerance: float | None = None,
    max_steps: int = 4096,
    num_probes: int = 1,
    cond_dim: int | None = None,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    _import_diffrax()
    check_sizes(dim=dim, width=width, max_steps=max_steps, cond_dim=cond_dim)
    check_sizes(0, depth=depth)
    if tolerance is not None:
      check_above_zero(tolerance=tolerance)
    if not 1 <= num_probes <= dim:
      raise ValueError(f"num_probes must be 1 to dim = {dim}, got {num_probes}")
    self.dim, self.cond_dim, self.num_probes = dim, cond_dim, num_probes
    self.tolerance, self.max_steps = tolerance, max_steps
    self.velocity = Velocity(
      dim, width=width, depth=depth, cond_dim=cond_dim, param_dtype=param_dtype, rngs=rngs
    )
    self._set_exact()

  def forward(self, x, cond=None):
    """Return `(x(1), log_det)` of points at time 0."""
    check_batch("x", x, (self.dim,))
    return self._solve(x, cond, 0.0, 1.0)

  def inverse(self, z, cond=None):
    """Return `(x(0), log_det)` of points at time 1."""
    check_batch("z", z, (self.dim,))
    return self._solve(z, cond, 1.0, 0.0)

  def _solve(self, x, cond, start, end):
    diffrax = _import_diffrax()
    check_cond(cond, x.shape[0], self.cond_dim)
    cond = None if self.cond_dim is None else cond
    graphdef, state = nnx.split(self.velocity)
    wide = widened(x)

    def rates(t, carry, args):
      state, cond, directions = args
      velocity = lambda x: nnx.merge(graphdef, state)(t, x, cond)
      push = lambda v: jax.jvp(velocity, (carry[0],), (v,))
      rate, pushed = jax.vmap(push, out_axes=(None, 0))(directions)
      return rate, jnp.sum(pushed * directions, axis=(0, 2))

    dtype = wide.dtype
    tolerance = self.tolerance or float(jnp.finfo(dtype).eps) ** 0.75
    controller = diffrax.PIDController(rtol=tolerance, atol=tolerance, norm=_largest_norm)
    solution: Any = diffrax.diffeqsolve(
      diffrax.ODETerm(rates),
      diffrax.Tsit5(),
      jnp.asarray(start, dtype),
      jnp.asarray(end, dtype),
      jnp.asarray((end - start) / 8, dtype),
      (wide, jnp.zeros_like(wide[:, 0])),
      (nnx.to_pure_dict(state), cond, self._directions(wide)),
      stepsize_controller=controller,
      max_steps=self.max_steps,
      throw=False,
    )
    solved = solution.result == diffrax.RESULTS.successful
    z, log_det = (jnp.where(solved, y[-1], jnp.nan) for y in solution.ys)
    return z.astype(x.dtype), log_det

  def _directions(self, x):
    """Return vectors v (K, b, d) with sum_k v v^T = I, exactly or on average."""
    if self.exact:
      units = jnp.eye(self.dim, dtype=x.dtype)[:, None]
      return jnp.broadcast_to(units, (self.dim, *x.shape))
    probes = orthogonal_probes(self.probe_key[...], len(x), self.dim, self.num_probes, x.dtype)
    return jnp.moveaxis(probes, 2, 0) * self.num_probes**-0.5


def _largest_norm(errors):
  """Return the largest error of an example (its root mean square), so that none is averaged away.

  The errors are those of points (b, d) and of log-determinants (b,).
  """
  squares = jnp.mean(errors[0] ** 2, axis=1) + errors[1] ** 2
  # The root of zero has no gradient.
  return jnp.sqrt(jnp.maximum(jnp.max(squares), jnp.finfo(squares.dtype).tiny))


def _import_diffrax():
  try:
    import diffrax
  except ImportError as error:
    raise ImportError("ContinuousFlow needs diffrax: pip install diffrax") from error
  return diffrax
