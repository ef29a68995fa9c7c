"""Real tables of continuous columns: those of scikit-learn, and fetched ones.

Rows that occur twice are dropped before the split, columns that were rounded get uniform noise of
the width of their rounding, and all columns the mean 0 and variance 1 of the training rows: else a
density could grow without bound on repeated values, or know held-out rows.
"""

import csv
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from sklearn import datasets as sklearn_datasets

from experiments.data._dataset import Dataset
from experiments.data._names import check_name
from experiments.data._store import require


class _Raw(NamedTuple):
  """A table as it was published.

  Attributes:
    columns: their names.
    rows: (n, d) float64.
    widths: of the rounding of each column; None: powers of 10, read off the values.
    group: (n,) which rows belong together; None: not known.
  """

  columns: tuple[str, ...]
  rows: np.ndarray
  widths: tuple[float, ...] | None = None
  group: np.ndarray | None = None


def _classic(load: Callable, **options) -> Callable[[], _Raw]:
  def read():
    bunch = load(**options)
    return _Raw(tuple(map(str, bunch.feature_names)), np.asarray(bunch.data, np.float64))

  return read


def _lines(name: str, file: str) -> tuple[list[str], list[list[str]]]:
  with (require(name) / file).open(newline="") as text:
    head, *rows = csv.reader(text)
  return head, rows


def _floats(head: Sequence[str], rows: list[list[str]], columns: Sequence[str]) -> np.ndarray:
  places = [head.index(column) for column in columns]
  return np.array([[row[i] for i in places] for row in rows], np.float64)


def _casp() -> _Raw:
  head, rows = _lines("casp", "CASP.csv")
  return _Raw(tuple(head), _floats(head, rows, head))


def _diamonds() -> _Raw:
  head, rows = _lines("diamonds", "diamonds.csv")
  columns = ("carat", "depth", "table", "price", "x", "y", "z")
  values = _floats(head, rows, columns)
  # A side of 0 mm was not measured, and those above 20 mm are mistakes.
  kept = np.all((values[:, 4:] > 0) & (values[:, 4:] < 20), axis=1)
  # Most entries of "table" are whole numbers, and few are not.
  widths = (0.01, 0.1, 1.0, 1.0, 0.01, 0.01, 0.01)
  return _Raw(columns, values[kept], widths)


def _magic() -> _Raw:
  columns = (
    "length",
    "width",
    "size",
    "conc",
    "conc1",
    "asym",
    "m3long",
    "m3trans",
    "alpha",
    "dist",
  )
  lines = (require("magic") / "magic.dat").read_text().splitlines()
  return _Raw(columns, np.array([line.split(",")[:-1] for line in lines], np.float64))


def _shuttle() -> _Raw:
  head, rows = _lines("shuttle", "shuttle.csv")
  return _Raw(tuple(head[:-1]), _floats(head, rows, head[:-1]))


def _weather() -> _Raw:
  head, rows = _lines("weather", "weather.csv")
  columns = ("temp", "dewp", "humid", "wind_speed", "pressure")
  needed = [head.index(column) for column in columns]
  rows = [row for row in rows if all(row[i] != "NA" for i in needed)]
  values, date = _floats(head, rows, columns), _floats(head, rows, ("month", "day"))
  # One wind of 1048 miles per hour is a mistake, and would set the scale of all others.
  kept = values[:, 3] < 200
  # Tenths of a degree Celsius in Fahrenheit, knots in miles per hour.
  widths = (0.18, 0.18, 0.01, 1.15078, 0.1)
  _, day = np.unique(date[kept], axis=0, return_inverse=True)
  return _Raw(columns, values[kept], widths, day.astype(np.int32))


TABLES = {
  "breast_cancer": _classic(sklearn_datasets.load_breast_cancer),
  "casp": _casp,
  "diabetes": _classic(sklearn_datasets.load_diabetes, scaled=False),
  "diamonds": _diamonds,
  "iris": _classic(sklearn_datasets.load_iris),
  "magic": _magic,
  "shuttle": _shuttle,
  "weather": _weather,
  "wine": _classic(sklearn_datasets.load_wine),
}


def table(
  name: str, seed: int = 0, held_out: float = 0.1, noise: float = 0.0, by_group: bool = False
) -> Dataset:
  """Load a table, split at random and standardized with the statistics of its training rows.

  Args:
    name: a key of `TABLES`.
    seed: of the split and of the noise.
    held_out: share of the rows, or of the groups, that is held out.
    noise: standard deviation of normal noise, added once to the standardized columns: smooths small
      tables.
    by_group: split whole groups instead of rows, and give each row's group. "weather" has groups,
      the days.

  Raises:
    ValueError: if there is no such table, it was not fetched, or an argument is out of range.
  """
  check_name("name", name, TABLES)
  if not 0 < held_out < 1:
    raise ValueError(f"held_out must be between 0 and 1, got {held_out}")
  if not noise >= 0:
    raise ValueError(f"noise must be at least 0, got {noise}")
  raw = TABLES[name]()
  if by_group and raw.group is None:
    raise ValueError(f"by_group: the table {name} has no groups")
  # Sorted by value, so that nothing depends on the order in the file.
  rows, first = np.unique(raw.rows, axis=0, return_index=True)
  group = raw.group[first] if by_group and raw.group is not None else np.arange(len(rows))
  rng = np.random.default_rng(seed)
  chosen = rng.permutation(np.unique(group))
  number = int(held_out * len(chosen))
  if not number:
    raise ValueError(f"held_out {held_out} leaves no row to hold out of {len(chosen)}")
  widths = np.array(rounding(rows) if raw.widths is None else raw.widths)
  rows = rows + widths[None] * rng.random(rows.shape)
  order = rng.permutation(len(rows))
  test = np.isin(group[order], chosen[:number])
  places = {"train": order[~test], "test": order[test]}
  mean, std = rows[places["train"]].mean(0), rows[places["train"]].std(0)
  parts = {}
  for part, place in places.items():
    x = (rows[place] - mean) / std + noise * rng.standard_normal((len(place), rows.shape[1]))
    parts[part] = {"x": x.astype(np.float32)}
    if by_group:
      parts[part]["group"] = group[place].astype(np.int32)
  sizes = f"{len(places['train'])}/{len(places['test'])}"
  split = "split by group" if by_group else "random split"
  description = f"table {name}, {rows.shape[1]} columns, standardized, {split} {sizes}"
  return Dataset(parts["train"], parts["test"], 0, None, description, raw.columns)


def rounding(rows: np.ndarray) -> list[float]:
  """Return for each column the largest power of ten that all its values are multiples of."""
  digits = lambda column: next(
    k for k in range(17) if np.allclose(column, np.round(column, k), rtol=1e-12, atol=1e-12)
  )
  return [10.0 ** -digits(column) for column in rows.T]
