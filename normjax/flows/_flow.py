"""A normalizing flow: a bijector and the distribution of its latents."""

from typing import TypeVar

from flax import nnx
from jaxtyping import Array, Float, PyTree

from normjax.flows._bijector import Bijector
from normjax.flows._distribution import Distribution


class Flow(Distribution):
  """Gives data the density of its latents.

  log p(x) = log p_Z(z) + log_det,  (z, log_det) = bijector.forward(x),  x (b, ...);
  a sample is bijector.inverse(z) with z drawn from the base at temperature T.

  A flow is a `Distribution`, so it can be the base of another one. `cond` goes to both parts.

  Args:
    bijector: maps data to latents.
    base: the distribution of the latents.

  Raises:
    ValueError: if `bijector` is not a `Bijector` or `base` not a `Distribution`.

  Example:
    >>> import jax
    >>> from normjax import flows
    >>> flow = flows.Flow(flows.ElementwiseAffine(loc=5.0, scale=2.0), flows.StandardNormal((3,)))
    >>> x, log_prob = flow.sample_and_log_prob(jax.random.key(0), 4)
    >>> bool(abs(log_prob - flow.log_prob(x)).max() < 1e-5)
    True
  """

  def __init__(self, bijector: Bijector, base: Distribution):
    if not isinstance(bijector, Bijector):
      raise ValueError(f"bijector must be a flows.Bijector, got {bijector!r}")
    if not isinstance(base, Distribution):
      raise ValueError(f"base must be a flows.Distribution, got {base!r}")
    self.bijector, self.base = bijector, base

  def log_prob(self, x, cond=None):
    """Return log p(x) (b,) in nats, float32 or wider."""
    z, log_det = self.bijector.forward(x, cond)
    return self.base.log_prob(z, cond) + log_det

  def energy(self, x, cond=None):
    """Return E(x) (b,) = -log p_Z(z) - the part of log_det that varies with x.

    It differs from -log p(x) by log Z, see `log_normalizer`; its gradient, and so the score, is the
    same, and takes no determinant of a linear layer (Chao et al., 2023, arXiv 2305.15267).
    """
    z, log_det = self.bijector.forward_varying(x, cond)
    return self.base.energy(z, cond) - log_det

  def sample(self, key, n, cond=None, temperature=1.0):
    """Draw `n` events; a temperature below 1 keeps closer to the mode of the base."""
    return self.bijector.inverse(self.base.sample(key, n, cond, temperature), cond)[0]

  def sample_and_log_prob(
    self, key: Array, n: int, cond: PyTree | None = None, temperature: float | Array = 1.0
  ) -> tuple[Float[Array, "n *event"], Float[Array, "n"]]:
    """Draw `n` events with their log-densities, at the cost of one pass.

    Args:
      key: a PRNG key.
      n: how many events, at least 1.
      cond: what the flow is conditioned on, if it is.
      temperature: how far the base spreads, at least 0.

    Returns:
      `(x, log_prob)`: what `sample` returns, and the log-density (n,) of the model itself, which is
      that at temperature 1 whatever `temperature` is: the two agree with `log_prob(x)`.
    """
    z, log_prob = self.base.sample_and_log_prob(key, n, cond, temperature)
    x, log_det = self.bijector.inverse(z, cond)
    return x, log_prob - log_det


T = TypeVar("T", Bijector, Flow)


def copied(flow: T) -> T:
  """Return a copy of a bijector or a flow that shares nothing with it."""
  if not isinstance(flow, (Bijector, Flow)):
    raise ValueError(f"flow must be a flows.Bijector or a flows.Flow, got {flow!r}")
  graphdef, state = nnx.split(flow)
  return nnx.merge(graphdef, nnx.to_pure_dict(state))


def visit_from_data(flow: Bijector | Flow, x: Float[Array, "b *event"], cond: PyTree | None):
  """Call `data_init` of a flow's bijector, or of a bijector itself, in place."""
  (flow.bijector if isinstance(flow, Flow) else flow).data_init(x, cond)
