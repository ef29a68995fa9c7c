"""Flows of images, of this library and of others: Jet and Glow; and compile time by depth.

`$NORMJAX_BIG_VISION` names a checkout of https://github.com/google-research/big_vision, where the
authors' Jet is; both start from one tree of parameters, so that their answers agree.
"""

import functools
import importlib
import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from experiments.benchmarks._flow_jobs import JaxFlow, TorchFlow, jax_peer, perturbed, torch_peer
from experiments.benchmarks._flows import BATCH, DIM, inputs, nnx_flow, rqs_flow
from experiments.benchmarks._work import Work
from normjax import flows, models

_JET = {"batch": 16, "shape": (16, 16, 3), "patch": 4, "width": 128, "blocks": 1, "heads": 4}
# With more noise on its parameters, samples of a random Glow leave the range of float32.
_GLOW = {"batch": 16, "shape": (32, 32, 3), "levels": 2, "steps": 4, "width": 128, "noise": 0.01}


def _jet(shape: tuple[int, ...], depth: int, memory: str) -> JaxFlow:
  jet = flows.Jet(
    shape, depth=depth, block_depth=_JET["blocks"], emb_dim=_JET["width"], num_heads=_JET["heads"],
    patch_size=_JET["patch"], memory=memory, rngs=nnx.Rngs(0),
  )  # fmt: skip
  return nnx_flow(flows.Flow(jet, flows.StandardNormal(shape)))


def _big_vision(shape: tuple[int, ...], depth: int) -> tuple[Any, dict[str, np.ndarray], Any]:
  """Return the authors' model, its flat tree with noise, and the permutations in it."""
  path = os.environ.get("NORMJAX_BIG_VISION", "")
  if not path or not os.path.exists(os.path.join(path, "big_vision/models/proj/jet/jet.py")):
    raise ImportError("$NORMJAX_BIG_VISION names no checkout with big_vision/models/proj/jet")
  if path not in sys.path:
    sys.path.insert(0, path)
  jet = importlib.import_module("big_vision.models.proj.jet.jet").Model(
    depth=depth, block_depth=_JET["blocks"], emb_dim=_JET["width"], num_heads=_JET["heads"],
    ps=_JET["patch"],
  )  # fmt: skip
  tree = jet.init(jax.random.key(0), jnp.zeros((1, *shape)), method="forward")["params"]
  flat = traverse_util.flatten_dict(tree, sep="/")
  fixed = {k: v for k, v in flat.items() if k.endswith("FREEZE_ME")}
  return jet, perturbed({k: v for k, v in flat.items() if k not in fixed}), fixed


def _big_vision_jet(shape: tuple[int, ...], depth: int) -> JaxFlow:
  jet, trained, fixed = _big_vision(shape, depth)
  variables = lambda params: {"params": traverse_util.unflatten_dict(params | fixed, sep="/")}
  normal = flows.StandardNormal(shape)

  def loss(params: Any, x: jax.Array) -> jax.Array:
    z, log_det = jet.apply(variables(params), x, method="forward")
    return -jnp.mean(normal.log_prob(z) + log_det)

  inverse = lambda params, z: jet.apply(variables(params), z, method="inverse")[0]
  return JaxFlow(trained, loss, inverse)


def _same_jet(shape: tuple[int, ...], depth: int) -> JaxFlow:
  """Build our Jet from the authors' tree: its float64 is what their answer must be."""
  _, trained, fixed = _big_vision(shape, depth)
  jet = flows.jet_from_big_vision(trained | fixed, shape, patch_size=_JET["patch"])
  return nnx_flow(flows.Flow(jet, flows.StandardNormal(shape)), noise=0)


def _jet_pytorch(shape: tuple[int, ...], depth: int) -> TorchFlow:
  module_class = importlib.import_module("jet_pytorch.jet").Jet
  torch = importlib.import_module("torch")
  height, width, channels = shape
  side = _JET["patch"]
  module = module_class(
    patch_size=side, patch_dim=side * side * channels, n_patches=height * width // side**2,
    img_dims=(height, width), coupling_layers=depth, block_depth=_JET["blocks"],
    block_width=_JET["width"], num_heads=_JET["heads"],
    coupling_types=("channels", "channels", "spatial"),
    spatial_coupling_projs=("checkerboard", "checkerboard-inv"),
  )  # fmt: skip

  def loss(x: Any) -> Any:
    z, log_det = module(x)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum((1, 2))
    return -(normal + log_det[:, 0]).mean()

  return TorchFlow(module, loss, lambda z: module.inverse(module.patchify(z))[0])


def _glow(shape: tuple[int, ...]) -> JaxFlow:
  return nnx_flow(
    models.Glow(
      shape, num_levels=_GLOW["levels"], num_steps=_GLOW["steps"], width=_GLOW["width"],
      use_act_norm=False, memory="store", rngs=nnx.Rngs(0),
    ),
    noise=_GLOW["noise"],
  )  # fmt: skip


def _normflows_glow(shape: tuple[int, ...]) -> TorchFlow:
  """Build the same levels and steps; its priors, unlike ours, depend on nothing."""
  nf, torch = importlib.import_module("normflows"), importlib.import_module("torch")
  height, width, channels = shape
  levels = _GLOW["levels"]
  bases, steps, merges = [], [], []
  for level in range(levels):  # from the latents on
    features = channels * 2 ** (levels + 1 - level)
    steps.append(
      [nf.flows.GlowBlock(features, _GLOW["width"]) for _ in range(_GLOW["steps"])]
      + [nf.flows.Squeeze()]
    )
    cut = 2 ** (levels - level)
    if level:
      merges.append(nf.flows.Merge())
      features //= 2
    bases.append(nf.distributions.GlowBase((features, height // cut, width // cut)))
  module = nf.MultiscaleFlow(bases, steps, merges, class_cond=False)
  for part in module.modules():  # its ActNorms would start themselves from the first batch
    if isinstance(part, nf.flows.ActNorm):
      part.data_dep_init_done = torch.tensor(1.0)
  shapes = [base.shape for base in bases]

  def inverse(z: Any) -> Any:
    flat = z.reshape(len(z), -1).split([int(np.prod(s)) for s in shapes], dim=1)
    parts = [v.reshape(-1, *s) for v, s in zip(flat, shapes, strict=True)]
    return module.forward_and_log_det(parts)[0]

  channels_first = lambda x: x.permute(0, 3, 1, 2).contiguous()
  loss = lambda x: module.forward_kld(channels_first(x))
  return TorchFlow(module, loss, inverse, _GLOW["noise"])


def _jet_work(job: str, depth: int) -> Work:
  build = lambda memory: jax_peer(functools.partial(_jet, depth=depth, memory=memory), job)
  peers = {
    "normjax": build("remat"),  # as theirs
    "big_vision": jax_peer(
      functools.partial(_big_vision_jet, depth=depth), job,
      exact=jax_peer(functools.partial(_same_jet, depth=depth), job).exact,
    ),
    "jet-pytorch": torch_peer(functools.partial(_jet_pytorch, depth=depth), job),
  }  # fmt: skip
  if job == "train":
    peers |= {f"normjax, {memory}": build(memory) for memory in ("store", "reversible")}
  return Work(
    functools.partial(inputs, _JET["batch"], *_JET["shape"]), peers, peers["normjax"].exact, None,
    base="big_vision", target={"default": 1.0},
    others={"jet-pytorch": 0.75} if job == "train" else {}, allocators=("default",),
  )  # fmt: skip


def _glow_work(job: str) -> Work:
  peers = {"normjax": jax_peer(_glow, job), "normflows": torch_peer(_normflows_glow, job)}
  return Work(
    functools.partial(inputs, _GLOW["batch"], *_GLOW["shape"]), peers, peers["normjax"].exact, None,
    base="normflows", target={"default": 0.8}, allocators=("default",),
  )  # fmt: skip


def _compile_work(build: Any, shape: tuple[int, ...]) -> Work:
  """Compile a training step with 24 layers, against one with 2."""
  deep, shallow = (
    jax_peer(functools.partial(build, **_layers(build, n)), "compile") for n in (24, 2)
  )
  return Work(
    functools.partial(inputs, *shape), {"normjax": deep, "2 layers": shallow}, deep.exact, None,
    base="2 layers", target={"default": 1.1}, allocators=("default",), rounds=3,
  )  # fmt: skip


def _layers(build: Any, count: int) -> dict[str, Any]:
  return {"layers": count} if build is rqs_flow else {"depth": count, "memory": "remat"}


WORKS = {
  **{f"jet train {depth} couplings": _jet_work("train", depth) for depth in (4, 32)},
  "jet sample 8 couplings": _jet_work("sample", 8),
  **{f"glow {job}": _glow_work(job) for job in ("train", "sample")},
  "rqs_coupling compile 24 layers": _compile_work(rqs_flow, (BATCH, DIM)),
  "jet compile 24 couplings": _compile_work(_jet, (_JET["batch"], *_JET["shape"])),
}
