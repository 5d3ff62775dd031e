"""examples/notebook.ipynb runs, and is committed with what it shows."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "examples"


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(notebook, kind):
    """What the cells show as `kind`, "text/plain" or a picture, and, as "stdout" or "stderr", what they print."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    printed = [output.text for output in outputs if output.get("name") == kind]
    return printed + [output.data[kind] for output in outputs if kind in output.get("data", {})]


def recall(notebook, model):
    (found,) = re.findall(rf"Recall@1, {model}: (0\.\d+)", "".join(shown(notebook, "stdout")))
    return float(found)


def test_the_committed_notebook_was_run_from_top_to_bottom():
    notebook = nbformat.read(FOLDER / "notebook.ipynb", as_version=4)
    assert [cell.execution_count for cell in code_cells(notebook)] == [*range(1, len(code_cells(notebook)) + 1)]
    assert len(shown(notebook, "image/jpeg")) == 2
    assert shown(notebook, "stderr") == []
    assert recall(notebook, "S2SD consolidated") > recall(notebook, "the objective alone") + 0.03


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch")  # `make test` installs it
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent), prepend=":")
    notebook = nbformat.read(FOLDER / "notebook.ipynb", as_version=4)
    for cell in code_cells(notebook):
        cell.outputs = []
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER)}}).execute()
    assert len(shown(notebook, "image/jpeg")) == 2
    assert recall(notebook, "S2SD consolidated") > recall(notebook, "the objective alone") + 0.03
