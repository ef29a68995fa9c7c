"""Inverses of convolutions, against flax's forward convolution with the same kernel."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.benchmarks._work import Peer, Work, jitted_peer
from normjax import flows


def _inputs(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
  """Return images and a 3 x 3 kernel near its first values."""
  rng, c = np.random.default_rng(0), shape[-1]
  kernel = 0.02 * rng.standard_normal((3, 3, c, c))
  kernel[-1, -1] = np.tril(kernel[-1, -1]) + np.eye(c)
  x = rng.standard_normal(shape).astype(np.float32)
  return {"x": x, "kernel": kernel.astype(np.float32)}


def _exact_forward(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
  x, kernel = (inputs[name].astype(np.float64) for name in ("x", "kernel"))
  _, h, w, _ = x.shape
  padded = np.pad(x, ((0, 0), (2, 0), (2, 0), (0, 0)))
  taps = ((i, j) for i in range(3) for j in range(3))
  return [sum(padded[:, i : i + h, j : j + w] @ kernel[i, j] for i, j in taps)]


def _exact_inverse(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
  """Substitute pixel by pixel in reading order."""
  z, kernel = (inputs[name].astype(np.float64) for name in ("x", "kernel"))
  b, h, w, c = z.shape
  solved, own = np.zeros((b, h + 2, w + 2, c)), np.linalg.inv(kernel[-1, -1])
  for i in range(h):
    for j in range(w):
      known = np.einsum("bpqc,pqcd->bd", solved[:, i : i + 3, j : j + 3], kernel)
      solved[:, i + 2, j + 2] = (z[:, i, j] - known) @ own
  return [solved[:, 2:, 2:]]


def _peer(function: Any, **more: Any) -> Peer:
  run = jax.jit(function)
  prepared = lambda inputs: (run, jax.device_put((inputs["x"], inputs["kernel"])))
  return jitted_peer(prepared, lambda out: [np.asarray(out)], **more)


def _flax(x: Any, kernel: Any) -> Any:
  c = x.shape[-1]
  conv = nnx.Conv(
    c, c, (3, 3), padding=((2, 0), (2, 0)), use_bias=False, kernel_init=lambda *_: jnp.zeros(()),
    rngs=nnx.Rngs(0),
  )  # fmt: skip
  conv.kernel = nnx.Param(kernel)
  return conv(x)


def _work(shape: tuple[int, ...]) -> Work:
  peers = {
    "normjax": _peer(flows.causal_conv_inverse),
    "flax": _peer(_flax, exact=_exact_forward),
  }
  target = {"default": 4.0, "pooled": 4.0} if shape[0] == 16 else {}
  return Work(functools.partial(_inputs, shape), peers, _exact_inverse, 2, target=target)


WORKS = {
  f"causal_conv_inverse {b}x32x32x{c}": _work((b, 32, 32, c))
  for b, c in ((1, 12), (16, 12), (64, 12), (1, 48), (16, 48))
}
