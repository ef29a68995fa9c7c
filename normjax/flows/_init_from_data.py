"""The data-dependent start of a flow, as a function that is called once."""

from flax import nnx
from jaxtyping import Array, Float, PyTree

from normjax.flows._bijector import Bijector
from normjax.flows._flow import T, copied, visit_from_data


def init_from_data(flow: T, x: Float[Array, "b *event"], cond: PyTree | None = None) -> T:
  """Return a flow with every layer that starts from data, an `ActNorm` say, started from a batch.

  Layer k sees what the layers before it, which are already initialized, make of `x` (B, ...):
  through `Chain`, `Scan` (a scan over layers), `Inverted`, `MultiScale`, and the networks of
  couplings that hold an `ActNorm`. An `Elementwise` starts where its transform has a method
  `init_raw`, as mixtures do, and it maps data to latents: inverted, it stays. All other parameters
  stay; doing it twice with the same batch changes nothing. A bijector of one's own takes part by
  its method `data_init`.

  Under jit, with a batch that is sharded over devices, the statistics are those of the whole batch.

  Args:
    flow: a bijector, or a `Flow`; it is left as it is.
    x: a batch of data, larger is better.
    cond: what the flow is conditioned on, if it is.

  Returns:
    A new flow of the same structure that shares nothing with the old one.

  Raises:
    ValueError: if `flow` is neither, a channel of `x` is constant at an `ActNorm` that does not
      allow it, or `x` is not finite; under jit, where values can't be looked at, parameters become
      NaN.

  Reference:
    Kingma, Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions", 2018,
    arXiv 1807.03039; Meng, Song, Song, Ermon, "Gaussianization Flows", 2020, arXiv 2003.01941.

  Example:
    >>> import jax
    >>> from normjax import flows
    >>> chain = flows.Chain([flows.ActNorm(2), flows.LeakyTanh(), flows.ActNorm(2)])
    >>> x = 5 + 3 * jax.random.normal(jax.random.key(0), (256, 2))
    >>> z, _ = flows.init_from_data(chain, x).forward(x)
    >>> bool(abs(z.mean(0)).max() < 1e-5), bool(abs(z.std(0) - 1).max() < 1e-5)
    (True, True)
  """
  new = copied(flow)
  visit_from_data(new, x, cond)
  for _, module in nnx.iter_modules(new):
    if isinstance(module, Bijector):
      module.check_initialized()
  return new
