"""Show the exploding inverse of conditional affine flows, and that modified splines have none.

  python -m experiments.exploding_inverse --out=DIR [--tiny] [--seeds=0,1,2]

The inverse problem has two solutions: y is one of eight directions plus noise, y = u + 0.1 n, and
x = 0.3 y +- 0.6 R y + 0.1 n, R a quarter turn. Three flows differ in the map of their sub-steps
alone (`flows.FeatureConditional`, `flows.SelfConditional`): affine, affine with the reciprocal
scale, two-bin splines. They are then asked for solutions given m y, which nobody measured. Where
samples are matters little, since shifts extrapolate for every kind; how far those of one
measurement lie apart is the explosion. Its measure is the standard deviation over draws, the larger
one of both coordinates: 0.4 to 0.6 of the solutions themselves.

DIR gets results.json, table.md (also printed) and exploding_inverse.png: the deviation by m, and
draws at m = 1.

Reference:
  Hong, Park, Chun, "On the robustness of normalizing flows for inverse problems in imaging", 2022,
  arXiv 2212.04319.
"""

import dataclasses
import functools
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
from scipy import stats

from experiments import command, plots, workdirs
from experiments.over_seeds import over_seeds
from experiments.plane import show_points
from experiments.scan_train import train
from normjax import diagnostics, flows

FACTORS = (1, 3, 10, 30, 100)
KINDS: dict[str, Callable[[], flows.Transform]] = {
  "affine": flows.ConditionalAffineTransform,
  "affine, reciprocal": functools.partial(flows.ConditionalAffineTransform, reciprocal=True),
  "modified spline": flows.ModifiedRQSTransform,
}


@dataclasses.dataclass(frozen=True)
class Settings:
  """How flows are fitted and judged.

  Attributes:
    layers: each an ActNorm, a map given y, a map given y and one coordinate, and a swap.
    width: units of the two hidden layers of a network.
    steps: of Adam, gradients clipped to a norm of 5.
    batch_size: examples of a step, each seen once.
    learning_rate: of Adam.
    held_out: examples that the score is the mean over.
    conditions: measurements that are multiplied.
    draws: samples of each.
  """

  layers: int = 6
  width: int = 32
  steps: int = 1000
  batch_size: int = 256
  learning_rate: float = 1e-3
  held_out: int = 10_000
  conditions: int = 60
  draws: int = 64


TINY = Settings(layers=2, width=4, steps=2, batch_size=16, held_out=32, conditions=4, draws=8)


class Network(nnx.Module):
  """Two hidden layers of SiLU units; zero at first."""

  def __init__(self, in_features: int, out_features: int, *, width: int, rngs: nnx.Rngs):
    self.first = nnx.Linear(in_features, width, rngs=rngs)
    self.second = nnx.Linear(width, width, rngs=rngs)
    zeros = nnx.initializers.zeros
    self.last = nnx.Linear(width, out_features, kernel_init=zeros, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Return the outputs (b, out_features)."""
    return self.last(nnx.silu(self.second(nnx.silu(self.first(x)))))


def draw(key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
  """Return `(x, y)`, (n, 2) each: solutions and what was measured of them."""
  keys = jax.random.split(key, 4)
  angle = jax.random.randint(keys[0], (n,), 0, 8) * (jnp.pi / 4)
  y = jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1) + 0.1 * jax.random.normal(keys[1], (n, 2))
  turned = jnp.stack([-y[:, 1], y[:, 0]], 1)
  side = jax.random.rademacher(keys[2], (n, 1), y.dtype)
  return 0.3 * y + 0.6 * side * turned + 0.1 * jax.random.normal(keys[3], (n, 2)), y


def make(kind: str, settings: Settings, rngs: nnx.Rngs) -> flows.Flow:
  """Build the flow of a kind."""
  network = functools.partial(Network, width=settings.width)
  options: dict[str, Any] = {"cond_features": 2, "make_net": network}

  def layer(rngs: nnx.Rngs) -> flows.Bijector:
    return flows.Chain([
      flows.ActNorm(2),
      flows.FeatureConditional(2, KINDS[kind](), rngs=rngs, **options),
      flows.SelfConditional(2, KINDS[kind](), rngs=rngs, **options),
      flows.Permutation(jnp.array([1, 0])),
    ])  # fmt: skip

  return flows.Flow(flows.Scan(layer, settings.layers, rngs=rngs), flows.StandardNormal((2,)))


def fit(kind: str, settings: Settings) -> Callable[..., Any]:
  """Return `run(key, x, y)`, which trains and judges a new flow in one program.

  It returns -log p (n,) of held-out `(x, y)`, samples (n, 2) given `y`, and for each factor samples
  (draws, conditions, 2) given so many times the first of `y`.
  """

  @jax.jit
  def run(key: jax.Array, x: jax.Array, y: jax.Array) -> Any:
    keys = jax.random.split(key, 5)
    flow = flows.init_from_data(make(kind, settings, nnx.Rngs(keys[0])), *draw(keys[1], 2048))

    def objective(flow: flows.Flow, key: jax.Array, _: jax.Array) -> jax.Array:
      return -jnp.mean(flow.log_prob(*draw(key, settings.batch_size)))

    optimizer = optax.chain(optax.clip_by_global_norm(5.0), optax.adam(settings.learning_rate))
    flow = train(flow, objective, settings.steps, optimizer, keys[2])
    some = jnp.tile(y[: settings.conditions], (settings.draws, 1))
    given = lambda m: flow.sample(keys[3], len(some), m * some)
    asked = jax.lax.map(given, jnp.array(FACTORS, y.dtype))
    asked = asked.reshape(len(FACTORS), settings.draws, settings.conditions, 2)
    return -flow.log_prob(x, y), flow.sample(keys[4], len(y), y), asked

  return run


def deviations(x: np.ndarray) -> np.ndarray:
  """Return standard deviations (..., n) over draws (..., draws, n, 2), the larger of the two."""
  # What left float32 is as large as its largest number.
  top = float(np.finfo(np.float32).max)
  x = np.clip(np.nan_to_num(np.asarray(x, np.float64), nan=top), -top, top)
  return np.std(x, axis=-3).max(-1)


def run(seeds: list[int], settings: Settings) -> tuple[dict, dict]:
  """Fit all; return the results, and of the first seed the data and the draws of each kind."""
  fits = {kind: fit(kind, settings) for kind in KINDS}
  by_factor = lambda values: dict(zip(map(str, FACTORS), values.tolist(), strict=True))
  rows, drawn = [], {}
  for seed in seeds:
    keys = jax.random.split(jax.random.key(seed), 3)
    x, y = draw(keys[0], settings.held_out)
    known = diagnostics.fit_mahalanobis(draw(keys[1], settings.held_out)[1])
    some = y[: settings.conditions]
    score = np.ravel([diagnostics.mahalanobis_score(known, m * some) for m in FACTORS])
    if seed == seeds[0]:
      drawn["data"] = np.asarray(x)
    for kind, one in fits.items():
      start = time.perf_counter()
      nll, samples, asked = (np.asarray(v) for v in one(keys[2], x, y))
      digits = np.log10(np.maximum(deviations(asked), 1e-30))
      rows.append({
        "kind": kind, "seed": seed, "nll": float(nll.mean()),
        "se": float(nll.std() / len(nll) ** 0.5),
        "median": by_factor(np.median(digits, 1)), "largest": by_factor(digits.max(1)),
        "spearman": float(stats.spearmanr(score, digits.ravel()).statistic),
        "seconds": time.perf_counter() - start,
      })  # fmt: skip
      if seed == seeds[0]:
        drawn[kind] = samples
  return {"settings": dataclasses.asdict(settings), "rows": rows}, drawn


def table(results: dict) -> str:
  """Return scores and log10 of deviations, median and largest, mean ± deviation over seeds."""
  heads = ["kind", "-log p (nats)", *(f"m = {m}" for m in FACTORS), "Spearman"]
  lines = [f"| {' | '.join(heads)} |\n", f"|:---{'|---:' * (len(heads) - 1)}|\n"]
  for kind in KINDS:
    own = [row for row in results["rows"] if row["kind"] == kind]
    cells = [kind, over_seeds([row["nll"] for row in own], 2)]
    for m in map(str, FACTORS):
      largest = max(row["largest"][m] for row in own)
      cells.append(f"{over_seeds([row['median'][m] for row in own], 2)}, {largest:.2f}")
    cells.append(over_seeds([row["spearman"] for row in own], 2))
    lines.append(f"| {' | '.join(cells)} |\n")
  return "".join(lines)


def picture(results: dict, drawn: dict, path: Path) -> Path:
  """Draw deviations by m (a line: median over measurements; dots: largest), data and draws."""
  size = {"figsize": (4 + 2.2 * len(drawn), 3.2), "layout": "constrained"}
  widths = [1.8, *[1] * len(drawn)]
  figure, panels = plots.plt.subplots(1, len(widths), width_ratios=widths, **size)
  for i, kind in enumerate(KINDS):
    own = [row for row in results["rows"] if row["kind"] == kind]
    for number, row in enumerate(own):
      label = kind if number == 0 else None
      panels[0].plot(FACTORS, list(row["median"].values()), color=f"C{i}", label=label)
      panels[0].plot(FACTORS, list(row["largest"].values()), ".", color=f"C{i}")
  panels[0].set(xscale="log", xlabel="m", ylabel="log10 deviation of samples given m y")
  panels[0].legend(fontsize=8)
  for axes, (name, x) in zip(panels[1:], drawn.items(), strict=True):
    show_points(axes, x, 1.5)
    axes.set_title(name, fontsize=9)
  return plots.save(figure, path)


def main(argv):
  """Fit, print and write."""
  if len(argv) > 1:
    raise app.UsageError(f"takes flags only, got {argv[1:]}")
  flag = flags.FLAGS
  seeds = command.seeds(flag.seeds)
  workdirs.check_free(flag.out)
  results, drawn = run(seeds, TINY if flag.tiny else Settings())
  workdirs.write_results(flag.out, results, table(results))
  picture(results, drawn, Path(flag.out) / "exploding_inverse.png")


if __name__ == "__main__":
  command.define_path("out", None, "Where results.json, table.md and exploding_inverse.png go.")
  flags.DEFINE_bool("tiny", False, "A few small steps, to see that everything runs.")
  flags.DEFINE_list("seeds", ["0", "1", "2"], "Of data, parameters and draws.")
  flags.mark_flags_as_required(["out"])
  command.run(main, trains=True)
