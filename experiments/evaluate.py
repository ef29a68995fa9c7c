"""Score a trained flow on all held-out images, next to references on the same split.

  python -m experiments.evaluate --workdir=runs/jet_digits --draws=5

Prints one table and writes `evaluate.json` in the workdir.
"""

import json
import math
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from experiments import command, data, plots, workdirs
from experiments.references import references

FLAGS = flags.FLAGS


def run(workdir: str, draws: int | None = None) -> dict:
  """Evaluate a workdir; print the table, write `evaluate.json` and draw the curves beside it.

  Args:
    workdir: a workdir of `experiments.train`.
    draws: dequantizations per held-out image; None takes the config's.

  Returns:
    What `evaluate.json` holds: `bits_per_dim` is the mean over all held-out images and draws,
    `bits_per_dim_se` its standard error over images.

  Raises:
    ValueError: if `draws` is below 1 or the workdir has no checkpoint.
  """
  task, flow = workdirs.open_workdir(workdir)
  config = task.config
  draws = config.eval.draws if draws is None else draws
  if draws < 1:
    raise ValueError(f"draws must be at least 1, got {draws}")
  start = time.monotonic()
  scores = score_all(task, flow, draws)
  tiny = len(task.dataset.train["image"]) < 500 or config.total_steps < 50
  result = {
    "bits_per_dim": float(scores.mean()),
    "bits_per_dim_se": float(scores.std(ddof=1) / math.sqrt(len(scores))),
    "references": references(task.dataset, config.seed, tiny=tiny),
    "seconds": time.monotonic() - start,
    "draws": draws,
    "examples": len(scores),
    "config": config.to_dict(),
    "versions": json.loads((Path(workdir) / "record.json").read_text())["versions"],
  }
  path = Path(workdir) / "evaluate.json"
  scratch = path.with_suffix(".json.tmp")
  scratch.write_text(json.dumps(result, indent=2))
  scratch.replace(path)
  print(table(result))
  for file in (path, plots.curves(workdir)):
    print(f"wrote {file}")
  return result


def score_all(task, flow, draws: int) -> np.ndarray:
  """Return bits per dimension (n,) of all held-out images, averaged over `draws`."""
  arrays = task.evaluation_arrays()
  count = len(arrays["image"])
  size = min(task.config.eval.batch_size, count)
  score = jax.jit(lambda flow, batch, key: task.score(flow, batch, key, draws))
  key, scores = jax.random.key(task.config.seed + 2), []
  for i, batch in enumerate(data.batches(arrays, size, shuffle=False, repeat=False)):
    rows = len(batch["image"])
    # The last batch is filled up, so that one shape is compiled; the filling is cut off again.
    full = {name: np.resize(array, (size, *array.shape[1:])) for name, array in batch.items()}
    scores.append(np.asarray(score(flow, full, jax.random.fold_in(key, i)))[:rows])
  return np.concatenate(scores)


def table(result: dict) -> str:
  """Return the Markdown table of an evaluation."""
  rows = [("this model", f"{result['bits_per_dim']:.3f} ± {result['bits_per_dim_se']:.3f}")]
  names = {"uniform": "uniform", "gaussian": "full-covariance Gaussian", "gmm": "Gaussian mixture"}
  rows += [(names.get(k, k), f"{v:.3f}") for k, v in result["references"].items()]
  width = max(len(name) for name, _ in rows)
  head = f"held-out, {result['examples']} images x {result['draws']} draws"
  width = max(width, len(head))
  lines = [f"| {head:{width}} | bits/dim      |", f"| {'-' * width} | ------------- |"]
  return "\n".join(lines + [f"| {name:{width}} | {value:13} |" for name, value in rows])


def main(argv):
  """Evaluate as the flags say."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; flags look like --workdir=DIR")
  run(FLAGS.workdir, FLAGS.draws)


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "A workdir of experiments.train.")
  flags.DEFINE_integer("draws", None, "Dequantizations per image; default: the config's.")
  flags.mark_flags_as_required(["workdir"])
  command.run(main)
