"""Flows of vectors, of this library and of others: spline couplings and autoregressive flows."""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.benchmarks._flow_jobs import (
  NOISE,
  JaxFlow,
  TorchFlow,
  jax_peer,
  perturbed,
  torch_peer,
)
from experiments.benchmarks._work import Work
from normjax import flows, models

BATCH, DIM = 512, 8
_SPLINES = {"layers": 6, "width": 64, "depth": 2, "bins": 8, "bound": 3.0}
_MADE = {"layers": 5, "width": 128}
_INJECTIVE = {"batch": 128, "dim": 64, "latents": 16}


def nnx_flow(flow: flows.Flow, *, noise: float = NOISE) -> JaxFlow:
  """Take a flow of this library apart, with noise on its parameters."""
  graphdef, params, rest = nnx.split(flow, nnx.Param, ...)
  params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
  merge = lambda params: nnx.merge(graphdef, params, rest)
  latent = flow.base.sample(jax.random.key(0), 1).shape[1:]
  return JaxFlow(
    perturbed(params, noise),
    lambda params, x: -jnp.mean(merge(params).log_prob(x)),
    lambda params, z: merge(params).bijector.inverse(z.reshape(len(z), *latent))[0],
  )


def rqs_flow(shape: tuple[int, ...], layers: int) -> JaxFlow:
  """Build the spline flow of the benchmark with another number of layers."""
  return nnx_flow(
    models.rqs_coupling_flow(
      shape[0], num_layers=layers, width=_SPLINES["width"], depth=_SPLINES["depth"],
      num_bins=_SPLINES["bins"], tail_bound=_SPLINES["bound"], rngs=nnx.Rngs(0),
    )
  )  # fmt: skip


def _made(shape: tuple[int, ...]) -> JaxFlow:
  (dim,) = shape
  orders = jnp.stack([jnp.arange(dim)[:: (-1) ** i] for i in range(_MADE["layers"])])
  make = lambda rngs, order: flows.MaskedAutoregressive(
    dim, order=order, width=_MADE["width"], depth=1, residual=False, rngs=rngs
  )
  scan = flows.Scan(make, _MADE["layers"], orders, rngs=nnx.Rngs(0))
  return nnx_flow(flows.Flow(scan, flows.StandardNormal((dim,))))


def _injective(shape: tuple[int, ...], *, exact: bool) -> JaxFlow:
  """Build an injective flow that is trained by the surrogate, or by the exact log-volume."""
  model = models.InjectiveFlow(*shape, _INJECTIVE["latents"], width=256, rngs=nnx.Rngs(0))
  graphdef, params = nnx.split(model)
  merge = lambda params: nnx.merge(graphdef, params)

  def loss(params: Any, x: jax.Array) -> jax.Array:
    model = merge(params)
    if exact:
      error = jnp.sum((x - model.decode(model.encode(x))) ** 2, axis=1)
      return jnp.mean(10 * error - flows.injective_log_prob(model.encode, model.decode, x))
    probes = flows.orthogonal_probes(jax.random.key(0), len(x), _INJECTIVE["latents"])
    return jnp.mean(flows.injective_loss(model.encode, model.decode, x, probes)[0])

  decode = lambda params, z: merge(params).decode(z[:, : _INJECTIVE["latents"]])
  return JaxFlow(perturbed(nnx.to_pure_dict(params)), loss, decode)


def _equinox_flow(flow: Any) -> JaxFlow:
  """Take a flow of flowjax apart, with noise on its parameters."""
  eqx, paramax = importlib.import_module("equinox"), importlib.import_module("paramax")
  trained, static = eqx.partition(flow, eqx.is_inexact_array)
  leaves, tree = jax.tree.flatten(trained)
  merge = lambda leaves: paramax.unwrap(eqx.combine(jax.tree.unflatten(tree, leaves), static))
  return JaxFlow(
    perturbed(leaves),
    lambda leaves, x: -jnp.mean(merge(leaves).log_prob(x)),
    lambda leaves, z: jax.vmap(merge(leaves).bijection.transform)(z),
  )


def _flowjax_splines(shape: tuple[int, ...], depth: int) -> JaxFlow:
  flowjax = importlib.import_module("flowjax.flows")
  bijections = importlib.import_module("flowjax.bijections")
  normal = importlib.import_module("flowjax.distributions").Normal
  spline = bijections.RationalQuadraticSpline(
    knots=_SPLINES["bins"] - 1, interval=_SPLINES["bound"]
  )
  return _equinox_flow(
    flowjax.coupling_flow(
      jax.random.key(0), base_dist=normal(jnp.zeros(shape)), transformer=spline,
      flow_layers=_SPLINES["layers"], nn_width=_SPLINES["width"], nn_depth=depth,
    )
  )  # fmt: skip


def _flowjax_made(shape: tuple[int, ...]) -> JaxFlow:
  flowjax = importlib.import_module("flowjax.flows")
  normal = importlib.import_module("flowjax.distributions").Normal
  return _equinox_flow(
    flowjax.masked_autoregressive_flow(
      jax.random.key(0), base_dist=normal(jnp.zeros(shape)), flow_layers=_MADE["layers"],
      nn_width=_MADE["width"], nn_depth=2,
    )
  )  # fmt: skip


def _bijx_splines(shape: tuple[int, ...]) -> JaxFlow:
  bijx = importlib.import_module("bijx")
  (dim,) = shape
  bijection = bijx.coupling_flow(
    dim, lambda rngs: bijx.MonotoneRQSpline(_SPLINES["bins"], (), rngs=rngs),
    n_coupling_layers=_SPLINES["layers"], width=_SPLINES["width"], depth=2 * _SPLINES["depth"],
    conditioner_activation=jax.nn.relu, rngs=nnx.Rngs(0),
  )  # fmt: skip
  graphdef, params, rest = nnx.split(bijection, nnx.Param, ...)
  params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
  merge = lambda params: nnx.merge(graphdef, params, rest)
  normal = flows.StandardNormal(shape)

  def loss(params: Any, x: jax.Array) -> jax.Array:
    z, log_density = merge(params).reverse(x, jnp.zeros(len(x), x.dtype))
    return -jnp.mean(normal.log_prob(z) - log_density)

  return JaxFlow(
    perturbed(params), loss,
    lambda params, z: merge(params).forward(z, jnp.zeros(len(z), z.dtype))[0],
  )  # fmt: skip


def _zuko(name: str, shape: tuple[int, ...]) -> TorchFlow:
  zuko = importlib.import_module("zuko.flows")
  if name == "NSF":
    module = zuko.NSF(
      shape[0], transforms=_SPLINES["layers"], bins=_SPLINES["bins"], passes=2,
      hidden_features=[_SPLINES["width"]] * (1 + 2 * _SPLINES["depth"]),
    )  # fmt: skip
  else:
    module = zuko.MAF(shape[0], transforms=_MADE["layers"], hidden_features=[_MADE["width"]] * 2)
  return TorchFlow(
    module, lambda x: -module().log_prob(x).mean(), lambda z: module().transform.inv(z)
  )


def _nflows(shape: tuple[int, ...], transforms: Any) -> TorchFlow:
  base = importlib.import_module("nflows.flows.base")
  composite = importlib.import_module("nflows.transforms.base").CompositeTransform(transforms)
  normal = importlib.import_module("nflows.distributions.normal").StandardNormal(shape)
  module = base.Flow(composite, normal)
  return TorchFlow(module, lambda x: -module.log_prob(x).mean(), lambda z: composite.inverse(z)[0])


def _nflows_splines(shape: tuple[int, ...]) -> TorchFlow:
  coupling = importlib.import_module("nflows.transforms.coupling")
  resnet = importlib.import_module("nflows.nn.nets.resnet")
  torch = importlib.import_module("torch")
  network = lambda ins, outs: resnet.ResidualNet(
    ins, outs, hidden_features=_SPLINES["width"], num_blocks=_SPLINES["depth"]
  )
  masks = [torch.arange(shape[0]) % 2 == i % 2 for i in range(_SPLINES["layers"])]
  layers = [
    coupling.PiecewiseRationalQuadraticCouplingTransform(
      mask.int(), network, num_bins=_SPLINES["bins"], tails="linear", tail_bound=_SPLINES["bound"]
    )
    for mask in masks
  ]
  return _nflows(shape, layers)


def _nflows_made(shape: tuple[int, ...]) -> TorchFlow:
  autoregressive = importlib.import_module("nflows.transforms.autoregressive")
  permutations = importlib.import_module("nflows.transforms.permutations")
  layers = []
  for _ in range(_MADE["layers"]):
    layers.append(
      autoregressive.MaskedAffineAutoregressiveTransform(
        shape[0], _MADE["width"], num_blocks=1, use_residual_blocks=False
      )
    )
    layers.append(permutations.ReversePermutation(shape[0]))
  return _nflows(shape, layers)


def _normflows_splines(shape: tuple[int, ...]) -> TorchFlow:
  nf = importlib.import_module("normflows")
  layers = [
    nf.flows.CoupledRationalQuadraticSpline(
      shape[0], _SPLINES["depth"], _SPLINES["width"], num_bins=_SPLINES["bins"],
      tail_bound=_SPLINES["bound"], reverse_mask=bool(i % 2),
    )
    for i in range(_SPLINES["layers"])
  ]  # fmt: skip
  module = nf.NormalizingFlow(nf.distributions.DiagGaussian(shape[0], trainable=False), layers)
  return TorchFlow(module, module.forward_kld, module.forward)


def inputs(batch: int, *shape: int) -> dict[str, np.ndarray]:
  """Draw standard normal events: data of a training step, latents of samples."""
  return {"x": np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32)}


def _work(ours: Any, peers: dict[str, Any], target: float) -> Work:
  return Work(
    functools.partial(inputs, BATCH, DIM), {"normjax": ours, **peers}, ours.exact, None,
    base="flowjax", target={"default": target}, allocators=("default",),
  )  # fmt: skip


def _all() -> dict[str, Work]:
  works, matrices = {}, 1 + 2 * _SPLINES["depth"]  # hidden layers of an MLP with as many matrices
  for job, target in (("train", 0.85), ("sample", 0.9)):
    peers = {
      "flowjax": jax_peer(functools.partial(_flowjax_splines, depth=matrices), job),
      "flowjax, two layers": jax_peer(functools.partial(_flowjax_splines, depth=2), job),
      "bijx": jax_peer(_bijx_splines, job),
      "nflows": torch_peer(_nflows_splines, job),
      "normflows": torch_peer(_normflows_splines, job),
      "zuko": torch_peer(functools.partial(_zuko, "NSF"), job),
    }
    ours = jax_peer(functools.partial(rqs_flow, layers=_SPLINES["layers"]), job)
    works[f"rqs_coupling {job}"] = _work(ours, peers, target)
  for job in ("train", "sample"):
    peers = {
      "flowjax": jax_peer(_flowjax_made, job),
      "nflows": torch_peer(_nflows_made, job),
      "zuko": torch_peer(functools.partial(_zuko, "MAF"), job),
    }
    works[f"maf {job}"] = _work(jax_peer(_made, job), peers, 1.0)
  ours, exact = (jax_peer(functools.partial(_injective, exact=e), "train") for e in (False, True))
  works["injective train"] = Work(
    functools.partial(inputs, _INJECTIVE["batch"], _INJECTIVE["dim"]),
    {"normjax": ours, "exact volume": exact}, ours.exact, None,
    base="exact volume", target={"default": 0.5}, allocators=("default",),
  )  # fmt: skip
  return works


WORKS = _all()
