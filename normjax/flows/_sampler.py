"""Flows for samplers: the interface of NumPyro's and distrax's distributions, and NeuTra.

Our distributions take batches; theirs take any leading shape, events without a batch axis, and a
`sample_shape`. `Sampler` offers that without importing either; `to_numpyro` and `to_distrax` return
true members of their families, and import them only when called.
"""

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from normjax.flows._bijector import Bijector
from normjax.flows._distribution import Distribution
from normjax.flows._flow import Flow
from normjax.flows._widened import widened


class Sampler:
  """Offers a flow through the methods that NumPyro, distrax and TFP agree upon.

  log_prob: (*batch, *event) -> (*batch);  sample: -> (*sample_shape, *event)

  A plain object, not a module: it holds the flow, and one condition if there is one. `event_shape`
  is the shape of one event, `batch_shape` always ().

  Args:
    flow: any `flows.Distribution`.
    cond: the condition of a single event, without a batch axis, or None.
    support: `support(x) -> (*batch)` booleans, where the density may be positive; all finite events
      by default.

  Raises:
    ValueError: if `flow` is not a `flows.Distribution`.

  Example:
    >>> from normjax import flows
    >>> sampler = flows.Sampler(flows.StandardNormal((2,)))
    >>> x = sampler.sample(jax.random.key(0), (4, 3))
    >>> x.shape, sampler.log_prob(x).shape, sampler.log_prob(x[0, 0]).shape
    ((4, 3, 2), (4, 3), ())
  """

  batch_shape = ()

  def __init__(
    self,
    flow: Distribution,
    cond: PyTree | None = None,
    *,
    support: Callable[[Array], Array] | None = None,
  ):
    if not isinstance(flow, Distribution):
      raise ValueError(f"flow must be a flows.Distribution, got {flow!r}")
    self.flow, self.cond = flow, jax.tree.map(jnp.asarray, cond)
    one = jax.eval_shape(lambda: flow.sample(jax.random.key(0), 1, self._conds(1)))
    self.event_shape, self.dtype = one.shape[1:], one.dtype
    self.support = self._finite if support is None else support

  def _conds(self, n):
    return jax.tree.map(lambda c: jnp.broadcast_to(c[None], (n, *c.shape)), self.cond)

  def _finite(self, x):
    return jnp.all(jnp.isfinite(x), axis=tuple(range(-len(self.event_shape), 0)))

  def log_prob(self, value: Float[Array, "*batch_and_event"]) -> Float[Array, "*batch"]:
    """Return log p(value) for every event; leading axes are free."""
    value = jnp.asarray(value)
    split = value.ndim - len(self.event_shape)
    if value.shape[max(split, 0) :] != self.event_shape:
      event = ", ".join(map(str, self.event_shape))
      raise ValueError(f"value must have shape (..., {event}), got {value.shape}")
    n = math.prod(value.shape[:split])
    log_prob = self.flow.log_prob(value.reshape(n, *self.event_shape), self._conds(n))
    return log_prob.reshape(value.shape[:split])

  def sample(
    self,
    key: Array | None = None,
    sample_shape: Sequence[int] | int | np.integer = (),
    *,
    seed: Array | None = None,
  ) -> Float[Array, "*sample_and_event"]:
    """Draw (*sample_shape, *event) events with `key`, which distrax calls `seed`."""
    return self.sample_and_log_prob(key, sample_shape, seed=seed)[0]

  def sample_and_log_prob(
    self,
    key: Array | None = None,
    sample_shape: Sequence[int] | int | np.integer = (),
    *,
    seed: Array | None = None,
  ) -> tuple[Float[Array, "*sample_and_event"], Float[Array, "*sample"]]:
    """Draw events likewise, with their log-densities at the cost of one pass."""
    given = [k for k in (key, seed) if k is not None]
    if len(given) != 1:
      raise ValueError("key or seed must be given, and not both")
    shape = tuple(np.atleast_1d(sample_shape).tolist())
    n = math.prod(shape)
    x, log_prob = self.flow.sample_and_log_prob(given[0], n, self._conds(n))
    return x.reshape(*shape, *self.event_shape), log_prob.reshape(shape)


def to_numpyro(flow: Distribution, cond: PyTree | None = None, *, support: Any = None) -> Any:
  """Return a flow as a `numpyro.distributions.Distribution`.

  log_prob: (*batch, *event) -> (*batch);  sample(key, sample_shape) -> (*sample_shape, *event)

  Args:
    flow: any `flows.Distribution`.
    cond: the condition of a single event, or None.
    support: a NumPyro constraint; real vectors by default.

  Returns:
    The distribution, for `numpyro.sample("x", flows.to_numpyro(flow))`.

  Raises:
    ImportError: if NumPyro is not installed.

  Example:
    >>> from normjax import flows
    >>> try:
    ...   event_shape = flows.to_numpyro(flows.StandardNormal((2,))).event_shape
    ... except ImportError:
    ...   event_shape = (2,)  # NumPyro is optional
    >>> event_shape
    (2,)
  """
  numpyro = _optional("numpyro.distributions", "to_numpyro", "numpyro")
  sampler = Sampler(flow, cond)
  rank = len(sampler.event_shape)
  real = numpyro.constraints.independent(numpyro.constraints.real, rank)

  class NumpyroFlow(numpyro.Distribution):
    reparametrized_params: list[str] = []

    def __init__(self, *, validate_args=None):
      super().__init__((), sampler.event_shape, validate_args=validate_args)

    @property
    def support(self):
      return real if support is None else support

    def sample(self, key, sample_shape=()):
      return sampler.sample(key, sample_shape)

    def sample_with_intermediates(self, key, sample_shape=()):
      return sampler.sample(key, sample_shape), []

    def log_prob(self, value, intermediates=None):
      return sampler.log_prob(value)

  return NumpyroFlow()


def to_distrax(flow: Distribution, cond: PyTree | None = None) -> Any:
  """Return a flow as a `distrax.Distribution`.

  log_prob: (*batch, *event) -> (*batch);  sample(seed=key, sample_shape=shape) -> (*shape, *event)

  Args:
    flow: any `flows.Distribution`.
    cond: the condition of a single event, or None.

  Returns:
    The distribution.

  Raises:
    ImportError: if distrax is not installed.

  Example:
    >>> from normjax import flows
    >>> try:
    ...   event_shape = flows.to_distrax(flows.StandardNormal((2,))).event_shape
    ... except ImportError:
    ...   event_shape = (2,)  # distrax is optional
    >>> event_shape
    (2,)
  """
  distrax = _optional("distrax", "to_distrax", "distrax")
  sampler = Sampler(flow, cond)

  class DistraxFlow(distrax.Distribution):
    @property
    def event_shape(self):
      return sampler.event_shape

    def log_prob(self, value):
      return sampler.log_prob(value)

    def _sample_n(self, key, n):
      return sampler.sample(key, (n,))

    def _sample_n_and_log_prob(self, key, n):
      return sampler.sample_and_log_prob(key, (n,))

  return DistraxFlow()


def pulled_back_potential(
  flow: Flow | Bijector, energy: Callable[..., Array], cond: PyTree | None = None
) -> Callable[[Float[Array, "n *latent"]], Float[Array, "n"]]:
  """Return an energy as a function of a flow's latents, where samplers move easily (NeuTra).

  U_z(z) = U(x) - log|det dx/dz|,  (x, log_det) = bijector.inverse(z);  z and x (n, ...)

  If z is distributed as exp(-U_z), x is as exp(-U). A flow that is fitted to the energy, for
  example by `reverse_kl`, makes U_z close to that of its base: Hamiltonian Monte Carlo mixes well
  there, and corrects what the flow has wrong.

  Args:
    flow: a flow, or its bijector.
    energy: U, (n, ...) -> (n,).
    cond: what the flow is conditioned on, for n events, or None.

  Returns:
    `potential(z) -> (n,)`; for samplers of single states: `lambda z: potential(z[None])[0]`. Map
    their chains back by `bijector.inverse`.

  Raises:
    ValueError: if `flow` is neither.

  Reference:
    Hoffman, Sountsov, Dillon, Langmore, Tran, Vasudevan, "NeuTra-lizing Bad Geometry in Hamiltonian
    Monte Carlo Using Neural Transport", 2019, arXiv 1903.03704.

  Example:
    >>> from normjax import flows
    >>> energy = lambda x: jnp.sum(((x - 3) / 100) ** 2, axis=1) / 2
    >>> potential = flows.pulled_back_potential(flows.ElementwiseAffine(3.0, 100.0), energy)
    >>> potential(jnp.array([[0.0], [2.0]])) + jnp.log(100)  # that of N(0, 1)
    Array([0., 2.], dtype=float32)
  """
  if not isinstance(flow, (Flow, Bijector)):
    raise ValueError(f"flow must be a flows.Flow or a flows.Bijector, got {flow!r}")
  bijector = flow.bijector if isinstance(flow, Flow) else flow

  def potential(z):
    x, log_det = bijector.inverse(z, cond)
    return widened(energy(x)) - log_det

  return potential


def _optional(module, function, package):
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ImportError(f"{function} needs {package}: pip install {package}") from error
