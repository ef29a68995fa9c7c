"""Memory and time of Jet's gradient by depth and by what the backward pass keeps.

  python -m experiments.bench_memory --depths=4,8,16,32 --out=memory.json

prints one Markdown table: temporaries of the compiled `value_and_grad` of the loss (no optimizer,
parameters and gradients not counted), and the fastest of a few rounds. Rounds go through all
programs in turn, so that a busy machine slows all of them alike.
"""

import json
import pathlib
import time

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import nnx

from normjax import flows

MODES = ("store", "remat", "reversible")
_SHAPE = (16, 16, 3)

_DEPTHS = flags.DEFINE_list("depths", ["4", "8", "16", "32"], "Numbers of couplings.")
_WIDTH = flags.DEFINE_integer("width", 128, "Width of the transformers, 4 heads.", lower_bound=4)
_BATCH = flags.DEFINE_integer("batch", 16, "Images of 16x16x3 in a batch.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds, the fastest counts.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "Also write the rows to this JSON file.")


def build(depth: int, memory: str, width: int, batch: int):
  """Return the compiled `value_and_grad` of Jet's loss and its arguments."""
  jet = flows.Jet(
    _SHAPE, depth=depth, block_depth=1, emb_dim=width, num_heads=4, patch_size=4,
    memory=memory, rngs=nnx.Rngs(0),
  )  # fmt: skip
  graphdef, params, rest = nnx.split(jet, nnx.Param, ...)
  base = flows.StandardNormal(_SHAPE)

  def loss(params, rest, x):
    flow = flows.Flow(nnx.merge(graphdef, params, rest), base)
    return jnp.mean(flows.bits_per_dim(flow.log_prob(x), base.shape, 127.5))

  x = jax.random.uniform(jax.random.key(1), (batch, *_SHAPE), minval=-1.0)
  compiled = jax.jit(jax.value_and_grad(loss)).lower(params, rest, x).compile()
  return compiled, (params, rest, x)


def measure(depths: list[int], width: int, batch: int, rounds: int) -> list[dict]:
  """Return one row per depth and mode: temporaries in MB, milliseconds per step."""
  programs = {(d, mode): build(d, mode, width, batch) for d in depths for mode in MODES}
  seconds = dict.fromkeys(programs, float("inf"))
  for compiled, arguments in programs.values():
    jax.block_until_ready(compiled(*arguments))  # warm up
  for _ in range(rounds):
    for name, (compiled, arguments) in programs.items():
      start = time.perf_counter()
      jax.block_until_ready(compiled(*arguments))
      seconds[name] = min(seconds[name], time.perf_counter() - start)
  return [
    {
      "depth": depth,
      "memory": mode,
      "temporaries_mb": programs[depth, mode][0].memory_analysis().temp_size_in_bytes / 1e6,
      "milliseconds": 1e3 * seconds[depth, mode],
    }
    for depth, mode in programs
  ]


def table(rows: list[dict]) -> str:
  """Return the rows as a Markdown table."""
  lines = ["| depth | memory | temporaries (MB) | ms per step |", "|---:|:---|---:|---:|"]
  for row in rows:
    lines.append(
      f"| {row['depth']} | {row['memory']} | {row['temporaries_mb']:.1f} "
      f"| {row['milliseconds']:.1f} |"
    )
  return "\n".join(lines)


def main(argv):
  """Measure, print and write."""
  if len(argv) > 1:
    raise app.UsageError(f"takes flags only, got {argv[1:]}")
  if not all(depth.isdecimal() and int(depth) for depth in _DEPTHS.value):
    raise app.UsageError(f"--depths must be positive ints like 4,32, got {_DEPTHS.value}")
  if _WIDTH.value % 4:
    raise app.UsageError(f"--width must be a multiple of 4 (heads), got {_WIDTH.value}")
  rows = measure([int(d) for d in _DEPTHS.value], _WIDTH.value, _BATCH.value, _ROUNDS.value)
  print(table(rows))
  if _OUT.value:
    pathlib.Path(_OUT.value).write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
  app.run(main)
