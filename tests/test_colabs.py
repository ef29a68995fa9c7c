"""The Colabs: each notebook is its percent-format source, imports only the library, and runs."""

import ast
import pathlib

import jupytext
import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted((ROOT / "colabs").glob("*.py"))

for_every_colab = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


def test_there_are_colabs_and_no_notebook_without_a_source():
  assert [path.stem for path in SOURCES] == sorted(
    path.stem for path in (ROOT / "colabs").glob("*.ipynb")
  )
  assert SOURCES


@for_every_colab
def test_notebook_is_generated_from_its_source(source):
  notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
  nbformat.validate(notebook)
  cells = lambda nb: [(cell.cell_type, cell.source) for cell in nb.cells]
  command = f"jupytext --update --to ipynb colabs/{source.name}"
  assert cells(notebook) == cells(jupytext.read(source)), f"out of sync: run `{command}`"
  for cell in notebook.cells:
    if cell.cell_type == "code":
      assert (cell.outputs, cell.execution_count) == ([], None), f"outputs in {cell.source}"


@for_every_colab
def test_colab_needs_only_the_wheel(source):
  imported = set()
  for node in ast.walk(ast.parse(source.read_text())):
    if isinstance(node, ast.Import):
      imported |= {alias.name.split(".")[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      imported.add(str(node.module).split(".")[0])
  assert "normjax" in imported
  assert not imported & {"experiments", "tests"}


@for_every_colab
def test_colab_runs_without_warnings(source, monkeypatch, tmp_path):
  monkeypatch.setenv("NORMJAX_TINY", "1")
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  # The kernel's history and connection files stay out of the user's home.
  monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
  monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
  notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
  resources = {"metadata": {"path": str(tmp_path)}}
  nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
  outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
  stderr = [output.text for output in outputs if output.get("name") == "stderr"]
  assert not stderr
  assert any("image/png" in output.get("data", {}) for output in outputs)
