"""Ray Data: a corpus over many machines and GPUs, by Ray's scheduler and Ray's restarts::

    import ray
    from rwkvsts.integrations.ray import Embedder

    (
        ray.data.read_parquet("docs/")
        .map_batches(
            Embedder,
            fn_constructor_args=("demo",),
            batch_format="pyarrow",
            num_gpus=1,
            compute=ray.data.ActorPoolStrategy(size=8),
        )
        .write_parquet("out/")
    )

Every actor opens the model for itself: one a GPU, or one for so many threads of the CPU. A row's
bits do not depend on the actor that embeds it, as long as all run on one kind of device.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..corpus.blocks import prepare
from ..corpus.job import check, projected, reader_of
from ..corpus.options import Options, differences
from ..corpus.output import embedding_columns
from ..corpus.readers import Columns
from ..errors import DataError
from ..opening import highest
from . import Source, absent, opened

try:
    import pyarrow
    import ray
    from ray.data.checkpoint import CheckpointConfig
except ImportError as error:
    absent(error, "ray")

JOB = "_job.json"
# Options of load that change bits.
BITS = ("revision", "file", "tokenizer", "vocabulary", "device", "dtype")


class Embedder:
    """For `Dataset.map_batches` with batch_format="pyarrow".

    A table in, a table out: the id column, the kept columns, and a fixed-size list for each layer,
    called layer_7 and so on, as `rwkvsts embed` writes them.

    Parameters
    ----------
    model : a source, which every actor opens
    columns : which columns are read and kept; default: all are kept, "text" is read
    options : as in `rwkvsts embed`; default: the model's own layer
    load : options of `rwkvsts.load`
    """

    def __init__(
        self,
        model: Source,
        columns: Columns | None = None,
        options: Options | None = None,
        **load: Any,
    ) -> None:
        layers = None if options is None else options.layers
        self.model = opened(model, **{"max_layer": highest(layers), **load})
        self._columns = columns
        self._options = options or Options((self.model.default_layer,))
        check(self.model, self._options)
        self._reader = reader_of(self.model, self._options)

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        """Embed a batch."""
        options = self._options
        columns = self._columns or Columns(id=table.column_names[0], keep=table.column_names[1:])
        block = prepare(table, columns, self._reader.prepare, options.max_length, options.on_empty)
        if options.on_empty == "error" and block.counts.empty:
            ids = table.column(columns.id or 0)
            bad = next(i for i, text in enumerate(table.column(columns.text)) if not text.as_py())
            raise DataError(
                f"the row {ids[bad].as_py()!r} has no text; leave it out, or choose on_empty "
                "'skip' or 'null'"
            )
        found = block.carried
        rows = np.empty((len(block.read), *self._reader.shape), np.float32)
        if len(rows):
            self._reader.run(block.read, rows, 0, False, lambda *_: None)
        rows = projected(rows, options)
        names = [f"layer_{layer}" for layer in options.layers]
        for name, column in zip(names, embedding_columns(block, rows, options), strict=True):
            found = found.append_column(name, column)
        return found


def to_folder(
    dataset: Any,
    out: str | os.PathLike[str],
    model: Source,
    columns: Columns,
    options: Options,
    *,
    actors: int | None = None,
    gpus: float = 0,
    threads: int = 1,
    batch_rows: int = 1024,
    **load: Any,
) -> None:
    """Embed a dataset into a folder of Parquet files; started again it skips the rows that stand.

    The rows that are done are noted by Ray in a folder beside `out`, which all machines must reach.

    Parameters
    ----------
    dataset : read by Ray; columns.id must name a column whose values are unique
    actors : at most; default: as many as the cluster has room for beside reading and writing
    gpus, threads : of an actor
    batch_rows : texts that an actor embeds at a time; more fill a GPU's passes better, fewer are
        spread over more actors and need less memory
    load : options of `rwkvsts.load`
    """
    if columns.id is None:
        raise DataError("Ray skips the rows that are done by their ids: name the id column")
    folder = Path(out).absolute()
    _same_job(folder, model, columns, options, load)
    context = ray.data.DataContext.get_current()
    before = context.checkpoint_config
    context.checkpoint_config = CheckpointConfig(
        columns.id, f"{folder}.checkpoint", delete_checkpoint_on_success=False
    )
    try:
        dataset.context.checkpoint_config = context.checkpoint_config
        dataset.map_batches(
            Embedder,
            fn_constructor_args=(os.fspath(model), columns, options),
            fn_constructor_kwargs={"threads": threads, **load},
            batch_format="pyarrow",
            batch_size=batch_rows,
            num_gpus=gpus or None,
            num_cpus=None if gpus else threads,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors or _room(gpus, threads)),
        ).write_parquet(str(folder))
    finally:
        context.checkpoint_config = before


def _room(gpus: float, threads: int) -> int:
    """How many actors the cluster holds, with a core of each machine left to read and write."""
    resources = ray.cluster_resources()
    if gpus:
        return max(int(resources.get("GPU", 0) / gpus), 1)
    machines = sum(node["Alive"] for node in ray.nodes())
    return max(int((resources.get("CPU", 1) - machines) / threads), 1)


def _named(place: Source | None) -> str | None:
    """A source or an option as a job notes it, without the folders of one machine."""
    if place is None:
        return None
    return os.path.basename(place) if os.path.isabs(place) else os.fspath(place)


def _same_job(
    folder: Path, model: Source, columns: Columns, options: Options, load: dict[str, Any]
) -> None:
    """Note what the folder is embedded with; refuse to go on with anything else."""
    about = {
        "model": _named(model),
        "load": {name: _named(load.get(name)) for name in BITS},
        "columns": {"text": columns.text, "id": columns.id, "keep": list(columns.keep)},
        "embedding": options.embedding(),
        "output": {"dtype": options.dtype, "on_empty": options.on_empty},
    }
    folder.mkdir(parents=True, exist_ok=True)
    noted = folder / JOB
    if not noted.exists():
        if others := [path.name for path in folder.iterdir()]:
            raise DataError(
                f"{folder} holds {min(others)!r} and no job of this program; choose a new folder"
            )
        noted.write_text(json.dumps(about, indent=1) + "\n", "utf-8")
    elif differ := differences(json.loads(noted.read_text("utf-8")), about):
        raise DataError(f"{folder} holds a job that differs: {'; '.join(differ[:4])}")
