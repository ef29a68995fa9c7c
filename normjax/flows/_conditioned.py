"""A bijector conditioned on what a network makes of the condition."""

from collections.abc import Callable

from jaxtyping import PyTree

from normjax.flows._bijector import Bijector
from normjax.flows._conditional_normal import check_network


class Conditioned(Bijector):
  """Gives a bijector the features that a network computes from the condition, not itself.

  z (B, ...), log_det (B,) = bijector.forward(x, network(cond))

  The network is evaluated once, however many layers of the bijector read its features.

  Args:
    bijector: takes the features as its `cond`.
    network: `network(cond)` computes them: a module, or a function.

  Raises:
    ValueError: if `bijector` is not a `Bijector`, `network` is no function, or there is no `cond`.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from normjax import flows
    >>> coupling = flows.AffineCoupling(jnp.arange(2), cond_dim=3, rngs=nnx.Rngs(0))
    >>> bijector = flows.Conditioned(coupling, nnx.Linear(5, 3, rngs=nnx.Rngs(1)))
    >>> bijector.forward(jnp.ones((4, 2)), jnp.ones((4, 5)))[0].shape
    (4, 2)
  """

  def __init__(self, bijector: Bijector, network: Callable[[PyTree], PyTree]):
    if not isinstance(bijector, Bijector):
      raise ValueError(f"bijector must be a Bijector, got {bijector!r}")
    check_network(network)
    self.bijector, self.network = bijector, network

  def forward(self, x, cond=None):
    """Return what the bijector makes of `x` and the features of `cond`."""
    return self.bijector.forward(x, self.features(cond))

  def inverse(self, z, cond=None):
    """Return what the bijector's inverse makes of `z` and the features of `cond`."""
    return self.bijector.inverse(z, self.features(cond))

  @property
  def constant_logdet(self):
    """Whether that of the bijector is constant."""
    return self.bijector.constant_logdet

  def forward_varying(self, x, cond=None):
    """Return the bijector's `forward_varying` of `x` and the features of `cond`."""
    return self.bijector.forward_varying(x, self.features(cond))

  def inverse_varying(self, z, cond=None):
    """Return the bijector's `inverse_varying` of `z` and the features of `cond`."""
    return self.bijector.inverse_varying(z, self.features(cond))

  def data_init(self, x, cond=None):
    """Start the bijector from data, given the features of `cond`."""
    return self.bijector.data_init(x, self.features(cond))

  def data_init_inverse(self, z, cond=None):
    """Start the bijector from latents, given the features of `cond`."""
    return self.bijector.data_init_inverse(z, self.features(cond))

  def features(self, cond: PyTree) -> PyTree:
    """Return the features of a condition."""
    if cond is None:
      raise ValueError("cond must be given to a conditioned bijector, got None")
    return self.network(cond)
