"""Residual flows: networks x + g(x) that are invertible because g contracts.

What differs from the authors' code (https://arxiv.org/abs/1906.02735): spectral norms are bounded
from above instead of estimated from below, so that g contracts for certain; the log-determinant is
exact unless `with_probes` asks for the estimate; probes of one example are orthogonal.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from normjax._sizes import check_sizes
from normjax.flows._checks import check_batch
from normjax.flows._contraction import solve_residual
from normjax.flows._injective import orthogonal_probes
from normjax.flows._lipschitz_network import LipschitzNetwork
from normjax.flows._probes import Estimating
from normjax.flows._residual_log_det import residual_log_det, roulette_log_det
from normjax.flows._widened import widened


class ResidualFlow(Estimating):
  """Adds a network that contracts.

  z = x + g(x, cond),  x (B, D), cond (B, C), |g(x) - g(y)| <= lipschitz |x - y|
  log_det (B,) = log det(I + g'(x))

  g is linear layers with LipSwish, x sigmoid(softplus(beta) x) / 1.1, between them; each weight is
  divided by an upper bound of its spectral norm, if that is too large. The inverse iterates
  x <- z - g(x), to the last digits, with implicit gradients.

  log_det is exact, from D products with the Jacobian. `with_probes` gives a copy that estimates it
  by `roulette_log_det`, without bias, from `num_probes` products per term.

  Args:
    dim: D, at least 1.
    width: units of the network's hidden layers.
    depth: number of further hidden layers, scanned; may be 0.
    lipschitz: the bound of the network's Lipschitz constant, in (0, 1).
    num_terms: of the estimate, terms of the power series that are always there.
    stop: of the estimate, the probability of every further term to be the last.
    num_probes: of the estimate, 1 to D.
    cond_dim: C, or None.
    param_dtype: dtype of the parameters.
    rngs: source of the parameters' keys.

  Raises:
    ValueError: if a size or an option is out of range.

  Reference:
    Behrmann, Grathwohl, Chen, Duvenaud, Jacobsen, "Invertible Residual Networks", 2018,
    arXiv 1811.00995. Chen, Behrmann, Duvenaud, Jacobsen, "Residual Flows for Invertible Generative
    Modeling", 2019, arXiv 1906.02735.

  Example:
    >>> layer = ResidualFlow(3, width=8, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 3))
    >>> z, log_det = layer.forward(x)
    >>> bool(jnp.allclose(layer.inverse(z)[0], x, atol=1e-4))
    True
  """

  def __init__(
    self,
    dim: int,
    *,
    width: int = 64,
    depth: int = 1,
    lipschitz: float = 0.97,
    num_terms: int = 2,
    stop: float = 0.5,
    num_probes: int = 1,
    cond_dim: int | None = None,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    check_sizes(dim=dim, width=width, num_terms=num_terms, cond_dim=cond_dim)
    check_sizes(0, depth=depth)
    if not 0 < lipschitz < 1:
      raise ValueError(f"lipschitz must be in (0, 1), got {lipschitz}")
    if not 0 < stop < 1:
      raise ValueError(f"stop must be in (0, 1), got {stop}")
    if not 1 <= num_probes <= dim:
      raise ValueError(f"num_probes must be 1 to dim = {dim}, got {num_probes}")
    self.dim, self.num_terms, self.stop, self.num_probes = dim, num_terms, stop, num_probes
    self.network = LipschitzNetwork(
      dim, width=width, depth=depth, lipschitz=lipschitz, cond_dim=cond_dim,
      param_dtype=param_dtype, rngs=rngs,
    )  # fmt: skip
    self._set_exact()

  def forward(self, x, cond=None):
    """Return `(x + g(x), log_det)`."""
    check_batch("x", x, (self.dim,))
    residual = lambda v: self.network(v, cond)
    z = widened(x) + residual(widened(x))
    return z.astype(x.dtype), self._log_det(residual, widened(x))

  def inverse(self, z, cond=None):
    """Return `(x, log_det)`, x by iteration."""
    check_batch("z", z, (self.dim,))
    residual = lambda v: self.network(v, cond)
    x = solve_residual(residual, widened(z))
    return x.astype(z.dtype), -self._log_det(residual, x)

  def _log_det(self, residual, x):
    if self.exact:
      return residual_log_det(residual, x)
    for_probes, for_terms = jax.random.split(self.probe_key[...])
    probes = orthogonal_probes(for_probes, len(x), self.dim, self.num_probes, x.dtype)
    options = {"num_terms": self.num_terms, "stop": self.stop}
    return roulette_log_det(for_terms, residual, x, probes, **options)
