"""The notebooks, executed offline: they run to their end and show a plot.

Of the first the bundled experiment gives its table, the rest says why not; then the rest runs
against a hub made here. Assumes Jupyter's nbclient and ipykernel (the `test` extra),
and for the first part the bundled weights; skips without.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hubserver import Repo, serve
from makecheckpoint import write_safetensors
from tinymodel import random_weights

import rwkvsts
from rwkvsts.opening import DEMO
from rwkvsts.study import StudyConfig, folder

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NOTEBOOK = ROOT / "notebooks" / "01_reproduce_the_paper.ipynb"
MISSING = [name for name in ("nbformat", "nbclient", "ipykernel") if find_spec(name) is None]

pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} not installed: pip install '.[test]'"
)


def read(path: Path = NOTEBOOK) -> Any:
    import nbformat

    notebook = nbformat.read(path, as_version=4)
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
    folder = tmp_path_factory.mktemp("notebook")
    notebook = read()
    execute(notebook, folder, RWKVSTS_OFFLINE="1", HF_HUB_OFFLINE="1")
    return {"cells": notebook.cells, "folder": folder}


def execute(notebook: Any, folder: Path, **settings: str) -> None:
    from nbclient import NotebookClient

    # The kernel imports the copy under test, and finds neither the hub nor a user's settings.
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(rwkvsts.__file__).parents[1]),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "IPYTHONDIR": str(folder / "ipython"),
        **settings,
    }
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources)
    client.execute(env=environment)


def cell_with(executed: Any, source: str) -> Any:
    (found,) = (cell for cell in executed["cells"] if source in cell.source)
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stripped_and_open_by_the_readmes_badges(path: Path) -> None:
    notebook = read(path)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    badge = notebook.cells[0].source.splitlines()[0]
    assert badge.startswith("[![Open in Colab]") and badge.endswith(f"{path.name})")
    assert badge in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("path", NOTEBOOKS[1:], ids=lambda path: path.stem)
def test_the_other_notebooks_run_offline_and_end_in_a_plot(path: Path, tmp_path: Path) -> None:
    if not (DEMO / "model.safetensors").exists():
        pytest.skip(f"the bundled weights are not there: {DEMO.name}/model.safetensors")
    notebook = read(path)
    execute(notebook, tmp_path, RWKVSTS_OFFLINE="1", HF_HUB_OFFLINE="1")
    *_, last = (cell for cell in notebook.cells if cell.cell_type == "code")
    assert texts(last, "image/png")
    printed = "".join(t for c in notebook.cells if "outputs" in c for t in texts(c, "stdout"))
    assert "nan" not in printed.lower().split() and "False" not in printed.split("agree:")[-1][:8]
    (table,) = (t for c in notebook.cells if "outputs" in c for t in texts(c, "text/markdown"))
    assert len(figures(table)) > 4


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
    norms = {"norms.pdf", "norms.png"}  # measured only where asked for
    assert written == sorted(set(folder.FILES) - norms)


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


WORDS = [f"w{i}" for i in range(50)]


def mrpc_parquet(n: int) -> bytes:
    rng = np.random.default_rng(n)
    sentences = {f"sentence{k}": [" ".join(rng.choice(WORDS, 4)) for _ in range(n)] for k in (1, 2)}
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table({**sentences, "label": rng.integers(0, 2, n)}), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def gpt2_tokenizer() -> bytes:
    """GPT-2's format and bytes, without its merges."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return bpe.to_str().encode()


def made_up_hub(folder: Path) -> dict[str, Repo]:
    """All that the notebook asks the hub for, under the real names, small."""
    write_safetensors(folder / "model.safetensors", random_weights(3, L=12, V=300))
    vocabulary = [f"{i + 1} {bytes([i])!r} 1" for i in range(256)]
    mrpc = {"train": mrpc_parquet(3668), "validation": mrpc_parquet(408)}
    files = {
        "RWKV/v6-Finch-1B6-HF": {
            "model.safetensors": (folder / "model.safetensors").read_bytes(),
            "rwkv_vocab_v20230424.txt": "\n".join(vocabulary).encode(),
        },
        "openai-community/gpt2": {"tokenizer.json": gpt2_tokenizer()},
        "nyu-mll/glue": {f"mrpc/{k}-00000-of-00001.parquet": v for k, v in mrpc.items()},
    }
    return {
        name: Repo({f"{i:040x}": content}, {"main": f"{i:040x}"})
        for i, (name, content) in enumerate(files.items(), 1)
    }


def test_the_rest_runs_where_the_hub_answers(tmp_path: Path) -> None:
    lines = [f"{word} " + " ".join(["0.5", str(i)] * 25) for i, word in enumerate(WORDS)]
    glove = gzip.compress("\n".join(lines).encode())
    (tmp_path / "made.gz").write_bytes(glove)
    notebook = read()
    # Without the bundled weights; they have their own test.
    notebook.cells = [
        cell for cell in notebook.cells if not re.search(r'StudyConfig\(\)|"demo"', cell.source)
    ]
    for cell in notebook.cells:
        cell.source = re.sub(
            '(?m)^URL = ".*"$', f'URL = "{(tmp_path / "made.gz").as_uri()}"', cell.source
        )
        cell.source = re.sub('"[0-9a-f]{32}"', f'"{hashlib.md5(glove).hexdigest()}"', cell.source)
    with serve(made_up_hub(tmp_path)) as hub:
        home = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        execute(notebook, tmp_path, RWKVSTS_OFFLINE="", HF_ENDPOINT=hub.endpoint, **home)
    executed = {"cells": notebook.cells}
    assert texts(cell_with(executed, "reason_to_skip()"), "stdout") == ["Everything is here.\n"]
    assert texts(cell_with(executed, "urlretrieve"), "stdout") == []
    cell = cell_with(executed, "study.run(paper)")
    (table,) = texts(cell, "text/markdown")
    rows = [row for row in figures(table) if row[2]]  # no headings, "train[:1000]"
    expected = [(None, None)] * 3 + [
        (t, i) for t in ("gpt2", "world") for i in StudyConfig().layers
    ]
    found = [
        (row[0].partition("mean, ")[2] or None, int(row[1]) if row[1] else None) for row in rows
    ]
    assert found == expected * 2  # for each split
    # Published figures stand only beside the paper's protocol, and neither model nor GloVe is its.
    assert "paper" not in table.splitlines()[0] and "do not stand beside them" in table
    assert len(texts(cell, "image/png")) == 1
    (compared,) = texts(cell_with(executed, "published_spearman"), "text/html")
    assert compared.count("<tr") >= 12
