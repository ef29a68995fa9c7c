"""What does training a flow without determinants save, and what does it cost?

  python -m experiments.score_matching --out=DIR [--tiny] [--only=time,sine,digits]

Energy-based flows by maximum likelihood (ML) and by score matching (SSM, DSM, FDSSM): the time of
a training step as the dimension grows; the held-out likelihood of a noisy sine after equal steps;
and digits with the objective on either side of the logit (MaP), with the last parameters and with
their running mean (EMA). DIR gets results.json, table.md (also printed) and score_matching.png.

After "Training Energy-Based Normalizing Flow with Score-Matching Objectives"
(https://arxiv.org/abs/2305.15267). Times mean something on an idle machine only.
"""

import dataclasses
import math
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import nnx

from experiments import command, plots, tasks, workdirs
from experiments.configs import ebflow_digits
from experiments.objectives import OBJECTIVES
from experiments.over_seeds import over_seeds
from experiments.step import moving_average
from normjax import checkpoint, models
from normjax.flows import init_from_data

LABELS = {"ml": "ML", "ssm": "SSM", "dsm": "DSM", "fdssm": "FDSSM"}
PARTS = ("time", "sine", "digits")


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is timed and trained.

  Attributes:
    dims: dimensions that are timed.
    num_layers: dense layers of the timed flows.
    time_batch: examples of a timed step.
    repeats: timed steps of each objective.
    num_seeds: of every trained flow; all are trained at once.
    sine_objectives: what is minimized on the sine.
    sine_steps: training steps on it.
    sine_batch: examples of each.
    num_blocks: blocks of the flow of the sine.
    width: units of its couplings' networks.
    test_size: held-out points of the sine.
    digits_objectives: what is minimized on digits, and whether with MaP.
    digits_steps: training steps on them.
    decay: of the running mean of the parameters.
  """

  dims: tuple[int, ...] = (64, 128, 256, 512, 784)
  num_layers: int = 4
  time_batch: int = 100
  repeats: int = 15
  num_seeds: int = 3
  sine_objectives: tuple[str, ...] = tuple(LABELS)
  sine_steps: int = 3000
  sine_batch: int = 256
  num_blocks: int = 5
  width: int = 32
  test_size: int = 10000
  digits_objectives: tuple[tuple[str, bool], ...] = (
    ("ml", True), ("dsm", True), ("dsm", False), ("ssm", True), ("ssm", False),
  )  # fmt: skip
  digits_steps: int = 3000
  decay: float = 0.999


TINY = Settings(
  dims=(4,), num_layers=2, time_batch=3, repeats=2, num_seeds=2, sine_objectives=("fdssm",),
  sine_steps=3, sine_batch=32, num_blocks=2, width=4, test_size=20,
  digits_objectives=(("dsm", True), ("dsm", False)), digits_steps=3,
)  # fmt: skip


# -- Time per step ---------------------------------------------------------------------------------


def make_step(dim: int, settings: Settings, name: str):
  """Return a compiled training step of a dense flow and its first arguments."""
  flow = models.ebflow_dense(
    (dim,), num_layers=settings.num_layers, start="orthogonal", rngs=nnx.Rngs(0)
  )
  graphdef, params = nnx.split(flow)
  optimizer = optax.adam(1e-4)
  x = jax.random.normal(jax.random.key(1), (settings.time_batch, dim))

  def loss(params, key):
    return OBJECTIVES[name](nnx.merge(graphdef, params), x, key, std=0.5, epsilon=1.0).mean()

  @partial(jax.jit, donate_argnums=(0, 1))
  def step(params, opt, key):
    value, gradients = jax.value_and_grad(loss)(params, key)
    updates, opt = optimizer.update(gradients, opt, params)
    return optax.apply_updates(params, updates), opt, value

  return step, (jax.tree.map(jnp.copy, params), optimizer.init(params))


def time_steps(settings: Settings) -> list[dict]:
  """Return the least and the median seconds of a step, per dimension and objective."""
  rows = []
  for dim in settings.dims:
    steps = {name: make_step(dim, settings, name) for name in LABELS}
    states = {name: step(*start, jax.random.key(0)) for name, (step, start) in steps.items()}
    jax.block_until_ready(states)
    seconds = {name: [] for name in LABELS}
    # In turn, so that what else the machine does meets all alike.
    for i in range(settings.repeats):
      for name, (step, _) in steps.items():
        begin = time.perf_counter()
        states[name] = jax.block_until_ready(step(*states[name][:2], jax.random.key(i)))
        seconds[name].append(time.perf_counter() - begin)
    for name, values in seconds.items():
      rows.append(
        {"dim": dim, "objective": name, "least": min(values), "median": float(np.median(values))}
      )
  return rows


# -- Training --------------------------------------------------------------------------------------


def fit(loss, params, key, *, steps: int, learning_rate: float, clip: float, decay: float):
  """Minimize `loss(params, key)` by Adam in a scan; return the last parameters and their mean."""
  schedule = optax.cosine_decay_schedule(learning_rate, steps)
  optimizer = optax.chain(optax.clip_by_global_norm(clip), optax.adam(schedule))

  def step(carry, t):
    params, opt, mean = carry
    gradients = jax.grad(loss)(params, jax.random.fold_in(key, t))
    updates, opt = optimizer.update(gradients, opt, params)
    params = optax.apply_updates(params, updates)
    return (params, opt, moving_average(mean, params, decay, t)), None

  start = params, optimizer.init(params), params
  (params, _, mean), _ = jax.lax.scan(step, start, jnp.arange(1, steps + 1))
  return params, mean


def sine(key: jax.Array, n: int) -> jax.Array:
  """Draw points (n, 2) about a sine: x1 = 4 U(-2, 2), x2 = 4 (sin(3 x1 / 4) + N(0, 1) / 4)."""
  first, second = jax.random.split(key)
  x1 = jax.random.uniform(first, (n,), minval=-8.0, maxval=8.0)
  return jnp.stack([x1, 4 * jnp.sin(0.75 * x1) + jax.random.normal(second, (n,))], axis=1)


def train_sine(settings: Settings) -> list[dict]:
  """Return the held-out negative log-likelihoods of the sine, in nats, per objective."""
  test = sine(jax.random.key(99), settings.test_size)

  def one(key, name):
    flow = models.ebflow_coupling(
      2, num_blocks=settings.num_blocks, width=settings.width, depth=2, rngs=nnx.Rngs(key)
    )
    flow = init_from_data(flow, sine(jax.random.fold_in(key, 1), 1024))
    graphdef, params, rest = nnx.split(flow, nnx.Param, ...)

    def loss(params, key):
      data_key, key = jax.random.split(key)
      flow = nnx.merge(graphdef, params, rest)
      x = sine(data_key, settings.sine_batch)
      return OBJECTIVES[name](flow, x, key, std=0.375, epsilon=0.1).mean()

    found = fit(
      loss, params, key, steps=settings.sine_steps, learning_rate=1e-3, clip=1.0,
      decay=settings.decay,
    )  # fmt: skip
    return [-nnx.merge(graphdef, p, rest).log_prob(test).mean() for p in found]

  keys = jax.random.split(jax.random.key(0), settings.num_seeds)
  rows = []
  for name in settings.sine_objectives:
    last, mean = jax.jit(jax.vmap(partial(one, name=name)))(keys)
    rows.append({"objective": name, "last": last.tolist(), "mean": mean.tolist()})
  return rows


def train_digits(settings: Settings) -> list[dict]:
  """Return held-out bits per dimension of digits, per objective and side of the logit.

  The squeeze is 0.05, so that noisy pixels stay where the logit is defined.
  """
  rows = []
  for name, matched in settings.digits_objectives:
    config = ebflow_digits.get_config()
    config.match_after_preprocessing, config.logit.alpha = matched, 0.05
    config.objective.update(name=name, std=0.3 if matched else 0.008)
    task = tasks.make(config)
    images = jnp.asarray(task.dataset.train["image"])
    held_out = {"image": jnp.asarray(task.dataset.test["image"])}

    def one(key, task=task, images=images, held_out=held_out):
      flow = checkpoint.build(task.model, nnx.Rngs(key))
      graphdef, params, rest = nnx.split(flow, nnx.Param, ...)

      def loss(params, key):
        batch_key, key = jax.random.split(key)
        chosen = jax.random.randint(batch_key, (task.config.batch_size,), 0, len(images))
        return task.loss(nnx.merge(graphdef, params, rest), {"image": images[chosen]}, key)[0]

      found = fit(
        loss, params, key, steps=settings.digits_steps, learning_rate=task.config.optimizer.lr,
        clip=task.config.optimizer.clip, decay=settings.decay,
      )  # fmt: skip
      score = lambda p: task.score(nnx.merge(graphdef, p, rest), held_out, key, 2).mean()
      return [score(p) for p in found]

    keys = jax.random.split(jax.random.key(0), settings.num_seeds)
    last, mean = jax.jit(jax.vmap(one))(keys)
    rows.append(
      {"objective": name, "matched": matched, "last": last.tolist(), "mean": mean.tolist()}
    )
  return rows


# -- What is written -------------------------------------------------------------------------------


def chosen(only: list[str]) -> tuple[str, ...]:
  """Return the parts of these names, in their order."""
  parts = tuple(part for part in PARTS if part in only)
  if len(parts) < len(only) or not parts:
    raise ValueError(f"--only must be some of {','.join(PARTS)}, got {','.join(only)}")
  return parts


def run(settings: Settings, parts: tuple[str, ...]) -> dict:
  """Time and train what `parts` name; return the settings and the rows of each."""
  runs = {"time": time_steps, "sine": train_sine, "digits": train_digits}
  return {"settings": dataclasses.asdict(settings)} | {part: runs[part](settings) for part in parts}


def spread(values: list[float]) -> str:
  """Return the mean over seeds and their standard deviation, or how many are not finite."""
  bad = sum(not math.isfinite(v) for v in values)
  return f"{bad} of {len(values)} fail" if bad else over_seeds(values)


def table(results: dict) -> str:
  """Return the results as Markdown tables, one for each part."""
  lines = []
  if "time" in results:
    lines += ["| D | " + " | ".join(f"{v}, ms" for v in LABELS.values()) + " | "]
    lines[-1] += " | ".join(f"ML / {v}" for k, v in LABELS.items() if k != "ml") + " |"
    lines += ["|---:|" + "---:|" * (2 * len(LABELS) - 1)]
    for dim in dict.fromkeys(row["dim"] for row in results["time"]):
      least = {r["objective"]: 1e3 * r["least"] for r in results["time"] if r["dim"] == dim}
      cells = [f"{least[k]:.2f}" for k in LABELS]
      cells += [f"{least['ml'] / least[k]:.2f}" for k in LABELS if k != "ml"]
      lines.append(f"| {dim} | " + " | ".join(cells) + " |")
    lines.append("")
  if "sine" in results:
    lines += ["| sine | NLL, last parameters | NLL, running mean |", "|:---|---:|---:|"]
    for row in results["sine"]:
      cells = [LABELS[row["objective"]], spread(row["last"]), spread(row["mean"])]
      lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
  if "digits" in results:
    lines += ["| digits | MaP | bits/dim, last parameters | bits/dim, running mean |"]
    lines += ["|:---|:---|---:|---:|"]
    for row in results["digits"]:
      cells = [LABELS[row["objective"]], "on" if row["matched"] else "off"]
      lines.append("| " + " | ".join([*cells, spread(row["last"]), spread(row["mean"])]) + " |")
    lines.append("")
  return "\n".join(lines)


def picture(results: dict, path: Path) -> Path:
  """Draw the time of a step against the dimension, and the likelihoods as points of seeds."""
  plt = plots.plt
  parts = [part for part in PARTS if part in results]
  figure, panels = plt.subplots(
    1, len(parts), figsize=(4.2 * len(parts), 3.6), layout="constrained", squeeze=False
  )
  colors = {name: f"C{i}" for i, name in enumerate(LABELS)}
  for part, axes in zip(parts, panels[0], strict=True):
    if part == "time":
      for name, label in LABELS.items():
        rows = [r for r in results["time"] if r["objective"] == name]
        milliseconds = [1e3 * r["least"] for r in rows]
        axes.plot([r["dim"] for r in rows], milliseconds, "o-", color=colors[name], label=label)
      axes.set(xscale="log", yscale="log", xlabel="dimension", ylabel="ms per training step")
      axes.legend(frameon=False)
    else:
      rows = results[part]
      for i, row in enumerate(rows):
        axes.plot([i] * len(row["mean"]), row["mean"], "o", color=colors[row["objective"]])
      names = [
        LABELS[r["objective"]] + ("" if r.get("matched", True) else "\nno MaP") for r in rows
      ]
      axes.set(xticks=range(len(rows)), xticklabels=names)
      axes.set(ylabel="held-out nats" if part == "sine" else "held-out bits/dim", title=part)
    axes.grid(axis="y", color="0.93", zorder=-1)
    axes.spines[["top", "right"]].set_visible(False)
  return plots.save(figure, path)


def main(argv):
  """Time, train, print and write."""
  if len(argv) > 1:
    raise app.UsageError(f"takes flags only, got {argv[1:]}")
  flag = flags.FLAGS
  parts = chosen(flag.only)
  settings = Settings(
    num_seeds=flag.seeds, sine_steps=flag.sine_steps, digits_steps=flag.digits_steps
  )
  settings = TINY if flag.tiny else settings
  workdirs.check_free(flag.out)
  results = run(settings, parts)
  workdirs.write_results(flag.out, results, table(results))
  picture(results, Path(flag.out) / "score_matching.png")


if __name__ == "__main__":
  command.define_path("out", None, "Where results.json, table.md and score_matching.png go.")
  flags.DEFINE_bool("tiny", False, "A few small steps, to see that everything runs.")
  flags.DEFINE_integer("seeds", 3, "Seeds of every trained flow.", lower_bound=1)
  flags.DEFINE_integer("sine_steps", 3000, "Training steps on the sine.", lower_bound=1)
  flags.DEFINE_integer("digits_steps", 3000, "Training steps on digits.", lower_bound=1)
  flags.DEFINE_list("only", list(PARTS), "Parts to run.")
  flags.mark_flags_as_required(["out"])
  command.run(main, trains=True)
