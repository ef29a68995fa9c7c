"""Fit flows to the energies U1 to U4 by reverse KL, and compare them with the true densities.

  python -m experiments.potentials_2d --out=DIR [--tiny] [--steps=2000] [--only=FAMILY,...]

The target is p(x) = exp(-U(x)) / Z. U2 to U4 do not decay along the first axis, so all get a wall
there, ((|x1| - 4)_+ / 0.4)^2 / 2. Flows see U alone; Z is summed over a mesh, and turns what they
minimize, a bound, into the divergence KL(q | p) itself, zero at best. ESS is the effective sample
size of draws weighed by p / q, as a share of their number. U is multiplied by a factor that grows
to 1 in the first half of the steps, without which modes are lost (Rezende and Mohamed, 2015,
https://arxiv.org/abs/1505.05770).

DIR gets results.json, table.md (also printed) and potentials_2d.png, true and learned densities.
"""

import dataclasses
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
from experiments.plane import mesh, show_density
from experiments.scan_train import falling_adam, train
from normjax import flows

_END, _SOFTNESS = 4.0, 0.4  # where the wall begins, and the deviation of a normal density into it
_HALF = 6.0  # of the mesh: what is outside is below 1e-5


@dataclasses.dataclass(frozen=True)
class Settings(families_2d.Size):
  """How a flow is fitted and judged, beside its size.

  Attributes:
    steps: of Adam, whose learning rate falls to zero along a cosine.
    batch_size: draws of a step.
    draws: of the flow, that the result is the mean over.
    learning_rate: at first.
    side: mesh points on each axis.
    seed: of parameters and draws.
  """

  steps: int = 2000
  batch_size: int = 256
  draws: int = 100_000
  learning_rate: float = 3e-3
  side: int = 400
  seed: int = 0


TINY = Settings(layers=2, width=4, steps=2, batch_size=8, draws=16, side=20)


def _turned(make: families_2d.Make) -> families_2d.Make:
  """Return the family whose samples take the direction that was the density's."""

  def turned(size: families_2d.Size, rngs: nnx.Rngs) -> flows.Flow:
    flow = make(size, rngs)
    return flows.Flow(flows.Inverted(flow.bijector), flow.base)

  return turned


# Training draws samples and nothing else: what has a numerical inverse is turned round.
FAMILIES: dict[str, families_2d.Make] = {
  "planar": _turned(families_2d.FAMILIES["planar"]),
  "affine coupling": families_2d.FAMILIES["affine coupling"],
  "spline coupling": families_2d.FAMILIES["spline coupling"],
}


def walled(energy: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
  """Return an energy with a wall at both ends of the first axis."""
  outside = lambda x: jnp.maximum(jnp.abs(x[:, 0]) - _END, 0)
  return lambda x: energy(x) + (outside(x) / _SOFTNESS) ** 2 / 2


def log_normalizer(energy: Callable[[jax.Array], jax.Array], side: int) -> float:
  """Return log of the integral of exp(-U) over the mesh."""
  with jax.enable_x64(True):
    values = np.asarray(energy(jnp.asarray(mesh(-_HALF, _HALF, side), jnp.float64)))
  return float(np.log(np.sum(np.exp(-values)) * (2 * _HALF / side) ** 2))


def fit(make: families_2d.Make, settings: Settings) -> Callable[..., Any]:
  """Return `run(number, mesh, key)`, which trains a new flow for the potential of that number.

  It returns log p / q (draws,) of draws, up to log Z, and the log-density (side^2,) on the mesh.
  All potentials share one program.
  """
  energies = [walled(potential) for potential in flows.POTENTIALS.values()]

  @jax.jit
  def run(number: jax.Array, points: jax.Array, key: jax.Array) -> Any:
    energy = lambda x: jax.lax.switch(number, energies, x)

    def objective(flow: flows.Flow, key: jax.Array, progress: jax.Array) -> jax.Array:
      heat = jnp.minimum(1, 0.01 + 2 * progress)
      return flows.reverse_kl(flow, lambda x: heat * energy(x), key, settings.batch_size)

    init_key, train_key, draw_key = jax.random.split(key, 3)
    flow = make(settings, nnx.Rngs(init_key))
    adam = falling_adam(settings.learning_rate, settings.steps)
    flow = train(flow, objective, settings.steps, adam, train_key)
    weights = flows.importance_log_weights(flow, energy, draw_key, settings.draws)
    return weights, flow.log_prob(points)

  return run


def run(families: list[str], settings: Settings) -> tuple[dict, dict]:
  """Fit all; return the results and, by potential, the true density and those of the families."""
  points, area = mesh(-_HALF, _HALF, settings.side), (2 * _HALF / settings.side) ** 2
  square = lambda log_density: np.exp(np.asarray(log_density, float)).reshape(settings.side, -1)
  rows, drawn, log_z = [], {}, {}
  for name, potential in flows.POTENTIALS.items():
    energy = walled(potential)
    log_z[name] = log_normalizer(energy, settings.side)
    drawn[name] = {"true": square(-energy(jnp.asarray(points)) - log_z[name])}
  for family in families:
    one = fit(FAMILIES[family], settings)
    for number, name in enumerate(flows.POTENTIALS):
      start = time.perf_counter()
      log_weights, log_prob = one(number, points, jax.random.key(settings.seed))
      drawn[name][family] = square(log_prob)
      weights = np.asarray(log_weights, float)
      rows.append({
        "potential": name, "family": family, "log_z": log_z[name],
        "kl": float(log_z[name] - weights.mean()), "se": float(weights.std() / len(weights) ** 0.5),
        "ess": float(flows.effective_sample_size(log_weights)) / settings.draws,
        "mass": float(drawn[name][family].sum() * area), "seconds": time.perf_counter() - start,
      })  # fmt: skip
  return {"settings": dataclasses.asdict(settings), "rows": rows}, drawn


def table(results: dict) -> str:
  """Return KL(q | p) (± standard error over draws) and the effective share, as Markdown."""
  rows = results["rows"]
  families = list(dict.fromkeys(row["family"] for row in rows))
  heads = [f"{family}: {number}" for family in families for number in ("KL", "ESS")]
  lines = [
    f"| potential | log Z | {' | '.join(heads)} |\n",
    f"|:---{'|---:' * (len(heads) + 1)}|\n",
  ]
  for name in flows.POTENTIALS:
    own = [row for row in rows if row["potential"] == name]
    scores = [f"{row['kl']:.4f} ± {row['se']:.4f} | {row['ess']:.3f}" for row in own]
    lines.append(f"| {name} | {own[0]['log_z']:.3f} | {' | '.join(scores)} |\n")
  return "".join(lines)


def picture(drawn: dict, path: Path) -> Path:
  """Draw the true density and those of the families, a row for each potential."""
  columns = list(next(iter(drawn.values())))
  size = {"figsize": (1.9 * len(columns), 1.9 * len(drawn)), "squeeze": False}
  figure, panels = plots.plt.subplots(len(drawn), len(columns), layout="constrained", **size)
  for number, (row, (name, densities)) in enumerate(zip(panels, drawn.items(), strict=True)):
    row[0].set_ylabel(name, fontsize=9)
    for axes, column in zip(row, columns, strict=True):
      show_density(axes, densities[column], _HALF, densities["true"].max())
      axes.set_title("" if number else column, fontsize=9)
  return plots.save(figure, path)


def main(argv):
  """Fit, print and write."""
  if len(argv) > 1:
    raise app.UsageError(f"takes flags only, got {argv[1:]}")
  flag = flags.FLAGS
  families = families_2d.chosen(flag.only, FAMILIES)
  settings = TINY if flag.tiny else Settings(steps=flag.steps, seed=flag.seed)
  workdirs.check_free(flag.out)
  results, drawn = run(families, settings)
  workdirs.write_results(flag.out, results, table(results))
  picture(drawn, Path(flag.out) / "potentials_2d.png")


if __name__ == "__main__":
  command.define_path("out", None, "Where results.json, table.md and potentials_2d.png go.")
  flags.DEFINE_bool("tiny", False, "A few small steps, to see that everything runs.")
  flags.DEFINE_integer("steps", 2000, "Steps of each fit.", lower_bound=1)
  flags.DEFINE_integer("seed", 0, "Of parameters and draws.")
  flags.DEFINE_list("only", [], "Families; default: all.")
  flags.mark_flags_as_required(["out"])
  command.run(main, trains=True)
