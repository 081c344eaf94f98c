"""A corpus by Ray Data on a real local cluster: every id once, bits as by one process.

Starting a cluster takes long, so all of it is marked slow.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from makecheckpoint import write_safetensors
from tinymodel import random_weights

from rwkvsts import RWKV6, DataError, corpus

pytestmark = pytest.mark.slow

ROWS = 1200
COLUMNS = corpus.Columns("text", "id", ("n",))
OPTIONS = corpus.Options(layers=(1, 2), on_empty="null")
LOAD: dict[str, Any] = {"device": "cpu", "dtype": "float32", "tokenizer": "bytes"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    write_safetensors(path, random_weights(5, L=3, C=128, V=256))
    return path


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head and one more node, each with its own processes."""
    ray = pytest.importorskip("ray", reason="needs pip install 'rwkvsts[ray]'")
    from ray.cluster_utils import Cluster

    root, tests = Path(corpus.__file__).parents[2], Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{root}:{tests}")
    monkeypatch.setenv("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    node = {"num_cpus": 2, "object_store_memory": 80 << 20}
    started = Cluster(initialize_head=True, head_node_args=node)
    started.second = started.add_node(**node)
    ray.init(address=started.address, log_to_driver=False)
    try:
        yield started
    finally:
        ray.shutdown()
        started.shutdown()


def write_texts(folder: Path) -> list[str | None]:
    rng = np.random.default_rng(0)
    texts = [None if i % 97 == 5 else "word " * int(rng.integers(1, 240)) for i in range(ROWS)]
    folder.mkdir()
    for part in range(12):
        rows = range(part * 100, part * 100 + 100)
        table = pyarrow.table(
            {"id": [f"{i:04}" for i in rows], "text": [texts[i] for i in rows], "n": list(rows)}
        )
        pyarrow.parquet.write_table(table, folder / f"{part:02}.parquet")
    return texts


def check(folder: Path, texts: list[str | None], weights: Path) -> None:
    """Every id once, and the bits of one process."""
    table = pyarrow.parquet.read_table(folder).sort_by("id").to_pydict()
    assert table["id"] == [f"{i:04}" for i in range(ROWS)] and table["n"] == list(range(ROWS))
    model = RWKV6.from_pretrained(weights, **LOAD)
    expected = iter(model.encode([text for text in texts if text], [1, 2]))
    for text, *found in zip(texts, table["layer_1"], table["layer_2"], strict=True):
        if text is None:
            assert found == [None, None]
        else:
            assert np.array_equal(np.array(found, np.float32), next(expected))


def test_a_node_is_killed_under_way(cluster: Any, weights: Path, tmp_path: Path) -> None:
    import ray

    from rwkvsts.integrations.ray import to_folder

    texts, out = write_texts(tmp_path / "texts"), tmp_path / "out"
    killed = threading.Event()

    def kill() -> None:
        while not list(out.glob("*.parquet")):
            time.sleep(0.05)
        cluster.remove_node(cluster.second, allow_graceful=False)
        killed.set()

    killer = threading.Thread(target=kill)
    killer.start()
    dataset = ray.data.read_parquet(str(tmp_path / "texts"), override_num_blocks=12)
    how = {"batch_rows": 20, **LOAD}
    to_folder(dataset, out, weights, COLUMNS, OPTIONS, **how)
    killer.join(60)
    until = time.monotonic() + 300
    while sum(node["Alive"] for node in ray.nodes()) > 1:  # the head hears of it in its own time
        assert killed.is_set() and time.monotonic() < until
        time.sleep(0.2)
    check(out, texts, weights)


def test_started_again_it_skips_what_stands(cluster: Any, weights: Path, tmp_path: Path) -> None:
    import ray

    from rwkvsts.integrations.ray import to_folder

    texts, out = write_texts(tmp_path / "texts"), tmp_path / "out"
    some = sorted(map(str, (tmp_path / "texts").iterdir()))[:5]
    to_folder(ray.data.read_parquet(some), out, weights, COLUMNS, OPTIONS, **LOAD)
    before = {path.name: path.read_bytes() for path in out.glob("*.parquet")}
    assert pyarrow.parquet.read_table(out).num_rows == 500
    everything = str(tmp_path / "texts")
    to_folder(ray.data.read_parquet(everything), out, weights, COLUMNS, OPTIONS, **LOAD)
    check(out, texts, weights)
    assert all((out / name).read_bytes() == content for name, content in before.items())
    other = corpus.Options(layers=(1,), on_empty="null")
    with pytest.raises(DataError, match="a job that differs: embedding.layers was"):
        to_folder(ray.data.read_parquet(everything), out, weights, COLUMNS, other, **LOAD)
    coarse = {**LOAD, "dtype": "bfloat16"}
    with pytest.raises(DataError, match="differs: load.dtype was 'float32' and is 'bfloat16'"):
        to_folder(ray.data.read_parquet(everything), out, weights, COLUMNS, OPTIONS, **coarse)
    with pytest.raises(DataError, match=r"differs: load.vocabulary was None and is 'v\.txt'"):
        to_folder(None, out, weights, COLUMNS, OPTIONS, **LOAD, vocabulary=tmp_path / "v.txt")


def test_the_command_on_a_cluster(cluster: Any, weights: Path, tmp_path: Path) -> None:
    from rwkvsts import cli

    lines = [f'0{i},"some text {i}"' for i in range(50)]
    (tmp_path / "t.csv").write_text("\n".join(["id,text", *lines]))
    argv = ["embed", tmp_path / "t.csv", "--out", tmp_path / "out", "--model", weights]
    argv += ["--id-column", "id", "--layers", "1", "--tokenizer", "bytes", "--dtype", "float32"]
    argv += ["--device", "cpu", "--ray", cluster.address]
    assert cli.main(list(map(str, argv))) == 0
    table = pyarrow.parquet.read_table(tmp_path / "out").sort_by("id").to_pydict()
    assert sorted(table["id"]) == sorted(f"0{i}" for i in range(50))
    model = RWKV6.from_pretrained(weights, **LOAD)
    for name, found in zip(table["id"], table["layer_1"], strict=True):
        expected = model.encode(f"some text {int(name)}", 1)
        assert np.array_equal(np.array(found, np.float32), expected)
