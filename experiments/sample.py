"""Draw pictures from a trained flow: samples, interpolations, reconstructions.

python -m experiments.sample --workdir=runs/jet_digits --temperatures=0.7,0.85,1.0
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments import command, plots, workdirs
from experiments.tasks import Density, spherical

FLAGS = flags.FLAGS

_ROW = 8  # pictures in a row


def run(
  workdir: str,
  temperatures: Sequence[float] = (0.7, 0.85, 1.0),
  count: int = 64,
  seed: int = 0,
) -> list[Path]:
  """Write the pictures of a trained flow into its workdir.

  Args:
    workdir: a workdir of `experiments.train`.
    temperatures: one file of samples for each; 1 is the model itself.
    count: samples in each file; a conditional model draws the same number of every class.
    seed: seed of the samples.

  Returns:
    The files written.

  Raises:
    ValueError: for a temperature below 0, a count below 1, or a workdir without a checkpoint.
  """
  if count < 1:
    raise ValueError(f"count must be at least 1, got {count}")
  if bad := [t for t in temperatures if t < 0]:
    raise ValueError(f"temperatures must be at least 0, got {bad}")
  task, flow = workdirs.open_workdir(workdir)
  directory, key = Path(workdir), jax.random.key(seed)
  show = {"num_levels": task.dataset.num_levels}
  files = []

  label, columns = None, _ROW
  if task.num_classes:
    columns = task.num_classes  # one column for each class
    count = max(1, count // columns) * columns
    label = jnp.arange(count) % columns
  draw = jax.jit(lambda flow, t: task.samples(flow, key, count, t, label))
  for temperature in temperatures:
    files.append(directory / f"samples_T{temperature:g}.png")
    images = np.asarray(draw(flow, jnp.float32(temperature)))
    plots.image_grid(images, files[-1], columns=columns, **show)

  files.append(directory / "interpolations.png")
  plots.image_grid(interpolations(task, flow, key), files[-1], columns=_ROW, **show)
  files.append(directory / "reconstructions.png")
  plots.image_grid(reconstructions(task, flow, key), files[-1], columns=_ROW, **show)
  for file in files:
    print(f"wrote {file}")
  return files


def interpolations(task: Density, flow, key, rows: int = 6) -> np.ndarray:
  """Return `rows` walks between held-out images, (rows * 8, h, w, c), along circles of latents."""
  image = jnp.asarray(task.dataset.test["image"][: 2 * rows])
  x = task.dequantize(image, key)
  latents = np.asarray(jax.jit(lambda flow, x: flow.bijector.forward(x)[0])(flow, x))
  walks = [spherical(latents[2 * i], latents[2 * i + 1], _ROW) for i in range(rows)]
  decode = jax.jit(lambda flow, z: task.quantize(flow.bijector.inverse(z)[0]))
  return np.asarray(decode(flow, jnp.asarray(np.concatenate(walks), x.dtype)))


def reconstructions(task: Density, flow, key) -> np.ndarray:
  """Return three rows of 8: held-out images, their round trips, and those from latents times 0.7.

  The second row shows that the flow is invertible, the third what moving towards the mode does.
  """
  image = jnp.asarray(task.dataset.test["image"][:_ROW])

  def decode(flow, image):
    z, _ = flow.bijector.forward(task.dequantize(image, key))
    return [task.quantize(flow.bijector.inverse(scale * z)[0]) for scale in (1.0, 0.7)]

  return np.concatenate([np.asarray(rows) for rows in (image, *jax.jit(decode)(flow, image))])


def main(argv):
  """Draw pictures as the flags say."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; flags look like --workdir=DIR")
  temperatures = [float(t) for t in FLAGS.temperatures]
  run(FLAGS.workdir, temperatures, FLAGS.count, FLAGS.seed)


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "A workdir of experiments.train.")
  flags.DEFINE_list("temperatures", ["0.7", "0.85", "1.0"], "One grid for each.")
  flags.DEFINE_integer("count", 64, "Samples for each temperature.")
  flags.DEFINE_integer("seed", 0, "Seed of the samples.")
  flags.mark_flags_as_required(["workdir"])
  command.run(main)
