"""The notebook, executed offline: the bundled experiment gives its table, the rest says why not.

Assumes Jupyter's nbclient and ipykernel (the `test` extra) and the bundled weights; skips without.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import rwkvsts
from rwkvsts.model import DEMO
from rwkvsts.study import StudyConfig

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "01_reproduce_the_paper.ipynb"
MISSING = [name for name in ("nbformat", "nbclient", "ipykernel") if find_spec(name) is None]

pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} not installed: pip install '.[test]'"
)


def read() -> Any:
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


def texts(cell: Any, kind: str) -> list[str]:
    """What a cell printed (kind "stdout"), or displayed as a MIME type."""
    if kind == "stdout":
        return [part.text for part in cell.outputs if part.get("name") == "stdout"]
    return [part.data[kind] for part in cell.outputs if kind in part.get("data", {})]


def figures(markdown: str) -> list[list[str]]:
    """Cells of a Markdown table's rows that hold a Spearman figure."""
    rows = [line.strip("|").split("|") for line in markdown.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row] for row in rows]
    return [row for row in cells if any("[" in cell and "%" not in cell for cell in row)]


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if not (DEMO / "model.safetensors").exists():
        pytest.skip(f"the bundled weights are not there: {DEMO.name}/model.safetensors")
    from nbclient import NotebookClient

    folder = tmp_path_factory.mktemp("notebook")
    # The kernel imports the copy under test, and finds neither the hub nor a user's settings.
    environment = {
        **os.environ,
        "RWKVSTS_OFFLINE": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(rwkvsts.__file__).parents[1]),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "IPYTHONDIR": str(folder / "ipython"),
    }
    resources = {"metadata": {"path": str(folder)}}
    notebook = read()
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources)
    client.execute(env=environment)
    return {"cells": notebook.cells, "folder": folder}


def cell_with(executed: Any, source: str) -> Any:
    (found,) = (cell for cell in executed["cells"] if source in cell.source)
    return found


def test_notebook_is_stripped_and_opens_by_the_readmes_badge() -> None:
    notebook = read()
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    badge = notebook.cells[0].source.splitlines()[0]
    assert badge.startswith("[![Open in Colab]") and badge.endswith(f"{NOTEBOOK.name})")
    assert badge in (ROOT / "README.md").read_text("utf-8").splitlines()


def test_bundled_experiment_gives_a_table_and_a_plot(executed: Any) -> None:
    cell = cell_with(executed, "study.run(StudyConfig())")
    (table,) = texts(cell, "text/markdown")
    rows = figures(table)
    methods = [row[0] for row in rows]
    assert methods[:3] == ["word overlap", "GloVe", "GloVe, words split"]
    assert [int(row[1]) for row in rows[3:]] == list(StudyConfig().layers)
    spearman = [float(row[2].split()[0]) for row in rows]
    assert all(-1 < rho < 1 for rho in spearman)
    assert len(set(spearman[3:])) > 1  # layers differ, in a model that is real
    assert len(texts(cell, "image/png")) == 1
    written = sorted(path.name for path in (executed["folder"] / "results" / "demo").iterdir())
    assert written == [f"study.{ending}" for ending in ("csv", "json", "md", "png", "tex")]


def test_sentences_get_an_array(executed: Any) -> None:
    (printed,) = texts(cell_with(executed, "model.encode("), "stdout")
    assert printed.startswith("(3, 3, ") and "float32" in printed.splitlines()[0]
    assert printed.count("paraphrase") == 3 and "nan" not in printed


def test_the_rest_is_skipped_with_its_reason(executed: Any) -> None:
    said = [
        text for cell in executed["cells"] if "outputs" in cell for text in texts(cell, "stdout")
    ]
    assert [text for text in said if "skipped" in text.lower()] == [
        "The real model is skipped: RWKVSTS_OFFLINE=1 is set.\n",
        *["Skipped: RWKVSTS_OFFLINE=1 is set.\n"] * 3,
    ]
