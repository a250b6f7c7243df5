"""The site builds strictly; the notebook runs from top to bottom."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "one-query.ipynb"


def cells():
    return [
        "".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"
    ]


def test_the_site_builds_strictly(tmp_path):
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name, reason="extra [docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    reference = (tmp_path / "site" / "docs" / "reference" / "index.html").read_text()
    assert "bench.contracts.Method.scores" in reference
    assert (tmp_path / "site" / "results" / "faces" / "figures" / "removals.png").is_file()
    assert "https://fonts" not in (tmp_path / "site" / "index.html").read_text()


def test_the_cells_of_the_notebook_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(matplotlib.pyplot, "show", lambda: matplotlib.pyplot.close("all"))
    names: dict = {}
    for cell in cells():
        exec(cell.replace('NAME, K = "faces", 500', 'NAME, K = "tiny", 20'), names)
    assert "d_trak" in capsys.readouterr().out
    assert names["picture"].name == "removals.png"


@pytest.mark.slow
def test_the_notebook_runs_in_a_kernel(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="extra [docs]")
    nbformat = pytest.importorskip("nbformat", reason="extra [docs]")
    pytest.importorskip("ipykernel", reason="extra [docs]")
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(book, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
