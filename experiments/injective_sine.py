"""Show why the encoder's Jacobian is taken at the data: on its own manifold a decoder runs away.

  python -m experiments.injective_sine --out=DIR [--tiny] [--seeds=0,1,2]

Points lie along a sine with noise, x = (t, sin(2 t)) + 0.1 n, t and n normal, and injective flows
with one latent are trained on them (`flows.injective_loss`). They differ in one option: whether f'
in the volume term is taken at the data or at their reconstructions. On the manifold alone the
likelihood grows without bound where a curve bends so that all points fall on few places of it.

DIR gets results.json, table.md (also printed) and injective_sine.png: held-out errors, exact
densities on the manifold and the turning of the decoder's curve while training goes on, and the
curves at its end.

Reference:
  Sorrenson et al., "Lifting Architectural Constraints of Injective Flows", 2023, arXiv 2306.01843.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import nnx

from experiments import command, plots, workdirs
from experiments.over_seeds import over_seeds
from experiments.plane import show_points
from experiments.scan_train import stepper
from normjax import flows, models

PLACES = ("data", "reconstruction")
_NOISE = 0.1
_LATENTS = np.linspace(-3, 3, 601, dtype=np.float32)[:, None]


@dataclasses.dataclass(frozen=True)
class Settings:
  """How flows are trained and judged.

  Attributes:
    width: units of the networks' hidden layers.
    num_blocks: residual blocks of encoder and decoder.
    beta: weight of the squared error.
    steps: of Adam.
    batch_size: points of a step, each seen once.
    learning_rate: of Adam.
    held_out: points that scores are means over.
    looks: how often scores are taken.
  """

  width: int = 64
  num_blocks: int = 2
  beta: float = 1.0
  steps: int = 4000
  batch_size: int = 256
  learning_rate: float = 1e-3
  held_out: int = 4096
  looks: int = 20


TINY = Settings(width=4, num_blocks=1, steps=4, batch_size=8, held_out=16, looks=2)


def draw(key: jax.Array, n: int) -> jax.Array:
  """Return n points (n, 2) about a sine."""
  keys = jax.random.split(key)
  t = jax.random.normal(keys[0], (n,))
  return jnp.stack([t, jnp.sin(2 * t)], 1) + _NOISE * jax.random.normal(keys[1], (n, 2))


def turning(curve: jax.Array) -> jax.Array:
  """Return the sum of the angles () at the corners of a curve (n, 2), in radians."""
  steps = jnp.diff(curve, axis=0)
  before, after = steps[:-1], steps[1:]
  cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
  return jnp.sum(jnp.abs(jnp.arctan2(cross, jnp.sum(before * after, axis=1))))


def fit(place: str, settings: Settings) -> Callable[..., Any]:
  """Return `run(key, held_out)`, which trains a new flow and looks at it, in one program.

  It returns the scores `(squared error, -log p, turning)`, (looks,) each, and the curve (601, 2).
  """
  optimizer = optax.adam(settings.learning_rate)

  @jax.jit
  def run(key: jax.Array, held_out: jax.Array) -> Any:
    init_key, train_key = jax.random.split(key)
    flow = models.InjectiveFlow(
      2, 1, width=settings.width, num_blocks=settings.num_blocks, rngs=nnx.Rngs(init_key)
    )

    def objective(flow: models.InjectiveFlow, key: jax.Array, _: jax.Array) -> jax.Array:
      x = draw(key, settings.batch_size)
      probes = jnp.ones((len(x), 1, 1))  # of one latent there is one direction
      parts = {"beta": settings.beta, "jacobian_at": place}
      return jnp.mean(flows.injective_loss(flow.encode, flow.decode, x, probes, **parts)[0])

    start, step, merge = stepper(flow, objective, optimizer)

    def look(carry: Any, xs: tuple[jax.Array, jax.Array]) -> Any:
      carry, _ = jax.lax.scan(step, carry, xs)
      flow = merge(carry)
      error = jnp.sum((flow.decode(flow.encode(held_out)) - held_out) ** 2, axis=1)
      log_prob = flows.injective_log_prob(flow.encode, flow.decode, held_out)
      bends = turning(flow.decode(jnp.asarray(_LATENTS)))
      return carry, (jnp.mean(error), -jnp.mean(log_prob), bends)

    keys = jax.random.split(train_key, (settings.looks, settings.steps // settings.looks))
    carry, scores = jax.lax.scan(look, start, (keys, jnp.zeros(keys.shape)))
    return scores, merge(carry).decode(jnp.asarray(_LATENTS))

  return run


def run(seeds: list[int], settings: Settings) -> tuple[dict, dict]:
  """Train all; return the results, and the data and curves of the first seed."""
  rows, drawn = [], {}
  fits = {place: fit(place, settings) for place in PLACES}
  for seed in seeds:
    data_key, key = jax.random.split(jax.random.key(seed))
    held_out = draw(data_key, settings.held_out)
    for place, one in fits.items():
      start = time.perf_counter()
      scores, curve = one(key, held_out)
      error, nll, bends = (np.asarray(score, np.float64).tolist() for score in scores)
      rows.append({
        "jacobian_at": place, "seed": seed, "squared_error": error, "nll": nll, "turning": bends,
        "seconds": time.perf_counter() - start,
      })  # fmt: skip
      if seed == seeds[0]:
        drawn[place] = np.asarray(held_out), np.asarray(curve)
  step = settings.steps // settings.looks
  steps = [step * (i + 1) for i in range(settings.looks)]
  return {"settings": dataclasses.asdict(settings), "steps": steps, "rows": rows}, drawn


def table(results: dict) -> str:
  """Return the last scores, mean ± deviation over seeds, as Markdown."""
  lines = ["| f' at the | squared error | -log p on the curve, nats | turning, radians |\n"]
  lines.append("|:---|---:|---:|---:|\n")
  for place in PLACES:
    own = [row for row in results["rows"] if row["jacobian_at"] == place]
    last = [[row[name][-1] for row in own] for name in ("squared_error", "nll", "turning")]
    cells = [over_seeds(values) for values in last]
    lines.append(f"| {place} | {' | '.join(cells)} |\n")
  return "".join(lines)


def picture(results: dict, drawn: dict, path: Path) -> Path:
  """Draw the scores by step, and the curves over the data."""
  labels = {"squared_error": "squared error", "nll": "-log p on the curve", "turning": "turning"}
  columns = len(labels) + len(drawn)
  size = {"figsize": (2.9 * columns, 2.9), "layout": "constrained"}
  figure, panels = plots.plt.subplots(1, columns, **size)
  for axes, (name, label) in zip(panels, labels.items(), strict=False):
    for row in results["rows"]:
      colour = f"C{PLACES.index(row['jacobian_at'])}"
      first = row["seed"] == results["rows"][0]["seed"]
      label_of_line = f"f' at the {row['jacobian_at']}" if first else None
      axes.plot(results["steps"], row[name], color=colour, label=label_of_line)
    axes.set(xlabel="step", title=label)
    if name != "nll":
      axes.set_yscale("log")
  panels[0].legend(fontsize=8)
  for axes, (place, (points, curve)) in zip(panels[len(labels) :], drawn.items(), strict=True):
    show_points(axes, points, 3.2)
    axes.plot(*curve.T, color=f"C{PLACES.index(place)}")
    axes.set_title(f"f' at the {place}")
  return plots.save(figure, path)


def main(argv):
  """Train, print and write."""
  if len(argv) > 1:
    raise app.UsageError(f"takes flags only, got {argv[1:]}")
  flag = flags.FLAGS
  seeds = command.seeds(flag.seeds)
  settings = TINY if flag.tiny else Settings(beta=flag.beta)
  workdirs.check_free(flag.out)
  results, drawn = run(seeds, settings)
  workdirs.write_results(flag.out, results, table(results))
  picture(results, drawn, Path(flag.out) / "injective_sine.png")


if __name__ == "__main__":
  command.define_path("out", None, "Where results.json, table.md and injective_sine.png go.")
  flags.DEFINE_bool("tiny", False, "A few small steps, to see that everything runs.")
  flags.DEFINE_float("beta", 1.0, "Weight of the squared error.", lower_bound=0.0)
  flags.DEFINE_list("seeds", ["0", "1", "2"], "Of data and parameters.")
  flags.mark_flags_as_required(["out"])
  command.run(main, trains=True)
