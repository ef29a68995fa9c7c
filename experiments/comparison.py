"""The folder of a comparison: whose it is, its table and its figure."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import plots, workdirs
from normjax.checkpoint import versions


def claim(folder: Path, grid: dict[str, Any], gains: dict[str, str]) -> None:
  """Take a folder for a grid, or check that it belongs to it, but for what it may gain.

  Args:
    folder: of the comparison.
    grid: the whole grid.
    gains: keys that may gain entries, and for each the key whose old entries tell which are new.

  Raises:
    ValueError: if the folder holds the runs of another grid, or something else.
  """
  path, grid = folder / "grid.json", json.loads(json.dumps(grid))
  if path.is_file():
    old = json.loads(path.read_text())
    added = {
      key: {n: v for n, v in grid[key].items() if n not in old.get(names, {})}
      for key, names in gains.items()
    }
    wanted, found = (dict(_flat(g)) for g in ({**grid, **_without(grid, added)}, old))
    if different := [k for k in sorted(wanted | found) if wanted.get(k) != found.get(k)]:
      lines = [f"{k}: {found.get(k)} in the folder, {wanted.get(k)} now" for k in different]
      raise ValueError(
        f"{folder} holds the runs of another grid; use another folder or its settings:\n  "
        + "\n  ".join(lines)
      )
  elif folder.exists() and any(folder.iterdir()):
    raise ValueError(f"{folder} is not empty and holds no grid.json: use another folder")
  workdirs.write_json(path, grid)


def _without(grid: dict[str, Any], added: dict[str, dict[str, Any]]) -> dict[str, Any]:
  return {key: {n: v for n, v in grid[key].items() if n not in added[key]} for key in added}


def _flat(tree: Any, prefix: str = ""):
  if isinstance(tree, dict) and tree:
    for key, value in tree.items():
      yield from _flat(value, f"{prefix}.{key}" if prefix else key)
  else:
    yield prefix, json.dumps(tree)


def report(
  grid: ConfigDict, folder: Path, results: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[Path]]:
  """Write `table.md`, `table.json` and `figure.png`; return the rows of the table and the files."""
  rows = [_row(norm, [r for r in results if r["norm"] == norm]) for norm in grid.norms]
  rows.sort(key=lambda row: [_rank(cell) for cell in row["cells"]])
  record = {"rows": rows, "grid": grid.to_dict(), "versions": versions()}
  workdirs.write_json(folder / "table.json", record)
  (folder / "table.md").write_text(_markdown(grid, rows))
  return rows, [folder / "table.md", folder / "table.json", figure(grid, folder, rows, results)]


def _row(norm: str, results: list[dict[str, Any]]) -> dict[str, Any]:
  cells = []
  for result in results:
    cell: dict[str, Any] = {"batch_size": result["batch_size"], "failed": result["failed"]}
    if result["runs"]:
      good = [run["test_error"] for run in result["runs"] if not run["diverged"]]
      cell |= {"lr": result["lr"], "seeds": len(result["runs"])}
      cell["diverged"] = len(result["runs"]) - len(good)
      if good:
        spread = float(np.std(good, ddof=1)) if len(good) > 1 else 0.0
        cell |= {"test_error": float(np.mean(good)), "test_error_std": spread}
    cells.append(cell)
  return {"norm": norm, "cells": cells}


def _rank(cell: dict[str, Any]) -> float:
  return cell.get("test_error", 2.0 if "seeds" in cell else 3.0)


def _text(cell: dict[str, Any]) -> str:
  if cell["failed"]:
    return f"cannot run: {cell['failed']}".replace("|", "\\|")
  if "seeds" not in cell:
    return "not run yet"
  if "test_error" not in cell:
    return f"diverged ({cell['seeds']} of {cell['seeds']} seeds)"
  # One seed alone has no deviation.
  spread = f" ± {100 * cell['test_error_std']:.2f}" if cell["seeds"] - cell["diverged"] > 1 else ""
  text = f"{100 * cell['test_error']:.2f}{spread} ({cell['lr']:g})"
  return f"{text}, {cell['diverged']} diverged" if cell["diverged"] else text


def _markdown(grid: ConfigDict, rows: list[dict[str, Any]]) -> str:
  config, seeds = grid.config, ", ".join(map(str, grid.seeds))
  steps = " and ".join(
    f"{s} steps of batch size {b}" for s, b in zip(grid.steps, grid.batch_sizes, strict=True)
  )
  head = [
    f"Test error in % (learning rate), mean ± standard deviation over seeds {seeds}: "
    f"{config.model.name} on {config.data.name}, {grid.train_examples} training examples, {steps}.",
    "Learning rates: the one of "
    + ", ".join(f"{lr:g}" for lr in grid.learning_rates)
    + f" with the least error on {grid.validation_examples} validation examples, seed "
    f"{grid.seeds[0]}. Versions: " + ", ".join(f"{k} {v}" for k, v in versions().items()) + ".",
  ]
  columns = ["norm", *(f"batch size {size}" for size in grid.batch_sizes)]
  lines = [columns, ["---"] * len(columns)]
  lines += [[f"`{row['norm']}`", *map(_text, row["cells"])] for row in rows]
  return "\n\n".join(head) + "\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def figure(
  grid: ConfigDict, folder: Path, rows: list[dict[str, Any]], results: list[dict[str, Any]]
) -> Path:
  """Draw validation error against the step (mean and range over seeds), and test error as bars."""
  plt = plots.plt
  height = max(3.6, 0.24 * len(rows) + 1)
  drawn, axes = plt.subplots(
    len(grid.batch_sizes), 2, figsize=(13, height * len(grid.batch_sizes)), squeeze=False,
    layout="constrained",
  )  # fmt: skip
  colours = plt.get_cmap("turbo")(np.linspace(0.03, 0.97, max(2, len(rows))))
  for (curves, bars), (i, size) in zip(axes, enumerate(grid.batch_sizes), strict=True):
    order = sorted(rows, key=lambda row: _rank(row["cells"][i]))
    for place, (row, colour) in enumerate(zip(order, colours, strict=False)):
      runs = next(r["runs"] for r in results if (r["norm"], r["batch_size"]) == (row["norm"], size))
      good = [run for run in runs if not run["diverged"]]
      if good:
        values = 100 * np.array([run["validation_error"] for run in good])
        curves.plot(good[0]["step"], values.mean(0), color=colour, linewidth=1.2)
        curves.fill_between(
          good[0]["step"], values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0
        )
      cell = row["cells"][i]
      if "test_error" in cell:
        mean, spread = 100 * cell["test_error"], 100 * cell["test_error_std"]
        bars.barh(place, mean, xerr=spread, color=colour, error_kw={"linewidth": 0.8})
      label = f" {_text(cell)}"
      at = 100 * (cell.get("test_error", 0.0) + cell.get("test_error_std", 0.0))
      bars.text(at, place, label[:60], va="center", fontsize=7)
    bars.set_yticks(range(len(order)), [row["norm"] for row in order], fontsize=8)
    bars.invert_yaxis()
    bars.margins(x=0.35)
    bars.set(xlabel="test error, %", title=f"batch size {size}")
    curves.set(xlabel="step", ylabel="validation error, %", title=f"batch size {size}")
    if curves.lines:
      curves.set_yscale("log")
    for panel in (curves, bars):
      panel.spines[["top", "right"]].set_visible(False)
  path = folder / "figure.png"
  return plots.save(drawn, path, dpi=110)
