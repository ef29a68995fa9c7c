"""Fit families of flows to every two-dimensional toy density, and draw what they learn.

  python -m experiments.densities_2d --out=DIR [--tiny] [--steps=2000] [--only=FAMILY,...]

DIR gets results.json, table.md (also printed) and densities_2d.png: for each density a row, for
each family the density on a mesh and samples, in blocks of up to five families. Held-out negative
log-likelihoods are in nats, on points drawn anew; where the true density has a closed form its
entropy stands beside them, below which no model's expected value can fall. `mass` is the integral
of the learned density over the drawn mesh, the rest lies outside.

The families are those of `experiments.families_2d`; by default all that need no further package.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

from experiments import command, families_2d, plots, workdirs
from experiments.families_2d import FAMILIES
from experiments.plane import mesh, show_density, show_points
from experiments.scan_train import falling_adam, train
from normjax import flows

_IN_A_BLOCK = 5  # families beside each other in the picture


@dataclasses.dataclass(frozen=True)
class Settings(families_2d.Size):
  """How a flow is fitted and judged, beside its size.

  Attributes:
    steps: of Adam, whose learning rate falls to zero along a cosine.
    batch_size: points of a step, of a pool of training points.
    pool: how many training points there are.
    held_out: how many points the score is the mean over.
    learning_rate: at first.
    side: mesh points on each axis.
    seed: of points, parameters and samples.
  """

  steps: int = 2000
  batch_size: int = 256
  pool: int = 50_000
  held_out: int = 10_000
  learning_rate: float = 3e-3
  side: int = 200
  seed: int = 0


TINY = Settings(layers=2, width=4, steps=2, batch_size=8, pool=32, held_out=16, side=8)


def entropy(name: str, points: np.ndarray) -> float | None:
  """Return the mean of -log p over points of a density in closed form, else None."""
  log_prob = flows.TOY_LOG_PROBS.get(name)
  return None if log_prob is None else float(-jnp.mean(log_prob(jnp.asarray(points))))


def fit(make: families_2d.Make, settings: Settings) -> Callable[..., Any]:
  """Return `run(pool, held_out, mesh, key)`, which trains and judges a new flow in one program.

  It returns the held-out score, its standard error, the log-density (side^2,) on the mesh and
  samples (held_out, 2).
  """

  @jax.jit
  def run(pool: jax.Array, held_out: jax.Array, points: jax.Array, key: jax.Array) -> Any:
    init_key, batch_key, sample_key = jax.random.split(key, 3)
    flow = flows.init_from_data(make(settings, nnx.Rngs(init_key)), pool[:2048])

    def objective(flow: flows.Flow, key: jax.Array, _: jax.Array) -> jax.Array:
      batch = pool[jax.random.randint(key, (settings.batch_size,), 0, len(pool))]
      return -jnp.mean(flow.log_prob(batch))

    adam = falling_adam(settings.learning_rate, settings.steps)
    flow = train(flow, objective, settings.steps, adam, batch_key)
    scores = -flow.log_prob(held_out)
    error = jnp.std(scores) / jnp.sqrt(len(held_out))
    return jnp.mean(scores), error, flow.log_prob(points), flow.sample(sample_key, len(held_out))

  return run


def run(families: list[str], settings: Settings) -> tuple[dict, dict]:
  """Fit all; return the results and, by density, data and by family mesh and samples."""
  splits, rows, drawn = {}, [], {}
  for i, (name, sampler) in enumerate(flows.TOY_SAMPLERS.items()):
    keys = jax.random.split(jax.random.fold_in(jax.random.key(settings.seed), i))
    pool, held_out = sampler(keys[0], settings.pool), sampler(keys[1], settings.held_out)
    half = 1.25 * float(jnp.max(jnp.abs(held_out)))
    splits[name] = pool, held_out, half
    drawn[name] = {"half": half, "data": np.asarray(held_out), "flows": {}}
  for family in families:
    one = fit(FAMILIES[family], settings)
    for name, (pool, held_out, half) in splits.items():
      start, points = time.perf_counter(), mesh(-half, half, settings.side)
      found = one(pool, held_out, points, jax.random.key(settings.seed))
      score, error, log_prob, samples = (np.asarray(v) for v in found)
      density = np.exp(log_prob.astype(np.float64))
      drawn[name]["flows"][family] = density.reshape(settings.side, -1), samples
      rows.append({
        "density": name, "family": family, "nll": float(score), "se": float(error),
        "mass": float(density.sum() * (2 * half / settings.side) ** 2),
        "entropy": entropy(name, held_out), "seconds": time.perf_counter() - start,
      })  # fmt: skip
  return {"settings": dataclasses.asdict(settings), "rows": rows}, drawn


def table(results: dict) -> str:
  """Return held-out scores (± standard error over points) and masses as a Markdown table."""
  rows = results["rows"]
  names, families = (list(dict.fromkeys(row[key] for row in rows)) for key in ("density", "family"))
  exact = {row["density"]: row["entropy"] for row in rows}
  known = ["" if exact[name] is None else f"{exact[name]:.3f}" for name in names]
  cells = [["family", *names, "mass"], ["entropy", *known, ""]]
  for family in families:
    own = {row["density"]: row for row in rows if row["family"] == family}
    masses = [row["mass"] for row in own.values()]
    scores = [f"{own[name]['nll']:.3f} ± {own[name]['se']:.3f}" for name in names]
    cells.append([family, *scores, f"{min(masses):.3f} to {max(masses):.3f}"])
  lines = [f"| {' | '.join(row)} |\n" for row in cells]
  return "".join([lines[0], "|:---|" + "---:|" * (len(names) + 1) + "\n", *lines[1:]])


def picture(drawn: dict, path: Path) -> Path:
  """Draw the data, and the density and samples of each family, a row for each set in each block."""
  families = list(next(iter(drawn.values()))["flows"])
  blocks = -(-len(families) // _IN_A_BLOCK)
  across = math.ceil(len(families) / blocks)
  columns = 1 + 2 * across
  figure = plots.plt.figure(
    figsize=(1.35 * columns, 1.42 * len(drawn) * blocks), layout="constrained"
  )
  for block, part in enumerate(np.atleast_1d(figure.subfigures(blocks, 1))):
    panels = part.subplots(len(drawn), columns, squeeze=False)
    shown = families[block * across : (block + 1) * across]
    for number, (row, (name, found)) in enumerate(zip(panels, drawn.items(), strict=True)):
      half = found["half"]
      # One scale in a row; the brightest cells of a sharp density would darken all others.
      top = max(np.quantile(density, 0.995) for density, _ in found["flows"].values())
      show_points(row[0], found["data"], half)
      row[0].set_ylabel(name.replace("_", " "), fontsize=9)
      row[0].set_title("" if number else "data", fontsize=9)
      for i, family in enumerate(shown):
        left, right = row[1 + 2 * i], row[2 + 2 * i]
        density, samples = found["flows"][family]
        show_density(left, density, half, top)
        left.set_title("" if number else family, fontsize=9)
        show_points(right, samples, half)
      for axes in row[1 + 2 * len(shown) :]:
        axes.set_axis_off()
  return plots.save(figure, path)


def main(argv):
  """Fit, print and write."""
  if len(argv) > 1:
    raise app.UsageError(f"takes flags only, got {argv[1:]}")
  flag = flags.FLAGS
  families = families_2d.chosen(flag.only)
  settings = TINY if flag.tiny else Settings(steps=flag.steps, seed=flag.seed)
  workdirs.check_free(flag.out)
  results, drawn = run(families, settings)
  workdirs.write_results(flag.out, results, table(results))
  picture(drawn, Path(flag.out) / "densities_2d.png")


if __name__ == "__main__":
  command.define_path("out", None, "Where results.json, table.md and densities_2d.png go.")
  flags.DEFINE_bool("tiny", False, "A few small steps, to see that everything runs.")
  flags.DEFINE_integer("steps", 2000, "Steps of each fit.", lower_bound=1)
  flags.DEFINE_integer("seed", 0, "Of points, parameters and samples.")
  flags.DEFINE_list("only", [], "Families; default: all that need no further package.")
  flags.mark_flags_as_required(["out"])
  command.run(main, trains=True)
