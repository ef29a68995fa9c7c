"""The table and the figure of a comparison of densities: flows down, tables across."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import plots, workdirs
from normjax.checkpoint import versions


def report(
  grid: ConfigDict, folder: Path, results: list[dict[str, Any]], extra: tuple[str, ...] = ()
) -> tuple[list[dict[str, Any]], list[Path]]:
  """Write `table.md`, `table.json` and `figure.png`; return the rows of the table and the files.

  Args:
    grid: the whole grid; `head` is the table's first sentence.
    folder: of the comparison.
    results: of all cells, as `experiments.tuning.result` makes them.
    extra: further numbers of a run, shown behind its score.
  """
  names = list(dict.fromkeys(result["flow"] for result in results))
  at = {(result["flow"], result["column"]): result for result in results}
  rows = [_row(name, [at.get((name, column)) for column in grid.columns], extra) for name in names]
  record = {"rows": rows, "grid": grid.to_dict(), "versions": versions()}
  workdirs.write_json(folder / "table.json", record)
  (folder / "table.md").write_text(_markdown(grid, rows, extra))
  return rows, [folder / "table.md", folder / "table.json", _figure(grid, folder, rows)]


def _row(name: str, results: list[dict[str, Any] | None], extra: tuple[str, ...]) -> dict[str, Any]:
  cells = []
  for result in results:
    if result is None:
      cells.append({})
      continue
    cell: dict[str, Any] = {"column": result["column"], "failed": result["failed"]}
    if result["runs"]:
      good = [run for run in result["runs"] if not run["diverged"]]
      cell |= {"lr": result["lr"], "seeds": len(result["runs"])}
      cell["diverged"] = len(result["runs"]) - len(good)
      for key in ("test_nats", *extra):
        values = [run[key] for run in good if run.get(key) is not None]
        if values:
          cell[key] = float(np.mean(values))
          cell[f"{key}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
      if good and "parameters" in good[0]:
        cell["parameters"] = good[0]["parameters"]
    cells.append(cell)
  return {"flow": name, "cells": cells}


def _text(cell: dict[str, Any], extra: tuple[str, ...]) -> str:
  if not cell:
    return ""
  if cell["failed"]:
    return f"cannot run: {cell['failed']}".replace("|", "\\|")
  if "seeds" not in cell:
    return "not run yet"
  if "test_nats" not in cell:
    return f"diverged ({cell['seeds']} of {cell['seeds']} seeds)"
  # One seed alone has no deviation.
  spread = lambda key: f" ± {cell[key]:.3f}" if cell["seeds"] - cell["diverged"] > 1 else ""
  text = f"{cell['test_nats']:.3f}{spread('test_nats_std')}"
  notes = [f"{cell['lr']:g}"] if cell["lr"] else []
  if "parameters" in cell:
    notes.append(f"{cell['parameters'] / 1000:.1f}K")
  notes += [f"{key} {cell[key]:.3f}{spread(f'{key}_std')}" for key in extra if key in cell]
  text += f" ({', '.join(notes)})" if notes else ""
  return f"{text}, {cell['diverged']} diverged" if cell["diverged"] else text


def _markdown(grid: ConfigDict, rows: list[dict[str, Any]], extra: tuple[str, ...]) -> str:
  rates = ", ".join(f"{lr:g}" for lr in grid.learning_rates)
  head = [
    f"{grid.head} Test -log p in nats per example, less is better, mean ± standard deviation over "
    f"seeds {', '.join(map(str, grid.seeds))}"
    + (" (learning rate, parameters" + "".join(f", {key}" for key in extra) + ")."),
    f"{grid.config.total_steps} steps of batch size at most {grid.config.batch_size}. Learning "
    f"rates: the one of {rates} with the least score on validation examples, seed "
    f"{grid.seeds[0]}; each run is scored at the one of {grid.points} points that does best there. "
    "Versions: " + ", ".join(f"{k} {v}" for k, v in versions().items()) + ".",
  ]
  columns = ["flow", *grid.columns]
  lines = [columns, ["---"] * len(columns)]
  lines += [[f"`{r['flow']}`", *(_text(cell, extra) for cell in r["cells"])] for r in rows]
  return "\n\n".join(head) + "\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _figure(grid: ConfigDict, folder: Path, rows: list[dict[str, Any]]) -> Path:
  """Draw a panel for each column: the score of each row, with its spread over seeds."""
  plt = plots.plt
  wide = min(3, len(grid.columns))
  high = -(-len(grid.columns) // wide)
  drawn, axes = plt.subplots(
    high, wide, figsize=(4.6 * wide, (0.32 * len(rows) + 1) * high), squeeze=False,
    layout="constrained", sharey=True,
  )  # fmt: skip
  for panel in axes.ravel()[len(grid.columns) :]:
    panel.set_axis_off()
  for panel, (i, column) in zip(axes.ravel(), enumerate(grid.columns), strict=False):
    for place, row in enumerate(rows):
      cell = row["cells"][i]
      if "test_nats" in cell:
        at, spread = cell["test_nats"], cell["test_nats_std"]
        panel.errorbar(at, place, xerr=spread, fmt="o", markersize=4, color=f"C{place % 10}")
        panel.annotate(f"{at:.2f}", (at, place), (0, 5), textcoords="offset points", fontsize=7)
    panel.set_yticks(range(len(rows)), [row["flow"] for row in rows], fontsize=8)
    panel.set(title=column, xlabel="test -log p, nats")
    panel.grid(axis="x", color="0.93", zorder=-1)
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(y=0.1)
  axes[0, 0].invert_yaxis()
  path = folder / "figure.png"
  return plots.save(drawn, path, dpi=110)
