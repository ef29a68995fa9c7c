"""Fit every family of flows to every two-dimensional toy density, and draw what they learn.

  python -m experiments.densities_2d --out=DIR [--tiny] [--steps=2000] [--only=FAMILY,...]

DIR gets results.json, table.md (also printed) and densities_2d.png: for each density a row, for
each family the density on a mesh and samples. Held-out negative log-likelihoods are in nats, on
points drawn anew; where the true density has a closed form its entropy stands beside them, below
which no model's expected value can fall. `mass` is the integral of the learned density over the
drawn mesh, the rest lies outside.

Further families join through `FAMILIES`.
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

from experiments import command, data, plots, workdirs
from normjax import flows, models

_BOUND = 5.0  # splines are the identity outside of it; all densities lie inside
_ORDERS = jnp.array([[0, 1], [1, 0]])


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a flow is fitted and judged.

  Attributes:
    steps: of Adam, whose learning rate falls to zero along a cosine.
    batch_size: points of a step, of a pool of training points.
    pool: how many training points there are.
    held_out: how many points the score is the mean over.
    learning_rate: at first.
    layers: layers of a flow, an even number.
    width: units of hidden layers.
    side: mesh points on each axis.
    seed: of points, parameters and samples.
  """

  steps: int = 2000
  batch_size: int = 256
  pool: int = 50_000
  held_out: int = 10_000
  learning_rate: float = 3e-3
  layers: int = 8
  width: int = 32
  side: int = 200
  seed: int = 0


TINY = Settings(2, 8, 32, 16, layers=2, width=4, side=8)


def _layers(make: Callable[..., flows.Bijector], settings: Settings, rngs: nnx.Rngs) -> flows.Flow:
  """Scan `make(rngs, order)` with orders that turn round from layer to layer."""
  orders = jnp.tile(_ORDERS, (settings.layers // 2, 1))
  return flows.Flow(flows.Scan(make, len(orders), orders, rngs=rngs), flows.StandardNormal((2,)))


def _affine(settings: Settings, rngs: nnx.Rngs) -> flows.Flow:
  make = lambda rngs, order: flows.AffineCoupling(
    order, scale="tanh", width=settings.width, rngs=rngs
  )
  return _layers(make, settings, rngs)


def _spline(settings: Settings, rngs: nnx.Rngs) -> flows.Flow:
  return models.rqs_coupling_flow(
    2, num_layers=settings.layers, width=settings.width, tail_bound=_BOUND, rngs=rngs
  )


def _maf(settings: Settings, rngs: nnx.Rngs) -> flows.Flow:
  return models.maf(2, num_layers=settings.layers, width=settings.width, rngs=rngs)


def _spline_autoregressive(settings: Settings, rngs: nnx.Rngs) -> flows.Flow:
  transform = lambda: flows.RQSTransform(tail_bound=_BOUND, identity_init=True)
  make = lambda rngs, order: flows.MaskedAutoregressive(
    2, transform(), order=order, width=settings.width, rngs=rngs
  )
  return _layers(make, settings, rngs)


def _ferumal(settings: Settings, rngs: nnx.Rngs) -> flows.Flow:
  return models.ferumal_flow(2, num_layers=settings.layers, split="alternating", rngs=rngs)


# `make(settings, rngs)` builds the flow of each family over points (b, 2).
FAMILIES: dict[str, Callable[[Settings, nnx.Rngs], flows.Flow]] = {
  "affine coupling": _affine,
  "spline coupling": _spline,
  "MAF": _maf,
  "autoregressive spline": _spline_autoregressive,
  "Ferumal": _ferumal,
}


def mesh(low: float, high: float, side: int) -> np.ndarray:
  """Return the centres (side^2, 2) of the cells of a square, rows from the top."""
  centres = low + (np.arange(side) + 0.5) * (high - low) / side
  x, y = np.meshgrid(centres, centres[::-1])
  return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)


def entropy(name: str, points: np.ndarray) -> float | None:
  """Return the mean of -log p over points of a density in closed form, else None."""
  log_prob = flows.TOY_LOG_PROBS.get(name)
  return None if log_prob is None else float(-jnp.mean(log_prob(jnp.asarray(points))))


def fit(make: Callable[[Settings, nnx.Rngs], flows.Flow], settings: Settings) -> Callable[..., Any]:
  """Return `run(pool, held_out, mesh, key)`, which trains and judges a new flow in one program.

  It returns the held-out score, its standard error, the log-density (side^2,) on the mesh and
  samples (held_out, 2).
  """
  adam = optax.adam(optax.cosine_decay_schedule(settings.learning_rate, settings.steps))

  @jax.jit
  def run(pool: jax.Array, held_out: jax.Array, points: jax.Array, key: jax.Array) -> Any:
    init_key, batch_key, sample_key = jax.random.split(key, 3)
    flow = flows.init_from_data(make(settings, nnx.Rngs(init_key)), pool[:2048])
    graphdef, params, rest = nnx.split(flow, nnx.Param, ...)
    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
    merge = lambda params: nnx.merge(graphdef, params, rest, copy=True)

    def step(carry: Any, key: jax.Array) -> Any:
      params, state = carry
      batch = pool[jax.random.randint(key, (settings.batch_size,), 0, len(pool))]
      loss = lambda params: -jnp.mean(merge(params).log_prob(batch))
      updates, state = adam.update(jax.grad(loss)(params), state)
      return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(batch_key, settings.steps)
    (params, _), _ = jax.lax.scan(step, (params, adam.init(params)), keys)
    flow = merge(params)
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
  families = list(dict.fromkeys(row["family"] for row in results["rows"]))
  lines = [
    "| density | entropy | " + " | ".join(families) + " | mass |",
    "|:---|---:|" + "---:|" * (len(families) + 1),
  ]
  for name in dict.fromkeys(row["density"] for row in results["rows"]):
    rows = [row for row in results["rows"] if row["density"] == name]
    exact = "" if rows[0]["entropy"] is None else f"{rows[0]['entropy']:.3f}"
    masses = [row["mass"] for row in rows]
    scores = " | ".join(f"{row['nll']:.3f} ± {row['se']:.3f}" for row in rows)
    lines.append(f"| {name} | {exact} | {scores} | {min(masses):.3f} to {max(masses):.3f} |")
  return "\n".join(lines) + "\n"


def picture(drawn: dict, path: Path) -> Path:
  """Draw the data, and the density and samples of each family, a row for each set."""
  plt = plots.plt
  families = list(next(iter(drawn.values()))["flows"])
  columns = 1 + 2 * len(families)
  size = {"figsize": (1.35 * columns, 1.42 * len(drawn)), "squeeze": False}
  figure, panels = plt.subplots(len(drawn), columns, layout="constrained", **size)
  for number, (row, (name, found)) in enumerate(zip(panels, drawn.items(), strict=True)):
    half, points = found["half"], found["data"]
    # One scale in a row; the brightest cells of a sharp density would darken all others.
    top = max(np.quantile(density, 0.995) for density, _ in found["flows"].values())
    _scatter(row[0], points, half)
    row[0].set_ylabel(name.replace("_", " "), fontsize=9)
    row[0].set_title("" if number else "data", fontsize=9)
    for i, (family, (density, samples)) in enumerate(found["flows"].items()):
      left, right = row[1 + 2 * i], row[2 + 2 * i]
      left.imshow(density, extent=(-half, half, -half, half), cmap="magma", vmin=0, vmax=top)
      left.set_title("" if number else family, fontsize=9)
      _scatter(right, samples, half)
  for axes in panels.ravel():
    axes.set(xticks=[], yticks=[])
  figure.savefig(path, dpi=130)
  plt.close(figure)
  return path


def _scatter(axes: Any, points: np.ndarray, half: float) -> None:
  axes.scatter(*points[:3000].T, s=0.3, color="C0", linewidths=0)
  axes.set(xlim=(-half, half), ylim=(-half, half), aspect="equal")


def main(argv):
  """Fit, print and write."""
  if len(argv) > 1:
    raise app.UsageError(f"takes flags only, got {argv[1:]}")
  flag = flags.FLAGS
  for family in flag.only:
    data.check_name("--only", family, FAMILIES)
  settings = TINY if flag.tiny else Settings(steps=flag.steps, seed=flag.seed)
  out = Path(flag.out)
  results, drawn = run(flag.only or list(FAMILIES), settings)
  workdirs.write_json(out / "results.json", results)
  (out / "table.md").write_text(table(results))
  picture(drawn, out / "densities_2d.png")
  print(table(results), end="")


if __name__ == "__main__":
  flags.DEFINE_string("out", None, "Where results.json, table.md and densities_2d.png go.")
  flags.DEFINE_bool("tiny", False, "A few small steps, to see that everything runs.")
  flags.DEFINE_integer("steps", 2000, "Steps of each fit.", lower_bound=1)
  flags.DEFINE_integer("seed", 0, "Of points, parameters and samples.")
  flags.DEFINE_list("only", [], "Families; default: all.")
  flags.mark_flags_as_required(["out"])
  command.run(main, trains=True)
