"""Norms, forward and backward, of this library and of others."""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.benchmarks._work import Peer, Work, affine_inputs, jitted_peer
from normjax import norms

# Those whose layers need no state threaded through.
_EQUINOX = {"layer_norm": "LayerNorm", "rms_norm": "RMSNorm", "group_norm": "GroupNorm"}


def _nnx(build: Any, backward: bool) -> Peer:
  """Return an NNX layer: outputs y, and dx, dscale, dbias if `backward`."""

  def prepared(inputs: dict[str, np.ndarray]) -> Any:
    module = build(inputs["x"].shape[-1])
    module.scale[...] = jnp.asarray(inputs["scale"])
    has_bias = getattr(module, "bias", None) is not None
    if has_bias:
      module.bias[...] = jnp.asarray(inputs["bias"])
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    def forward(params: Any, x: Any) -> Any:
      merged = nnx.merge(graphdef, params, rest, copy=True)
      return merged(x), nnx.state(merged, nnx.BatchStat)

    @jax.jit
    def run(params: Any, x: Any, ct: Any) -> Any:
      if not backward:
        return [forward(params, x)[0]]
      y, vjp, _ = jax.vjp(forward, params, x, has_aux=True)
      dparams, dx = vjp(ct)
      found = [y, dx, dparams["scale"].get_value()]
      return [*found, dparams["bias"].get_value()] if has_bias else found

    return run, (params, *jax.device_put((inputs["x"], inputs["ct"])))

  return jitted_peer(prepared, lambda out: [np.asarray(v) for v in out])


def _torch(name: str, backward: bool, **options: Any) -> Peer:
  """Return the function of `torch.nn.functional`, on CPU; images are moved to channels first."""
  image = name in ("group_norm", "batch_norm", "instance_norm")
  names = ("weight",) if name == "rms_norm" else ("weight", "bias")

  def make(inputs: dict[str, np.ndarray]) -> Any:
    torch = importlib.import_module("torch")
    place = (lambda a: np.ascontiguousarray(np.moveaxis(a, -1, 1))) if image else (lambda a: a)
    x, ct = (torch.tensor(place(inputs[k])) for k in ("x", "ct"))
    given = {"weight": torch.tensor(inputs["scale"]), "bias": torch.tensor(inputs["bias"])}
    affine = {n: given[n] for n in names}
    more = options if image else {"normalized_shape": x.shape[-1:], **options}
    function = getattr(torch.nn.functional, name)
    wanted = [x, *affine.values()] if backward else []
    for v in wanted:
      v.requires_grad_(True)

    def run() -> Any:
      with torch.set_grad_enabled(backward):
        y = function(x, **affine, **more)
        return [y.detach(), *torch.autograd.grad(y, wanted, ct)] if backward else [y]

    return run

  def read(out: Any) -> list[np.ndarray]:
    arrays = [v.numpy() for v in out]
    return [np.moveaxis(a, 1, -1) if image and a.ndim > 1 else a for a in arrays]

  return Peer(make, lambda out: out, read)


def _equinox(name: str, backward: bool) -> Peer:
  """Return a layer of `equinox.nn`, vmapped; images are moved to channels first."""
  image = name == "GroupNorm"

  def make(inputs: dict[str, np.ndarray]) -> Any:
    eqx = importlib.import_module("equinox")
    place = (lambda a: np.moveaxis(a, -1, 1)) if image else (lambda a: a)
    x, ct = (jax.device_put(np.ascontiguousarray(place(inputs[k]))) for k in ("x", "ct"))
    c = inputs["x"].shape[-1]
    affine = {"weight": jnp.asarray(inputs["scale"]), "bias": jnp.asarray(inputs["bias"])}
    if image:
      layer = eqx.nn.GroupNorm(32, c, 1e-5)
    elif name == "RMSNorm":
      layer = eqx.nn.RMSNorm(c, 1e-5, use_bias=False)
      affine.pop("bias")
    else:
      layer = eqx.nn.LayerNorm(c, 1e-5)

    names = list(affine)

    def forward(affine: Any, x: Any) -> Any:
      values = [affine[n] for n in names]
      run = eqx.tree_at(lambda t: [getattr(t, n) for n in names], layer, values)
      for _ in range(1 if image else x.ndim - 1):
        run = jax.vmap(run)
      return run(x)

    @jax.jit
    def step(affine: Any, x: Any, ct: Any) -> Any:
      if not backward:
        return [forward(affine, x)]
      y, vjp = jax.vjp(forward, affine, x)
      daffine, dx = vjp(ct)
      return [y, dx, *(daffine[n] for n in names)]

    return lambda: step(affine, x, ct)

  def read(out: Any) -> list[np.ndarray]:
    arrays = [np.asarray(v) for v in out]
    return [np.moveaxis(a, 1, -1) if image and a.ndim > 1 else a for a in arrays]

  return Peer(make, jax.block_until_ready, read)


def _exact(statistics_axes: Any, epsilon: float, center: bool, bias: bool, backward: bool) -> Any:
  """Return the formula in float64, differentiated by hand."""

  def exact(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    x, scale, shift, ct = (inputs[k].astype(np.float64) for k in ("x", "scale", "bias", "ct"))
    groups = statistics_axes(x.shape)
    split = x.reshape(groups.shape)
    mean = lambda v: v.mean(groups.axes, keepdims=True)
    c = split - mean(split) if center else split
    rstd = 1 / np.sqrt(mean(c * c) + epsilon)
    xh = (c * rstd).reshape(x.shape)
    y = xh * scale + (shift if bias else 0)
    if not backward:
      return [y]
    g, h = (ct * scale).reshape(groups.shape), xh.reshape(groups.shape)
    dx = rstd * (g - (mean(g) if center else 0) - h * mean(g * h))
    outer = tuple(range(x.ndim - 1))
    found = [y, dx.reshape(x.shape), (ct * xh).sum(outer)]
    return [*found, ct.sum(outer)] if bias else found

  return exact


class _Groups:
  """How an array is viewed, and over which axes of the view its statistics go."""

  def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...]):
    self.shape, self.axes = shape, axes


def _rows(shape: tuple[int, ...]) -> _Groups:
  return _Groups(shape, (len(shape) - 1,))


def _batch(shape: tuple[int, ...]) -> _Groups:
  return _Groups(shape, tuple(range(len(shape) - 1)))


def _space(shape: tuple[int, ...]) -> _Groups:
  return _Groups(shape, tuple(range(1, len(shape) - 1)))


def _channel_groups(shape: tuple[int, ...]) -> _Groups:
  view = (*shape[:-1], 32, shape[-1] // 32)
  return _Groups(view, (*range(1, len(shape) - 1), len(shape)))


def _work(shape, ours, flax, torch, exact, target, *, backward, mean=0.0, passes=6, **more) -> Work:
  center, bias, groups, epsilon = exact
  peers = {"normjax": _nnx(ours, backward), "flax": _nnx(flax, backward)}
  if torch is not None:
    name, options = torch
    peers["torch"] = _torch(name, backward, **options)
    if name in _EQUINOX:
      peers["equinox"] = _equinox(_EQUINOX[name], backward)
  return Work(
    functools.partial(affine_inputs, shape, mean), peers,
    _exact(groups, epsilon, center, bias, backward),
    passes if backward else 3, target=target, **more,
  )  # fmt: skip


def _all() -> dict[str, Work]:
  rngs = lambda: nnx.Rngs(0)
  image = (32, 32, 32, 64)
  layers = {
    "layer_norm": (
      lambda c: norms.LayerNorm(c, epsilon=1e-5, rngs=rngs()),
      lambda c: nnx.LayerNorm(c, epsilon=1e-5, rngs=rngs()),
      ("layer_norm", {"eps": 1e-5}), (True, True, _rows, 1e-5),
    ),
    "rms_norm": (
      lambda c: norms.RMSNorm(c, epsilon=1e-5, rngs=rngs()),
      lambda c: nnx.RMSNorm(c, epsilon=1e-5, rngs=rngs()),
      ("rms_norm", {"eps": 1e-5}), (False, False, _rows, 1e-5),
    ),
    "group_norm": (
      lambda c: norms.GroupNorm(c, num_groups=32, epsilon=1e-5, rngs=rngs()),
      lambda c: nnx.GroupNorm(c, num_groups=32, epsilon=1e-5, rngs=rngs()),
      ("group_norm", {"num_groups": 32, "eps": 1e-5}), (True, True, _channel_groups, 1e-5),
    ),
    "batch_norm": (
      lambda c: norms.BatchNorm(c, rngs=rngs()),
      lambda c: nnx.BatchNorm(c, use_running_average=False, rngs=rngs()),
      ("batch_norm", {"eps": 1e-5, "running_mean": None, "running_var": None, "training": True}),
      (True, True, _batch, 1e-5),
    ),
    "instance_norm": (
      lambda c: norms.InstanceNorm(c, epsilon=1e-5, use_scale=True, use_bias=True, rngs=rngs()),
      lambda c: nnx.InstanceNorm(c, epsilon=1e-5, rngs=rngs()),
      ("instance_norm", {"eps": 1e-5}), (True, True, _space, 1e-5),
    ),
  }  # fmt: skip
  both = {"default": 0.33, "pooled": 0.65}
  works = {}
  for name in ("layer_norm", "rms_norm"):
    for shape, target in (((4096, 1024), both), ((65536, 64), both), ((8, 512, 768), 0.6)):
      target = target if isinstance(target, dict) else dict.fromkeys(both, target)
      works[f"{name} {_text(shape)}"] = _work(shape, *layers[name], target, backward=True)
  for name, ratio in (("group_norm", 0.6), ("batch_norm", 1.15), ("instance_norm", 1.15)):
    target = dict.fromkeys(both, ratio)
    works[f"{name} {_text(image)}"] = _work(image, *layers[name], target, backward=True)
  # The channel mean of 3000 is where E[x^2] - E[x]^2 loses its digits.
  works[f"batch_norm {_text(image)} mean 3000"] = _work(
    image, *layers["batch_norm"], {}, backward=False, mean=3000.0, tolerance=1e-3
  )
  for name, shape in (
    ("layer_norm", (4096, 1024)), ("rms_norm", (4096, 1024)), ("group_norm", image),
    ("batch_norm", image), ("instance_norm", image),
  ):  # fmt: skip
    target = dict.fromkeys(both, 1.1)
    works[f"{name} {_text(shape)} forward"] = _work(shape, *layers[name], target, backward=False)
  return works


def _text(shape: tuple[int, ...]) -> str:
  return "x".join(map(str, shape))


WORKS = _all()
