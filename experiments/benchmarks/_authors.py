"""Online Norm and PowerNorm against their authors' own code, from a checkout of it.

`$NORMJAX_ONLINE_NORM` names a checkout of https://github.com/Cerebras/online-normalization (NumPy),
`$NORMJAX_POWER_NORM` one of https://github.com/sIncerass/powernorm (PyTorch). A step is forward and
backward with all updates of state, from initial state.
"""

import importlib
import os
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks._work import Peer, Work, affine_inputs, jitted_peer
from normjax import norms

_IMAGES, _TOKENS = (32, 32, 32, 64), (64, 32, 512)
_EPSILON, _DECAY, _BACKWARD_DECAY, _CLAMP = 1e-5, 0.999, 0.99, 5.0
_POWER_DECAY = 0.9


def _checkout(variable: str, inside: str) -> Path:
  """Return `inside` of the checkout that an environment variable names."""
  path = Path(os.environ.get(variable, "")) / inside
  if not os.environ.get(variable) or not path.exists():
    raise ImportError(f"${variable} names no checkout with {inside}")
  return path


def _ours(layer: Any) -> Peer:
  """Return a step of `layer(x, scale, bias, state, control) -> (y, state)`."""

  @jax.jit
  def step(x: Any, scale: Any, bias: Any, state: Any, control: Any, ct: Any) -> Any:
    run = lambda x, scale, bias, control: layer(x, scale, bias, state, control)
    y, vjp, state = jax.vjp(run, x, scale, bias, control, has_aux=True)
    dx, dscale, dbias, increments = vjp(ct)
    return [y, dx, dscale, dbias], state, jax.tree.map(jnp.add, control, increments)

  def prepared(inputs: dict[str, np.ndarray]) -> Any:
    x, scale, bias, ct = jax.device_put([inputs[k] for k in ("x", "scale", "bias", "ct")])
    return step, (x, scale, bias, *layer.start(x.shape[-1]), ct)

  return jitted_peer(prepared, lambda out: [np.asarray(v) for v in out[0]])


class _OnlineNorm:
  def __call__(self, x: Any, scale: Any, bias: Any, state: Any, control: Any) -> Any:
    return norms.online_norm(x, scale, bias, state, control)

  def start(self, c: int) -> Any:
    return (jnp.zeros(c), jnp.ones(c)), (jnp.zeros(c), jnp.zeros(c))


class _PowerNorm:
  def __call__(self, x: Any, scale: Any, bias: Any, state: Any, control: Any) -> Any:
    return norms.power_norm(x, scale, bias, state, control, warmup_iters=0)

  def start(self, c: int) -> Any:
    return (jnp.ones(c), jnp.int32(0)), jnp.zeros(c)


def _online_norm_checkout(inputs: dict[str, np.ndarray]) -> Any:
  sys.path.insert(0, str(_checkout("NORMJAX_ONLINE_NORM", "online-norm/numpy_on").parent))
  layer_class = importlib.import_module("numpy_on").OnlineNorm2d
  first = lambda a: np.ascontiguousarray(np.moveaxis(a, -1, 1))  # its layout
  x, ct = first(inputs["x"]), first(inputs["ct"])
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it announces its clamp
    layer = layer_class(x.shape[1])
  layer.weight.weight, layer.bias.bias = inputs["scale"], inputs["bias"]

  def step() -> Any:
    y, dx = layer(x), layer.backward(ct)
    gradients = layer.weight.opt_params[1], layer.bias.opt_params[1]
    return [np.moveaxis(y, 1, -1), np.moveaxis(dx, 1, -1), *gradients]

  return step


def _power_norm_checkout(inputs: dict[str, np.ndarray]) -> Any:
  path = _checkout("NORMJAX_POWER_NORM", "fairseq/modules/norms/mask_powernorm.py")
  torch = importlib.import_module("torch")
  layer_class = runpy.run_path(str(path))["MaskPowerNorm"]
  x, ct = torch.tensor(inputs["x"], requires_grad=True), torch.tensor(inputs["ct"])
  layer = layer_class(x.shape[-1], warmup_iters=0)
  with torch.no_grad():
    layer.weight.copy_(torch.tensor(inputs["scale"]))
    layer.bias.copy_(torch.tensor(inputs["bias"]))

  def step() -> Any:
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, [x, layer.weight, layer.bias], ct)]

  return step


def _online_norm_exact(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
  """Return a step in float64, example by example."""
  x, scale, bias, ct = (inputs[k].astype(np.float64) for k in ("x", "scale", "bias", "ct"))
  mean, var, u, v = np.zeros_like(scale), np.ones_like(scale), 0 * scale, 0 * scale
  normalized, sigmas, dx = np.empty_like(x), [], np.empty_like(x)
  for t, example in enumerate(x):
    sigmas.append(np.sqrt(var + _EPSILON))
    normalized[t] = (example - mean) / sigmas[t]
    delta = example.mean((0, 1)) - mean
    var = _DECAY * var + (1 - _DECAY) * (example.var((0, 1)) + _DECAY * delta**2)
    mean = mean + (1 - _DECAY) * delta
  z = normalized * scale + bias
  dz = np.where(np.abs(z) < _CLAMP, ct, 0)
  for t, cotangent in enumerate(dz * scale):
    a = cotangent - (1 - _BACKWARD_DECAY) * v * normalized[t]
    v = v + (a * normalized[t]).mean((0, 1))
    dx[t] = a / sigmas[t] - (1 - _BACKWARD_DECAY) * u
    u = u + dx[t].mean((0, 1))
  outer = (0, 1, 2)
  return [np.clip(z, -_CLAMP, _CLAMP), dx, (dz * normalized).sum(outer), dz.sum(outer)]


def _power_norm_exact(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
  """Return the first step without warm-up in float64, where phi = 1 and nothing is carried yet."""
  x, scale, bias, ct = (inputs[k].astype(np.float64) for k in ("x", "scale", "bias", "ct"))
  rms = np.sqrt((x * x).mean(-1, keepdims=True) + _EPSILON)
  h = x / rms
  z = h / np.sqrt(1 + _EPSILON)
  dh = ct * scale / np.sqrt((h * h).mean((0, 1)) + _EPSILON)
  dx = (dh - h * (dh * h).mean(-1, keepdims=True)) / rms
  return [z * scale + bias, dx, (ct * z).sum((0, 1)), ct.sum((0, 1))]


def _work(shape: tuple[int, ...], layer: Any, theirs: Peer, exact: Any, target: float) -> Work:
  peers = {"normjax": _ours(layer), "authors": theirs}
  targets = dict.fromkeys(("default", "pooled"), target)
  return Work(lambda: affine_inputs(shape), peers, exact, 6, base="authors", target=targets)


WORKS = {
  "online_norm 32x32x32x64": _work(
    _IMAGES, _OnlineNorm(), Peer(_online_norm_checkout, lambda out: out, lambda out: out),
    _online_norm_exact, 0.15,
  ),
  "power_norm 64x32x512": _work(
    _TOKENS, _PowerNorm(),
    Peer(_power_norm_checkout, lambda out: out, lambda out: [v.numpy() for v in out]),
    _power_norm_exact, 0.4,
  ),
}  # fmt: skip
