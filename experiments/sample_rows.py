"""Draw samples of several trained image flows, a row for each, under a row of held-out images.

  python -m experiments.sample_rows --rows=Glow=runs/glow,Jet=runs/jet --out=rows.png

Samples of a row are the first ones drawn with the seed, none chosen.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from experiments import command, plots, workdirs

FLAGS = flags.FLAGS


def run(
  rows: Mapping[str, str],
  out: str,
  *,
  count: int = 12,
  temperature: float = 1.0,
  seed: int = 0,
) -> Path:
  """Write the picture.

  Args:
    rows: workdirs of `experiments.train`, by what stands beside their rows.
    out: the PNG.
    count: images in a row.
    temperature: of the samples; 1 is the model itself.
    seed: seed of the samples.

  Returns:
    The path.

  Raises:
    ValueError: if there are no rows, `count` is below 1, `temperature` below 0, or a workdir holds
      no density of images, or one of another data set than the first.
  """
  if not rows or count < 1 or not temperature >= 0:
    raise ValueError(
      "rows must not be empty, count at least 1 and temperature at least 0, got "
      f"{dict(rows)}, {count} and {temperature}"
    )
  drawn, first = {}, None
  for name, workdir in rows.items():
    task, model = workdirs.open_density(workdir)
    first = first or task
    if task.config.data.name != first.config.data.name:
      raise ValueError(
        f"{workdir} must be of {first.config.data.name} as the first row, got "
        f"{task.config.data.name}"
      )
    label = task.labels(count)
    draw = jax.jit(
      lambda model, task=task, label=label: task.samples(
        model, jax.random.key(seed), count, temperature, label
      )
    )
    drawn[name] = np.asarray(draw(model))
  held_out = {"held out": first.evaluation_arrays(count)["image"]}
  return plots.image_rows(held_out | drawn, out, num_levels=first.dataset.num_levels)


def main(argv):
  """Draw as the flags say."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; flags look like --rows=NAME=WORKDIR")
  if wrong := [row for row in FLAGS.rows if "=" not in row]:
    raise ValueError(f"--rows must be NAME=WORKDIR, got {', '.join(wrong)}")
  rows = dict(row.split("=", 1) for row in FLAGS.rows)
  if len(rows) < len(FLAGS.rows):
    raise ValueError(f"--rows must have different names, got {', '.join(FLAGS.rows)}")
  options = {"count": FLAGS.count, "temperature": FLAGS.temperature, "seed": FLAGS.seed}
  print(f"wrote {run(rows, FLAGS.out, **options)}")


if __name__ == "__main__":
  flags.DEFINE_list("rows", None, "NAME=WORKDIR, workdirs of experiments.train.")
  command.define_path("out", None, "The PNG.")
  flags.DEFINE_integer("count", 12, "Images in a row.")
  flags.DEFINE_float("temperature", 1.0, "Of the samples.")
  flags.DEFINE_integer("seed", 0, "Seed of the samples.")
  flags.mark_flags_as_required(["rows", "out"])
  command.run(main)
