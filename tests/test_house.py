"""The rules of the house: how imports run, how long files are, what is documented, and where."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from flax import nnx

import normjax
from normjax import flows, linen, norms

ROOT = Path(__file__).parents[1]
LIBRARY = sorted((ROOT / "normjax").rglob("*.py"))
RELATIVE = [str(path.relative_to(ROOT)) for path in LIBRARY]
MODULES = ["normjax", *(m.name for m in pkgutil.walk_packages(normjax.__path__, "normjax."))]
PUBLIC = [name for name in MODULES if not any(part.startswith("_") for part in name.split("."))]
PACKAGES = [name for name in PUBLIC if hasattr(importlib.import_module(name), "__all__")]
METHODS = (ROOT / "docs" / "methods.md").read_text()

# A part of the library imports parts of its own row and of the rows above, never of those below.
ORDER = [
  {"normjax", "_sizes", "carried"},
  {"norms", "weights", "optim", "losses", "embeddings"},
  {"attention"},
  {"blocks"},
  {"flows"},
  {"models"},
  {"convert"},
  {"checkpoint", "diagnostics", "linen"},
]
RANK = {part: rank for rank, row in enumerate(ORDER) for part in row}


# -- Imports ---------------------------------------------------------------------------------------


def part_of(module):
  """The folder or file directly under normjax/ that a dotted name lies in."""
  return module.split(".")[1] if "." in module else module


def imports_of(module):
  """Yield the dotted name of each module that a module of the library imports."""
  tree = ast.parse(Path(importlib.import_module(module).__file__).read_text())
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{module}: relative import"
      for alias in node.names:
        submodule = f"{node.module}.{alias.name}"
        yield submodule if submodule in MODULES else node.module


IMPORTS = {module: sorted(set(imports_of(module))) for module in MODULES}
OWN = {
  module: [i for i in imported if i.split(".")[0] == "normjax"]
  for module, imported in IMPORTS.items()
}


def circle(graph):
  """Return a circle in a graph of lists of successors, or None."""
  done, path = set(), []

  def visit(node):
    if node in path:
      return [*path[path.index(node) :], node]
    if node in done:
      return None
    path.append(node)
    found = next(filter(None, map(visit, graph.get(node, ()))), None)
    path.pop()
    done.add(node)
    return found

  return next(filter(None, map(visit, graph)), None)


def test_circle_finds_circles():
  assert circle({"a": ["b", "c"], "b": ["c"], "c": []}) is None
  assert circle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c", "b"]
  assert circle({"a": ["a"]}) == ["a", "a"]


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
  assert part_of(module) in RANK, f"give {part_of(module)} a row in ORDER"
  wrong = [i for i in OWN[module] if RANK[part_of(i)] > RANK[part_of(module)]]
  assert not wrong, f"{module} imports {wrong}, which stand below it in ORDER"


def test_no_file_imports_itself_in_a_circle():
  assert circle(OWN) is None


def test_no_folder_imports_itself_in_a_circle():
  folders = {}
  for module, imported in OWN.items():
    others = {part_of(i) for i in imported} - {part_of(module)}
    folders.setdefault(part_of(module), set()).update(others)
  assert circle(folders) is None


@pytest.mark.parametrize("module", MODULES)
def test_private_files_are_imported_in_their_folder_only(module):
  # One directly under normjax/ belongs to all its folders.
  inside = lambda i: part_of(i) in (part_of(module), i.rpartition(".")[2])
  wrong = [i for i in OWN[module] if "._" in i and not inside(i)]
  assert not wrong, f"{module} imports {wrong} and not the names of their folder"


@pytest.mark.parametrize("module", MODULES)
def test_third_parties_are_declared(module, declared):
  parties = {i.split(".")[0] for i in IMPORTS[module]} - {"normjax"}
  assert parties - sys.stdlib_module_names <= declared


@pytest.fixture(scope="module")
def declared():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  wanted = project["dependencies"] + project["optional-dependencies"]["ode"]
  names = {re.match(r"[\w-]+", w)[0] for w in wanted}
  return {{"absl-py": "absl", "orbax-checkpoint": "orbax"}.get(name, name) for name in names}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_module_imports_alone(module):
  assert importlib.import_module(module).__doc__


# -- Files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RELATIVE)
def test_files_are_short(path):
  assert len((ROOT / path).read_text().splitlines()) <= 400


def test_no_file_is_a_drawer():
  names = {path.stem.strip("_") for path in [*LIBRARY, *(ROOT / "experiments").rglob("*.py")]}
  assert not names & {"util", "utils", "helper", "helpers", "misc", "common_utils"}


@pytest.mark.parametrize("path", RELATIVE)
def test_library_asserts_nothing(path):
  asserts = [n for n in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(n, ast.Assert)]
  assert not asserts, "input is checked by ValueError"


def test_files_name_no_place_of_one_machine():
  listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
  files = [ROOT / name for name in listed.stdout.splitlines()]
  place = re.compile(rb"\.\./shared|(?<![\w.~}/-])/(home|root|work|Users|mnt|opt|farm)/\w")
  texts = {f.relative_to(ROOT): f.read_bytes() for f in files if f.exists() and f.suffix != ".npz"}
  found = [f"{name}: {hit[0].decode()}" for name, t in texts.items() if (hit := place.search(t))]
  assert not found


# -- Public names ----------------------------------------------------------------------------------


def public_names(package):
  module = importlib.import_module(package)
  return {name: getattr(module, name) for name in module.__all__}


DOCUMENTED = {
  f"{package}.{name}": value
  for package in PACKAGES
  for name, value in public_names(package).items()
  if callable(value)
}


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_sorted_and_complete(package):
  module = importlib.import_module(package)
  assert module.__all__ == sorted(module.__all__)
  own = {
    name
    for name, value in vars(module).items()
    if not name.startswith("_")
    and (name.isupper() or getattr(value, "__module__", "").startswith(f"{package}."))
    and not inspect.ismodule(value)
  }
  defined = {
    name
    for name, value in vars(module).items()
    if (inspect.isroutine(value) or name in module.__all__)
    and getattr(value, "__module__", "") == package
    and not name.startswith("_")
  }
  assert set(module.__all__) == own | defined


SECTIONS = ("Args", "Returns", "Raises", "Reference", "Example")


def sections_of(value):
  """Return the sections of a docstring in their order, name -> text."""
  doc = inspect.getdoc(value) or ""
  pieces = re.split(rf"^({'|'.join(SECTIONS)}):\n", doc, flags=re.MULTILINE)
  return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def arguments_of(value):
  if inspect.isclass(value) and value.__init__ is object.__init__:
    return []
  names = list(inspect.signature(value.__init__ if inspect.isclass(value) else value).parameters)
  return [name for name in names if name != "self"]


def is_abstract(value):
  return any(
    getattr(getattr(value, name, None), "__isabstractmethod__", False) for name in dir(value)
  )


@pytest.mark.parametrize("name", DOCUMENTED)
def test_docstring_has_its_sections(name):
  value = DOCUMENTED[name]
  sections = sections_of(value)
  assert list(sections) == [s for s in SECTIONS if s in sections], "sections out of order"
  first = (inspect.getdoc(value) or "").splitlines()[0]
  assert re.fullmatch(r"[A-Z][a-z]+ .*\.", first), (
    f"not a sentence that starts with a verb: {first}"
  )
  assert first.split()[0] not in {"The", "This", "An", "A", "Class", "Function", "Helper"}
  if is_abstract(value):
    return
  if arguments := arguments_of(value):
    documented = re.findall(r"^  \*{0,2}(\w+)(?:, (\w+))*:", sections.get("Args", ""), re.MULTILINE)
    assert [a for pair in documented for a in pair if a] == arguments
  assert inspect.isclass(value) or "Returns" in sections
  assert ">>> " in sections.get("Example", "")


@pytest.mark.parametrize("name", [n for n, v in DOCUMENTED.items() if inspect.isclass(v)])
def test_public_methods_are_documented(name):
  for method, value in vars(DOCUMENTED[name]).items():
    if inspect.isfunction(value) and (not method.startswith("_") or method == "__call__"):
      assert value.__doc__, f"{name}.{method} has no docstring"


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module):
  outcome = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
  assert outcome.failed == 0


# -- docs/methods.md -------------------------------------------------------------------------------


def rows():
  """Yield (package, names, sources) of every row of a table in docs/methods.md."""
  package = None
  for line in METHODS.splitlines():
    if heading := re.match(r"## `(normjax\.\w+)`", line):
      package = heading[1]
    elif line.startswith("| `"):
      cells = [cell.strip() for cell in line.strip("|").split("|")]
      yield package, re.findall(r"`(\w+)`", cells[0]), re.findall(r"\d{4}\.\d{4,5}", cells[-1])


@pytest.mark.parametrize("package", PACKAGES)
def test_docs_list_every_public_name(package):
  listed = [name for owner, names, _ in rows() if owner == package for name in names]
  assert len(listed) == len(set(listed)), "a name has two rows"
  assert set(listed) == set(importlib.import_module(package).__all__)


def test_docs_list_no_other_package():
  assert {package for package, _, _ in rows()} == set(PACKAGES)


def test_docs_list_every_norm_by_the_name_that_configs_use():
  layers = {line for line in METHODS.splitlines() if line.startswith("| ") and "make(" in line}
  shown = {name for line in layers for name in re.findall(r'make\("(\w+)"', line)}
  assert shown == set(norms.NAMES)


@pytest.mark.parametrize(("package", "names", "sources"), [*rows()], ids=str)
def test_docs_and_docstrings_give_the_same_source(package, names, sources):
  values = [value for name in names if callable(value := public_names(package)[name])]
  for value in values:
    given = re.findall(r"arXiv (\d{4}\.\d{4,5})", sections_of(value).get("Reference", ""))
    assert set(given) == set(sources), value.__name__


def test_docs_list_every_modules_name_in_linen():
  classes = [v for v in (*vars(norms).values(), *vars(flows).values()) if inspect.isclass(v)]
  modules = [v for v in classes if issubclass(v, nnx.Module)]
  assert all(hasattr(linen, m.__name__) for m in modules if m.__module__.startswith("normjax."))
