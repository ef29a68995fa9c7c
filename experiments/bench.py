"""Time this library against others, and check every answer against float64.

  python -m experiments.bench --only=layer_norm --out=runs/bench

Peers take turns in every round, so that a busy machine slows all of them alike; the minimum and the
median over the rounds count. A peer that isn't installed or fails is skipped and the reason
shown; a fast answer that is wrong doesn't count. Each work runs under two memory allocators (see
`experiments.allocator`), each in a process of its own. `limit` is the time of `2 * x` on the same
array, times half the passes over memory that the work needs at least.

Writes `bench.jsonl` (a line for each work, allocator and peer), `bench.md` and `bench.png`.
"""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from experiments import allocator, benchmarks, command, plots, workdirs
from normjax.checkpoint import versions

FLAGS = flags.FLAGS


def measure(name: str, work: benchmarks.Work, rounds: int) -> list[dict]:
  """Return a line for each peer: minimum and median in ms, error, temporaries, or why skipped."""
  inputs = work.inputs()
  exact = work.exact(inputs)
  double = jax.jit(lambda x: 2 * x)
  x = jax.device_put(inputs["x"])
  runs, lines = {"limit": (lambda: double(x), jax.block_until_ready)}, []
  for peer_name, peer in work.peers.items():
    line = {"work": name, "peer": peer_name}
    try:
      run = peer.make(inputs)
      found = peer.read(peer.wait(run()))
    except Exception as error:  # others' code, of any age
      if peer_name == "normjax":
        raise
      lines.append(line | {"skipped": f"{type(error).__name__}: {error}"})
      continue
    wanted = peer.exact(inputs) if peer.exact else exact
    # NumPy's maximum, for which no number is the largest: Python's may pass over it.
    line["error"] = float(np.max([_error(a, b) for a, b in zip(found, wanted, strict=True)]))
    line["right"] = bool(line["error"] <= work.tolerance)
    if peer.temporaries:
      line["temporaries"] = peer.temporaries(inputs)
    runs[peer_name] = (run, peer.wait)
    lines.append(line)
  times = {key: [] for key in runs}
  rounds = min(rounds, work.rounds or rounds)
  for round_number in range(rounds + 2):  # the first two warm up
    for key, (run, wait) in runs.items():
      start = time.perf_counter()
      wait(run())
      if round_number >= 2:
        times[key].append(1e3 * (time.perf_counter() - start))
  for line in lines:
    if "skipped" not in line:
      own = times[line["peer"]]
      line |= {"min_ms": min(own), "median_ms": float(np.median(own))}
      if work.passes is not None:
        line["limit_ms"] = min(times["limit"]) * work.passes / 2
  return lines


def _error(found: np.ndarray, exact: np.ndarray) -> float:
  """Return the largest error, relative to the largest entry."""
  return float(np.max(np.abs(found - exact)) / np.max(np.abs(exact)))


def bench(only: list[str], out: str, rounds: int) -> list[dict]:
  """Run the works whose names contain one of `only` under both allocators; write the results."""
  chosen = [name for name in benchmarks.WORKS if not only or any(o in name for o in only)]
  if not chosen:
    raise ValueError(f"only must be parts of {', '.join(benchmarks.WORKS)}, got {only}")
  workdirs.check_free(out, "bench.jsonl")
  folder, lines = Path(out), []
  for mode, variables in (("default", {}), ("pooled", allocator.POOLED)):
    clean = {k: v for k, v in os.environ.items() if k not in allocator.POOLED}
    for name in (n for n in chosen if mode in benchmarks.WORKS[n].allocators):
      load = os.getloadavg()[0]
      print(f"{mode} allocator, load {load:.1f}: {name}", flush=True)
      done = subprocess.run(
        [sys.executable, "-m", "experiments.bench", f"--work={name}", f"--rounds={rounds}"],
        env={**clean, "NORMJAX_ALLOCATOR": "default", **variables},
        stdout=subprocess.PIPE, text=True, check=True,
      )  # fmt: skip
      found = json.loads(done.stdout.splitlines()[-1])
      lines += [line | {"allocator": mode, "load": load} for line in found]
      # After each work: a run that is stopped keeps what it has measured.
      (folder / "bench.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  (folder / "bench.md").write_text(table(lines, rounds))
  print(table(lines, rounds))
  for file in (folder / "bench.jsonl", folder / "bench.md", figure(lines, folder / "bench.png")):
    print(f"wrote {file}")
  return lines


def _groups(lines: list[dict]) -> dict[tuple[str, str], dict[str, dict]]:
  groups: dict[tuple[str, str], dict[str, dict]] = {}
  for line in lines:
    groups.setdefault((line["work"], line["allocator"]), {})[line["peer"]] = line
  return groups


def _ratio(work: str, peers: dict[str, dict]) -> float | None:
  """Return our minimum over that of the peer the work is compared with, if that peer ran."""
  base = peers.get(benchmarks.WORKS[work].base, {})
  return peers["normjax"]["min_ms"] / base["min_ms"] if "min_ms" in base else None


def table(lines: list[dict], rounds: int) -> str:
  """Return the Markdown table: ratios of minima to a peer, and what stands behind them."""
  head = (
    f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
    + ", ".join(f"{k} {v}" for k, v in versions().items())
    + f"; {rounds} rounds; load {min(x['load'] for x in lines):.1f} to "
    f"{max(x['load'] for x in lines):.1f} when a work began."
  )
  columns = "work|allocator|ms|ratio|target|over the limit|temporaries, MB|error|peers"
  rows = [columns.split("|"), ["---"] * 9]
  for (work, mode), peers in _groups(lines).items():
    ours, ratio = peers["normjax"], _ratio(work, peers)
    base, target = benchmarks.WORKS[work].base, benchmarks.WORKS[work].target.get(mode)
    outcome = "" if ratio is None or target is None else ("met" if ratio <= target else "missed")
    others = [
      f"{name} {line['min_ms']:.2f} ms ({line['error']:.0e}{'' if line['right'] else ', wrong'})"
      + _other(work, name, ours["min_ms"] / line["min_ms"])
      for name, line in peers.items()
      if name != "normjax" and "skipped" not in line
    ]
    rows.append([
      work, mode, f"{ours['min_ms']:.2f}", "" if ratio is None else f"{ratio:.2f} {base}",
      "" if target is None else f"{target:g} {outcome}".strip(),
      f"{ours['min_ms'] / ours['limit_ms']:.1f}" if "limit_ms" in ours else "",
      f"{ours['temporaries'] / 1e6:.2f}",
      f"{ours['error']:.0e}" + ("" if ours["right"] else " WRONG"), "; ".join(others),
    ])  # fmt: skip
  skipped = sorted({f"{x['peer']}: {x['skipped']}" for x in lines if "skipped" in x})
  notes = "".join(f"\nSkipped: {reason}.\n" for reason in skipped)
  return head + "\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows) + notes


def _other(work: str, peer: str, ratio: float) -> str:
  """Return the ratio to a further peer that has a target, and whether it is met."""
  target = benchmarks.WORKS[work].others.get(peer)
  if target is None:
    return ""
  return f", {ratio:.2f} of it for {target:g} {'met' if ratio <= target else 'missed'}"


def figure(lines: list[dict], path: Path) -> Path:
  """Draw the ratio of minima, a bar for each work and allocator whose peer ran."""
  plt = plots.plt
  found = {key: _ratio(key[0], peers) for key, peers in _groups(lines).items()}
  bars = {key: ratio for key, ratio in found.items() if ratio is not None}
  drawn, axes = plt.subplots(figsize=(9, 0.26 * len(bars) + 1.2), layout="constrained")
  for place, ((work, mode), ratio) in enumerate(bars.items()):
    axes.barh(place, ratio, color="C0" if mode == "default" else "C1")
    if target := benchmarks.WORKS[work].target.get(mode):
      axes.plot([target] * 2, [place - 0.4, place + 0.4], color="0.2", linewidth=1.5)
  names = [f"{work}, {mode}, over {benchmarks.WORKS[work].base}" for work, mode in bars]
  axes.set_yticks(range(len(bars)), names, fontsize=8)
  axes.axvline(1.0, color="0.6", linewidth=0.8)
  axes.invert_yaxis()
  axes.set(xlabel="ratio of minima; black: target")
  axes.spines[["top", "right"]].set_visible(False)
  return plots.save(drawn, path)


def main(argv):
  """Measure as the flags say."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; flags look like --out=DIR")
  if FLAGS.work:
    print(json.dumps(measure(FLAGS.work, benchmarks.WORKS[FLAGS.work], FLAGS.rounds)))
  else:
    bench(FLAGS.only, FLAGS.out, FLAGS.rounds)


if __name__ == "__main__":
  flags.DEFINE_list("only", [], "Parts of names of works; default: all.")
  command.define_path("out", "runs/bench", "Where results go.")
  flags.DEFINE_integer("rounds", 15, "Rounds that count.", lower_bound=1)
  flags.DEFINE_string("work", None, "Measure this work alone and print JSON (used by itself).")
  command.run(main)
