"""Compositions of bijectors: one after the other, and the other way round."""

from collections.abc import Sequence

from flax import nnx

from normjax.flows._bijector import Bijector
from normjax.flows._checks import check_batch, check_parts
from normjax.flows._reversible import log_det_zeros


class Chain(Bijector):
  """Applies several bijectors in order.

  z = f_L( ... f_1(x)),  log_det (B,) = sum of theirs;  `inverse` undoes the last one first.

  Every bijector gets the same `cond`. The empty chain is the identity. A stack of layers of one
  structure compiles faster as a `Scan`.

  Args:
    bijectors: a list or tuple of bijectors, the one next to the data first.

  Raises:
    ValueError: if an entry is not a `Bijector`, or stands there twice (modules share no
      parameters).

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> chain = flows.Chain([flows.Logit(alpha=0.05), flows.ElementwiseAffine(loc=0.0, scale=2.0)])
    >>> z, log_det = chain.forward(jnp.full((1, 3), 0.5))
    >>> round(float(log_det[0]), 3)  # 3 log(0.9 / 0.5^2 / 2)
    1.763
  """

  def __init__(self, bijectors: Sequence[Bijector]):
    check_parts("bijectors", bijectors, Bijector, "layer")
    self.bijectors = nnx.List(bijectors)

  @property
  def constant_logdet(self):
    """Whether all of theirs are constant."""
    return all(bijector.constant_logdet for bijector in self.bijectors)

  def forward(self, x, cond=None):
    """Apply the bijectors first to last; return `(z, log_det)`."""
    return self._run("x", x, [bijector.forward for bijector in self.bijectors], cond)

  def inverse(self, z, cond=None):
    """Undo the bijectors last to first; return `(x, log_det)`."""
    return self._run("z", z, [bijector.inverse for bijector in reversed(self.bijectors)], cond)

  def forward_varying(self, x, cond=None):
    """Return `(z, log_det)` of those log-determinants, and parts of them, that vary with x."""
    return self._run("x", x, [bijector.forward_varying for bijector in self.bijectors], cond)

  def inverse_varying(self, z, cond=None):
    """Return `(x, log_det)` likewise."""
    steps = [bijector.inverse_varying for bijector in reversed(self.bijectors)]
    return self._run("z", z, steps, cond)

  def _run(self, name, x, steps, cond):
    check_batch(name, x)
    log_det = log_det_zeros(x)
    for step in steps:
      x, step_log_det = step(x, cond)
      log_det = log_det + step_log_det
    return x, log_det

  def data_init(self, x, cond=None):
    """Start each bijector from what those before it make of `x`; return the latent."""
    for bijector in self.bijectors:
      x = bijector.data_init(x, cond)
    return x

  def data_init_inverse(self, z, cond=None):
    """Start each bijector from what those after it make of `z`; return the data."""
    for bijector in reversed(self.bijectors):
      z = bijector.data_init_inverse(z, cond)
    return z


class Inverted(Bijector):
  """Swaps the directions of a bijector: `forward` is its `inverse`, and the reverse.

  z (B, ...), log|det dz/dx| (B,) = bijector.inverse(x).

  It turns a bijector into the convention of distrax, TFP and flowjax, whose `forward` maps latent
  to data; and a layer that is fast in one direction into one that is fast in the other.

  Args:
    bijector: what to invert.

  Raises:
    ValueError: if `bijector` is not a `Bijector`.

  Example:
    >>> import jax.numpy as jnp
    >>> from normjax import flows
    >>> sigmoid = flows.Inverted(flows.Logit(alpha=0.0))
    >>> sigmoid.forward(jnp.zeros((1, 2)))[0]
    Array([[0.5, 0.5]], dtype=float32)
  """

  def __init__(self, bijector: Bijector):
    if not isinstance(bijector, Bijector):
      raise ValueError(f"bijector must be a Bijector, got {bijector!r}")
    self.bijector = bijector

  @property
  def constant_logdet(self):
    """Whether that of the wrapped bijector is constant."""
    return self.bijector.constant_logdet

  def forward(self, x, cond=None):
    """Return the wrapped bijector's `inverse(x)`."""
    return self.bijector.inverse(x, cond)

  def inverse(self, z, cond=None):
    """Return the wrapped bijector's `forward(z)`."""
    return self.bijector.forward(z, cond)

  def forward_varying(self, x, cond=None):
    """Return the wrapped bijector's `inverse_varying(x)`."""
    return self.bijector.inverse_varying(x, cond)

  def inverse_varying(self, z, cond=None):
    """Return the wrapped bijector's `forward_varying(z)`."""
    return self.bijector.forward_varying(z, cond)

  def data_init(self, x, cond=None):
    """Start the wrapped bijector in its inverse direction."""
    return self.bijector.data_init_inverse(x, cond)

  def data_init_inverse(self, z, cond=None):
    """Start the wrapped bijector in its forward direction."""
    return self.bijector.data_init(z, cond)
