"""Draw the pictures of a trained model: a flow's samples, what a classifier confuses.

python -m experiments.sample --workdir=runs/jet_digits --temperatures=0.7,0.85,1.0
"""

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from experiments import command, tasks, workdirs

FLAGS = flags.FLAGS


def run(
  workdir: str,
  temperatures: Sequence[float] | None = None,
  count: int | None = None,
  seed: int | None = None,
) -> list[Path]:
  """Write the pictures of a trained model into its workdir.

  None stands for the task's own choice.

  Args:
    workdir: a workdir of `experiments.train`.
    temperatures: of a flow's samples, one file for each; 1 is the model itself.
    count: images in each file.
    seed: seed of what is drawn at random.

  Returns:
    The files written.

  Raises:
    ValueError: for a number out of range, one that the task's pictures know nothing of, or a
      workdir without a checkpoint.
  """
  task, model = workdirs.open_workdir(workdir)
  options = tasks.chosen(task.pictures, temperatures=temperatures, count=count, seed=seed)
  files = task.pictures(model, workdir, **options)
  for file in files:
    print(f"wrote {file}")
  return files


def main(argv):
  """Draw pictures as the flags say."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; flags look like --workdir=DIR")
  temperatures = FLAGS.temperatures and command.numbers("temperatures", FLAGS.temperatures, float)
  run(FLAGS.workdir, temperatures, FLAGS.count, FLAGS.seed)


if __name__ == "__main__":
  command.define_path("workdir", None, "A workdir of experiments.train.")
  flags.DEFINE_list("temperatures", None, "One grid for each; default: 0.7,0.85,1.0.")
  flags.DEFINE_integer("count", None, "Images in each file; default: 64.")
  flags.DEFINE_integer("seed", None, "Seed of the samples; default: 0.")
  flags.mark_flags_as_required(["workdir"])
  command.run(main)
