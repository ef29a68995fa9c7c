"""Score a trained model on all held-out examples, next to references on the same split.

  python -m experiments.evaluate --workdir=runs/jet_digits --draws=5

Prints one table and writes `evaluate.json` in the workdir.
"""

import json
import time
from pathlib import Path

from absl import app, flags

from experiments import command, tasks, workdirs

FLAGS = flags.FLAGS


def run(workdir: str, draws: int | None = None) -> dict:
  """Evaluate a workdir; print the table, write `evaluate.json` and draw the curves beside it.

  Args:
    workdir: a workdir of `experiments.train`.
    draws: dequantizations per held-out image of a density; None takes the config's.

  Returns:
    What `evaluate.json` holds: the numbers of the task's `evaluate`, seconds, config and versions.

  Raises:
    ValueError: if `draws` is below 1 or the task draws nothing, or the workdir has no checkpoint.
  """
  task, model = workdirs.open_workdir(workdir)
  options = tasks.chosen(task.evaluate, draws=draws)
  start = time.monotonic()
  result = {
    **task.evaluate(model, **options),
    "seconds": time.monotonic() - start,
    "config": task.config.to_dict(),
    "versions": json.loads((Path(workdir) / "record.json").read_text())["versions"],
  }
  path = Path(workdir) / "evaluate.json"
  workdirs.write_json(path, result)
  print(task.table(result))
  for file in (path, task.curves(workdir)):
    print(f"wrote {file}")
  return result


def main(argv):
  """Evaluate as the flags say."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; flags look like --workdir=DIR")
  run(FLAGS.workdir, FLAGS.draws)


if __name__ == "__main__":
  command.define_path("workdir", None, "A workdir of experiments.train.")
  flags.DEFINE_integer("draws", None, "Dequantizations per image; default: the config's.")
  flags.mark_flags_as_required(["workdir"])
  command.run(main)
