"""What flows are timed at, in JAX and in PyTorch, and the same in float64.

"train" is value and gradient of the mean negative log-likelihood and an update by Adam; its answer
is the loss and the norm of the gradient. "sample" is the data of given latents, which is all that
sampling does but for the draw. "compile" makes a training step from nothing.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.benchmarks._work import Peer

_RATE = 1e-3
NOISE = 0.05  # added to all parameters: new flows are often the identity


class JaxFlow(NamedTuple):
  """Parameters, the mean negative log-likelihood, and the data of latents."""

  params: Any
  loss: Callable[[Any, jax.Array], jax.Array]  # (params, x) -> ()
  inverse: Callable[[Any, jax.Array], jax.Array]  # (params, z) -> x


@dataclasses.dataclass(frozen=True)
class TorchFlow:
  """A module, the mean negative log-likelihood, and the data of latents."""

  module: Any
  loss: Callable[[Any], Any]
  inverse: Callable[[Any], Any]
  noise: float = NOISE


def perturbed(params: Any, noise: float = NOISE) -> Any:
  """Return arrays with noise of this deviation on every entry, in their order."""
  rng = np.random.default_rng(1)
  noisy = lambda v: (v + noise * rng.standard_normal(np.shape(v))).astype(v.dtype)
  return jax.tree.map(lambda v: noisy(np.asarray(v)), params)


def jax_peer(build: Callable[[tuple[int, ...]], JaxFlow], job: str, **more: Any) -> Peer:
  """Return a peer of the flow that `build(shape of x)` makes, checked against float64 of itself."""

  def exact(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    run, given = _prepared(build, job, inputs, np.float64)
    with jax.enable_x64(True):
      return _read(job, run(*jax.device_put(given)))

  def make(inputs: dict[str, np.ndarray]) -> Callable[[], Any]:
    run, given = _prepared(build, job, inputs, np.float32)
    return functools.partial(run, *jax.device_put(given))

  def temporaries(inputs: dict[str, np.ndarray]) -> int:
    run, given = _prepared(build, "train" if job == "compile" else job, inputs, np.float32)
    return run.lower(*given).compile().memory_analysis().temp_size_in_bytes

  fields = {"temporaries": temporaries, "exact": exact} | more
  return Peer(make, jax.block_until_ready, functools.partial(_read, job), **fields)


def _prepared(build, job: str, inputs: dict[str, np.ndarray], dtype: Any) -> tuple[Any, tuple]:
  flow, x = build(inputs["x"].shape[1:]), inputs["x"].astype(dtype)
  params = jax.tree.map(lambda v: np.asarray(v).astype(dtype), flow.params)
  if job == "sample":
    return jax.jit(flow.inverse), (params, x)
  adam = optax.adam(_RATE)

  def step(params: Any, state: Any, x: Any) -> Any:
    loss, grads = jax.value_and_grad(flow.loss)(params, x)
    updates, state = adam.update(grads, state)
    return loss, grads, optax.apply_updates(params, updates), state

  given = params, jax.tree.map(np.asarray, adam.init(params)), x
  if job == "train":
    return jax.jit(step), given

  def compiled(*given: Any) -> Any:
    return jax.jit(lambda *given: step(*given)).lower(*given).compile()(*given)

  return compiled, given


def _read(job: str, out: Any) -> list[np.ndarray]:
  if job == "sample":
    return [np.asarray(out)]
  norm = np.sqrt(sum(np.sum(np.asarray(g, np.float64) ** 2) for g in jax.tree.leaves(out[1])))
  return [np.asarray(out[0]), norm]


def torch_peer(build: Callable[[tuple[int, ...]], TorchFlow], job: str) -> Peer:
  """Return a peer of a PyTorch flow on CPU, checked against float64 of itself."""

  def prepared(inputs: dict[str, np.ndarray], double: bool) -> Callable[[], Any]:
    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    flow = build(inputs["x"].shape[1:])
    with torch.no_grad():
      values = perturbed([p.numpy() for p in flow.module.parameters()], flow.noise)
      for p, value in zip(flow.module.parameters(), values, strict=True):
        p.copy_(torch.tensor(value))
    flow.module.double() if double else flow.module.float()
    x = torch.tensor(inputs["x"].astype(np.float64 if double else np.float32))
    if job == "sample":

      def sample() -> Any:
        with torch.no_grad():
          return [flow.inverse(x)]

      return sample
    adam = torch.optim.Adam(flow.module.parameters(), lr=_RATE)

    def step() -> Any:
      adam.zero_grad()
      loss = flow.loss(x)
      loss.backward()
      adam.step()
      return [loss.detach(), *(p.grad for p in flow.module.parameters() if p.grad is not None)]

    return step

  def read(out: Any) -> list[np.ndarray]:
    if job == "sample":
      return [out[0].numpy()]
    loss, *grads = (v.numpy().astype(np.float64) for v in out)
    return [loss, np.sqrt(sum(np.sum(g**2) for g in grads))]

  return Peer(
    lambda inputs: prepared(inputs, False), lambda out: out, read,
    exact=lambda inputs: read(prepared(inputs, True)()),
  )  # fmt: skip
