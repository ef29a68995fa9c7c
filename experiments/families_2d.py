"""Families of flows over points of two dimensions, each in its usual form and small enough to fit.

`make(size, rngs)` builds one. `size.layers` is meant for couplings: of layers that bend little
(planar, Sylvester, marginals) there are more, of those that take a network or an integral for each
value fewer. Several begin with an `ActNorm`, so that `init_from_data` standardizes points.
"""

import dataclasses
import importlib.util
from collections.abc import Callable, Iterable

import jax.numpy as jnp
from flax import nnx

from experiments import data
from normjax import flows, models

_BOUND = 5.0  # splines are the identity outside of it; all toy densities lie inside
_ORDERS = jnp.array([[0, 1], [1, 0]])


@dataclasses.dataclass(frozen=True)
class Size:
  """How large a flow is.

  Attributes:
    layers: of a flow of couplings, an even number.
    width: units of its hidden layers.
  """

  layers: int = 8
  width: int = 32


Make = Callable[[Size, nnx.Rngs], flows.Flow]


def _scanned(make: Callable[..., flows.Bijector], layers: int, rngs: nnx.Rngs) -> flows.Flow:
  """Scan `make(rngs, order)` with orders that turn round from layer to layer."""
  orders = jnp.tile(_ORDERS, (layers // 2, 1))
  return flows.Flow(flows.Scan(make, len(orders), orders, rngs=rngs), flows.StandardNormal((2,)))


def _standardized(flow: flows.Flow) -> flows.Flow:
  return flows.Flow(flows.Chain([flows.ActNorm(2), flow.bijector]), flow.base)


def _few(size: Size) -> int:
  """Return half as many layers, an even number."""
  return max(2, size.layers // 4 * 2)


def _affine(size: Size, rngs: nnx.Rngs) -> flows.Flow:
  make = lambda rngs, order: flows.AffineCoupling(order, scale="tanh", width=size.width, rngs=rngs)
  return _scanned(make, size.layers, rngs)


def _spline(size: Size, rngs: nnx.Rngs) -> flows.Flow:
  return models.rqs_coupling_flow(
    2, num_layers=size.layers, width=size.width, tail_bound=_BOUND, rngs=rngs
  )


def _maf(size: Size, rngs: nnx.Rngs) -> flows.Flow:
  return models.maf(2, num_layers=size.layers, width=size.width, rngs=rngs)


def _autoregressive(
  transform: Callable[[nnx.Rngs], flows.Transform], layers: int, size: Size, rngs: nnx.Rngs
) -> flows.Flow:
  make = lambda rngs, order: flows.MaskedAutoregressive(
    2, transform(rngs), order=order, width=size.width, rngs=rngs
  )
  return _scanned(make, layers, rngs)


def _spline_autoregressive(size: Size, rngs: nnx.Rngs) -> flows.Flow:
  transform = lambda rngs: flows.RQSTransform(tail_bound=_BOUND, identity_init=True)
  return _autoregressive(transform, size.layers, size, rngs)


def _ferumal(size: Size, rngs: nnx.Rngs) -> flows.Flow:
  return models.ferumal_flow(2, num_layers=size.layers, split="alternating", rngs=rngs)


def _deep_sigmoidal(size: Size, rngs: nnx.Rngs) -> flows.Flow:
  transform = lambda rngs: flows.DeepSigmoidalTransform(8)
  return _standardized(_autoregressive(transform, 2, size, rngs))


def _block_autoregressive(size: Size, rngs: nnx.Rngs) -> flows.Flow:
  make = lambda rngs, order: flows.Chain(
    [
      flows.ActNorm(2),
      flows.Permutation(order),
      flows.BlockAutoregressive(2, width=size.width, rngs=rngs),
    ]
  )
  return _scanned(make, _few(size), rngs)


def _unconstrained_monotonic(size: Size, rngs: nnx.Rngs) -> flows.Flow:
  transform = lambda rngs: flows.UMNNTransform(8, width=size.width // 2, num_nodes=13, rngs=rngs)
  return _standardized(_autoregressive(transform, 2, size, rngs))


def _gaussianization(size: Size, rngs: nnx.Rngs) -> flows.Flow:
  # A new mixture has the deviation 2.2, which is that of its input here.
  make = lambda rngs: flows.Chain(
    [
      flows.HouseholderLinear(2, rngs=rngs),
      flows.ActNorm(2),
      flows.ElementwiseAffine(0.0, 1 / 2.2),
      flows.Elementwise(flows.GaussianizationTransform(8), (2,)),
    ]
  )
  return flows.Flow(flows.Scan(make, _few(size), rngs=rngs), flows.StandardNormal((2,)))


def _many(layer: Callable[..., flows.Bijector], size: Size, rngs: nnx.Rngs) -> flows.Flow:
  scan = flows.Scan(lambda rngs: layer(2, rngs=rngs), 4 * size.layers, rngs=rngs)
  return _standardized(flows.Flow(scan, flows.StandardNormal((2,))))


def _planar(size: Size, rngs: nnx.Rngs) -> flows.Flow:
  return _many(flows.PlanarFlow, size, rngs)


def _sylvester(size: Size, rngs: nnx.Rngs) -> flows.Flow:
  return _many(flows.SylvesterFlow, size, rngs)


def _residual(size: Size, rngs: nnx.Rngs) -> flows.Flow:
  # A layer can't stretch by more than 2; the scales between them can.
  make = lambda rngs: flows.Chain(
    [flows.ActNorm(2), flows.ResidualFlow(2, width=size.width, rngs=rngs)]
  )
  return flows.Flow(flows.Scan(make, size.layers, rngs=rngs), flows.StandardNormal((2,)))


def _continuous(size: Size, rngs: nnx.Rngs) -> flows.Flow:
  layer = flows.ContinuousFlow(2, width=size.width, tolerance=1e-4, rngs=rngs)
  return _standardized(flows.Flow(layer, flows.StandardNormal((2,))))


FAMILIES: dict[str, Make] = {
  "affine coupling": _affine,
  "spline coupling": _spline,
  "MAF": _maf,
  "autoregressive spline": _spline_autoregressive,
  "Ferumal": _ferumal,
  "deep sigmoidal": _deep_sigmoidal,
  "block autoregressive": _block_autoregressive,
  "unconstrained monotonic": _unconstrained_monotonic,
  "Gaussianization": _gaussianization,
  "planar": _planar,
  "Sylvester": _sylvester,
  "residual": _residual,
  "continuous": _continuous,
}

# The package without which a family can't be built.
NEEDS = {"continuous": "diffrax"}


def chosen(names: list[str], known: Iterable[str] = FAMILIES) -> list[str]:
  """Return the families of a flag --only: all that need no further package, if it is empty.

  Raises:
    ValueError: if a family is not known, or lacks its package.
  """
  for name in names:
    data.check_name("--only", name, known)
    package = NEEDS.get(name)
    if package and not importlib.util.find_spec(package):
      raise ValueError(f"--only: {name!r} needs {package}: pip install {package}")
  return names or [name for name in known if name not in NEEDS]
