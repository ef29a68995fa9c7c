"""Measure how long trained flows take to draw samples.

  python -m experiments.sampling_speed --workdirs=runs/glow_fashion,runs/jet_fashion --sizes=1,16

Samples are drawn by one compiled program for each size, denoised and quantized as for pictures. The
least of several times counts, as in `experiments.bench`: others only add to it.
"""

import time
from collections.abc import Sequence

import jax
from absl import app, flags

from experiments import command, workdirs

FLAGS = flags.FLAGS


def run(workdir: str, sizes: Sequence[int] = (1, 16), repeats: int = 5) -> dict[int, float]:
  """Return the least seconds per sample of a trained density, for each number drawn at once.

  Raises:
    ValueError: if there is no size, one or `repeats` is below 1, or the workdir's task has no such
      samples.
  """
  if repeats < 1 or not sizes or min(sizes) < 1:
    raise ValueError(f"sizes and repeats must be at least 1, got {list(sizes)} and {repeats}")
  task, model = workdirs.open_density(workdir)
  found = {}
  for size in sizes:
    label = task.labels(size)
    options = {"count": size, "label": label}
    draw = jax.jit(lambda model, key, options=options: task.samples(model, key, **options))
    jax.block_until_ready(draw(model, jax.random.key(0)))
    times = []
    for i in range(repeats):
      start = time.perf_counter()
      jax.block_until_ready(draw(model, jax.random.key(i)))
      times.append(time.perf_counter() - start)
    found[size] = min(times) / size
  return found


def main(argv):
  """Measure as the flags say."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; flags look like --workdirs=A,B")
  if not FLAGS.workdirs:
    raise ValueError("--workdirs must name a workdir or more, got none")
  for workdir in FLAGS.workdirs:
    found = run(workdir, command.numbers("sizes", FLAGS.sizes, int))
    text = ", ".join(f"{1e3 * v:.3g} ms a sample in {n}" for n, v in found.items())
    print(f"{workdir}: {text}")


if __name__ == "__main__":
  flags.DEFINE_list("workdirs", None, "Workdirs of experiments.train.")
  flags.DEFINE_list("sizes", ["1", "16"], "How many samples are drawn at once.")
  flags.mark_flags_as_required(["workdirs"])
  command.run(main)
