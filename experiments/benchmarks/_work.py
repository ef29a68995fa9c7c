"""One thing to measure, and who does it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Peer:
  """An implementation: `make(inputs)` returns a call without arguments, and raises if it can't.

  What the call returns is kept on the device; `wait` blocks until it is there, and `read` gives
  NumPy arrays. `temporaries(inputs)` are the bytes that the compiled program needs beside inputs
  and outputs, where that is known. `exact` is for a yardstick: a peer that does another job than
  the work, whose answer is checked by its own.
  """

  make: Callable[[dict[str, np.ndarray]], Callable[[], Any]]
  wait: Callable[[Any], Any]
  read: Callable[[Any], list[np.ndarray]]
  temporaries: Callable[[dict[str, np.ndarray]], int] | None = None
  exact: Callable[[dict[str, np.ndarray]], list[np.ndarray]] | None = None


@dataclasses.dataclass(frozen=True)
class Work:
  """Inputs, peers, the exact results in float64 and how far from them a peer may be.

  `passes` is how often memory of the size of x is read or written at least: the limit is that of
  the time of `2 * x`, which makes two; None: arithmetic decides. `base` is the peer that ours is
  compared with, `target` the ratio to it that we want, by allocator; `others` are the ratios to
  further peers that we want. Works run under `allocators`, and for `rounds` at most, if given.
  """

  inputs: Callable[[], dict[str, np.ndarray]]
  peers: dict[str, Peer]
  exact: Callable[[dict[str, np.ndarray]], list[np.ndarray]]
  passes: int | None
  tolerance: float = 1e-4
  base: str = "flax"
  target: dict[str, float] = dataclasses.field(default_factory=dict)
  others: dict[str, float] = dataclasses.field(default_factory=dict)
  allocators: tuple[str, ...] = ("default", "pooled")
  rounds: int | None = None


def affine_inputs(shape: tuple[int, ...], mean: float = 0.0) -> dict[str, np.ndarray]:
  """Draw `x` and the cotangent `ct` (*shape), and `scale` and `bias` for the last axis."""
  rng = np.random.default_rng(0)
  draw = lambda *s: rng.standard_normal(s).astype(np.float32)
  c = shape[-1]
  x = draw(*shape) + np.float32(mean)
  return {"x": x, "scale": 1 + 0.1 * draw(c), "bias": draw(c), "ct": draw(*shape)}


def jitted_peer(
  prepared: Callable[[dict[str, np.ndarray]], tuple[Any, tuple]],
  read: Callable[[Any], list[np.ndarray]],
  **more: Any,
) -> Peer:
  """Return the peer of a jitted function: `prepared(inputs)` gives it and its arguments."""

  def make(inputs: dict[str, np.ndarray]) -> Callable[[], Any]:
    run, given = prepared(inputs)
    return functools.partial(run, *given)

  def temporaries(inputs: dict[str, np.ndarray]) -> int:
    run, given = prepared(inputs)
    return run.lower(*given).compile().memory_analysis().temp_size_in_bytes

  return Peer(make, jax.block_until_ready, read, temporaries, **more)
