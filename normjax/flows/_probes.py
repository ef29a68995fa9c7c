"""Random log-determinants in flows: an explicit call gives layers the keys of their probes."""

import jax
from flax import nnx
from jaxtyping import Array

from normjax.flows._bijector import Bijector
from normjax.flows._flow import T, copied


class ProbeKey(nnx.Variable):
  """The PRNG key of a layer's probes, fixed within a step."""


class Estimating(Bijector):
  """A bijector whose log-determinant is exact, or an estimate in a copy that `with_probes` makes.

  Both directions estimate with the same probes, so `inverse` still gives minus what `forward`
  does, and nothing is drawn from hidden state.
  """

  def _set_exact(self) -> None:
    self.exact = True
    self.probe_key = ProbeKey(jax.random.key(0))


def with_probes(flow: T, key: Array) -> T:
  """Return a copy of a flow whose layers estimate their log-determinants where they can.

  log_prob(x) = log p(z) + sum of estimates,  each unbiased, or as its layer says;  x (b, ...)

  Layers such as `ResidualFlow` and `ContinuousFlow` compute their log-determinants exactly, which
  takes d products with a Jacobian. In the copy each has a key of its own, also in a `Scan`, from
  which it draws probes in every call. Give every training step a new key, inside of jit: the copy
  costs nothing there. Parameters are those of `flow`, and gradients reach them.

  Args:
    flow: a bijector, or a `Flow`; it is left as it is.
    key: a PRNG key.

  Returns:
    A flow of the same class and parameters.

  Raises:
    ValueError: if `flow` is neither, or has no such layer.

  Example:
    >>> from normjax import flows
    >>> layer = flows.ResidualFlow(3, width=8, rngs=nnx.Rngs(0))
    >>> x = jax.numpy.ones((2, 3))
    >>> exact, estimate = layer.forward(x), flows.with_probes(layer, jax.random.key(1)).forward(x)
    >>> bool((exact[0] == estimate[0]).all()), bool((exact[1] == estimate[1]).any())
    (True, False)
  """
  new = copied(flow)
  layers = [module for _, module in nnx.iter_modules(new) if isinstance(module, Estimating)]
  if not layers:
    raise ValueError(f"flow must have a layer that estimates, such as ResidualFlow, got {flow!r}")
  for layer, layer_key in zip(layers, jax.random.split(key, len(layers)), strict=True):
    layer.exact = False
    # The layers of a `Scan` have their keys stacked.
    layer.probe_key = ProbeKey(jax.random.split(layer_key, layer.probe_key.shape))
  return new
