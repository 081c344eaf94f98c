"""The output of a job: a folder of shards with a manifest, or one .npy file.

Promises that a file stands under its final name only when it is whole and on the disk; that the
manifest comes last, so that its presence says that the job is complete; that a job goes on after
its last whole shard; and that one folder holds one job, of one process at a time.

A folder in Parquet holds part-00000.parquet and so on, each with the id column, the kept columns
and one list a layer, of fixed size unless a row may be null; as .npy it holds part-00000.npy,
[rows, layers, C] or [rows, C] for one layer, and the other columns in part-00000.rows.parquet.
_job.json says while the job runs, and _manifest.json when it is complete, what was embedded with
what; readers of Parquet folders pass over names that begin with an underscore.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..files.writing import remove_left, replacing
from .blocks import ROW, Block, Counts, Survey
from .options import Options, differences

JOB, MANIFEST = "_job.json", "_manifest.json"
ABOUT, SHARD = b"rwkvsts", b"rwkvsts.shard"  # keys of a Parquet file's metadata

Rows = NDArray[np.float32]  # [rows, layers, C]


class Folder:
    """A folder of shards, held by this process alone until it is closed.

    Raises
    ------
    DataError : another process writes to it, or it holds another job or other files
    """

    def __init__(self, path: Path, about: dict[str, Any], found: Survey, options: Options) -> None:
        self.path, self.about, self._options = path, about, options
        self._total = sum(found.rows)
        self._shard_rows = about["output"]["shard_rows"]
        self._held, self._shard = ExitStack(), ExitStack()
        self._under_way: Shard | None = None
        self._held.enter_context(_locked(path))
        try:
            self._schema = _schema(about, found, options)
            self.shards = self._begin()
        except BaseException:
            self._held.close()
            raise

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *failure: Any) -> None:
        """Drop the shard under way, if there is one, and let the folder go."""
        with self._held, suppress(BaseException):
            self._shard.__exit__(*failure)

    def append(self, block: Block, rows: Rows) -> None:
        """Write a block into the shard under way, which then stands if that was its last."""
        try:
            with naming_file(self._columns_path(len(self.shards))):
                if self._under_way is None:
                    self._under_way = self._shard.enter_context(self._next())
                shard = self._under_way
                shard.append(block, rows)
                if shard.counts.rows == min(self._shard_rows, self._total - self.counts.rows):
                    self._shard.close()
                    self._under_way = None
                    self.shards.append((shard.counts, shard.rows))
        except OSError as error:
            stand = f"{len(self.shards)} shards stand; start again to go on from there"
            raise OSError(f"{error}; {stand}") from error

    @property
    def counts(self) -> Counts:
        """Sums over the shards that stand."""
        return sum((counts for counts, _ in self.shards), Counts())

    def _begin(self) -> list[tuple[Counts, int]]:
        """Counts and output rows of the shards that stand; removes what a killed run left."""
        remove_left(self.path)
        known = job_in(self.path)
        if known is None:
            _write_json(self.path / JOB, {"job": self.about})
            return []
        was = _read_json(known).get("job")
        if differ := differences(was if isinstance(was, dict) else {}, self.about):
            listed = "; ".join(differ[:4]) + (f"; and {len(differ) - 4} more" if differ[4:] else "")
            raise DataError(
                f"--out: {self.path} holds a job that differs: {listed}. Repeat what it was begun "
                "with, or choose another folder"
            )
        return list(self._standing())

    def _standing(self) -> Iterator[tuple[Counts, int]]:
        import pyarrow.parquet

        for index in range(10**9):
            path = self._columns_path(index)
            if not path.exists():
                return
            try:
                metadata = pyarrow.parquet.read_metadata(path.absolute())
                mark = json.loads(metadata.metadata[SHARD])
                counts = Counts(*mark["counts"])
            except (OSError, KeyError, TypeError, ValueError, pyarrow.ArrowException):
                raise DataError(f"{path} is damaged; delete it and start again") from None
            if mark["job"] != _digest(self.about):
                raise DataError(f"{path} is of another job; delete it and start again")
            yield counts, metadata.num_rows

    def _columns_path(self, index: int) -> Path:
        ending = "parquet" if self._options.format == "parquet" else "rows.parquet"
        return self.path / f"part-{index:05}.{ending}"

    @contextmanager
    def _next(self) -> Iterator[Shard]:
        """A new shard, which stands when the block ends without an exception."""
        index, one = len(self.shards), len(self._options.layers) == 1
        path = self._columns_path(index)
        with ExitStack() as stack:
            # Entered first, and so the last to get its name: this file says that a shard stands.
            part = stack.enter_context(replacing(path))
            npy = None
            if self._options.format == "npy":
                array = self.path / f"part-{index:05}.npy"
                npy = stack.enter_context(npy_file(array, self._width, self._options.dtype, one))
            shard = Shard(self._schema, self._options, npy)
            shard.open(part)
            try:
                yield shard
                shard.mark(_digest(self.about))
            finally:
                shard.close()
        _sync_folder(self.path)

    @property
    def _width(self) -> tuple[int, int]:
        return len(self._options.layers), self.about["output"]["width"]

    def complete(self) -> None:
        """Write the manifest: every shard stands."""
        first, shards = 0, []
        for index, (counts, rows) in enumerate(self.shards):
            files = [self._columns_path(index).name]
            if self._options.format == "npy":
                files.insert(0, f"part-{index:05}.npy")
            shards.append({"files": files, "first_row": first, **vars(counts), "written": rows})
            first += counts.rows
        total = {**vars(self.counts), "written": sum(rows for _, rows in self.shards)}
        _write_json(self.path / MANIFEST, {"job": self.about, "counts": total, "shards": shards})
        (self.path / JOB).unlink(missing_ok=True)
        _sync_folder(self.path)


class Shard:
    """One shard under way. Blocks are appended in order; each becomes one row group."""

    def __init__(self, schema: Any, options: Options, npy: Npy | None) -> None:
        self._schema, self._options, self._npy = schema, options, npy
        self.counts, self.rows = Counts(), 0
        self._writer: Any = None

    def open(self, path: Path) -> None:
        import pyarrow.parquet

        plain = [field.name for field in self._schema if not field.name.startswith("layer_")]
        leaves = [f"{n}.list.element" for n in self._schema.names if n not in plain]
        self._writer = pyarrow.parquet.ParquetWriter(
            path.absolute(),  # pyarrow takes run:1/x for an address, and ~ for the home folder
            self._schema,
            # Embeddings are noise to a compressor and to statistics.
            compression={**dict.fromkeys(plain, "zstd"), **dict.fromkeys(leaves, "none")},
            use_dictionary=plain,
            write_statistics=plain,
        )

    def append(self, block: Block, rows: Rows) -> None:
        """The rows are those of the block's texts; its empty rows become null."""
        import pyarrow

        columns = list(block.carried.columns)
        if self._npy is None:
            columns += embedding_columns(block, rows, self._options)
        else:
            self._npy.append(with_empty(block, rows, self._options.dtype))
        table = pyarrow.table(columns, schema=self._schema)
        if len(table):
            self._writer.write_table(table, row_group_size=len(table))
        self.counts, self.rows = self.counts + block.counts, self.rows + len(table)

    def mark(self, job: str) -> None:
        mark = {"job": job, "counts": self.counts.as_tuple()}
        self._writer.add_key_value_metadata({SHARD: json.dumps(mark)})

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Npy:
    """A .npy file that grows: its header is written again when the number of rows is known."""

    def __init__(self, file: Any, shape: tuple[int, ...], dtype: str) -> None:
        self._file, self._shape, self._dtype = file, shape, np.dtype(dtype)
        self.rows = 0
        self._header()

    def _header(self) -> None:
        about = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.rows, *self._shape),
        }
        # NumPy leaves room in the header for the first axis to grow.
        np.lib.format.write_array_header_1_0(self._file, about)

    def append(self, rows: NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(rows).data)
        self.rows += len(rows)

    def finish(self) -> None:
        self._file.seek(0)
        self._header()


@contextmanager
def npy_file(path: Path, width: tuple[int, int], dtype: str, one: bool) -> Iterator[Npy]:
    """A .npy file to append rows [layers, C] to, or rows [C] where there is one layer.

    It is no memory map: a disk that fills under one ends the process without a word.
    """
    with naming_file(path), replacing(path) as part, open(part, "xb") as file:
        npy = Npy(file, width[1:] if one else width, dtype)
        yield npy
        npy.finish()


def narrow(rows: Rows, dtype: str) -> NDArray[Any]:
    """The rows of a block's texts in the output's dtype, [texts, layers, C].

    Raises
    ------
    DataError : a number does not fit into float16
    """
    with np.errstate(over="ignore"):
        narrowed = rows.astype(dtype, copy=False)
    if dtype == "float16" and not (np.isinf(narrowed) <= np.isinf(rows)).all():
        largest = float(np.abs(rows[np.isfinite(rows)]).max())
        raise DataError(
            f"an embedding holds {largest:.6g}, float16 ends at 65504; choose --dtype-out float32, "
            "or --normalize"
        )
    return narrowed


def with_empty(block: Block, rows: Rows, dtype: str) -> NDArray[Any]:
    """A row for each of the block's carried rows, [carried rows, layers, C]; NaN for an empty one.

    Raises what `narrow` raises.
    """
    narrowed = narrow(rows, dtype)
    if not block.empty.any():
        return narrowed
    whole = np.full((len(block.empty), *rows.shape[1:]), np.nan, dtype)
    whole[~block.empty] = narrowed
    return whole


def job_in(path: Path) -> Path | None:
    """The file that says which job the folder holds; None where it is new or empty.

    Raises
    ------
    DataError : the folder holds something else
    """
    known = next((p for n in (MANIFEST, JOB) if (p := path / n).exists()), None)
    if known is None and path.is_dir():
        names = [other.name for other in path.iterdir() if not other.name.startswith(".")]
        if names:
            raise DataError(
                f"--out: {path} is a folder that holds {min(names)!r} and no job of this program; "
                "choose a new or empty one"
            )
    return known


def embedding_columns(block: Block, rows: Rows, options: Options) -> list[Any]:
    """A list array for each layer, null where a row is empty."""
    import pyarrow

    narrowed = narrow(rows, options.dtype)
    _, layers, C = narrowed.shape
    bounds = np.append(0, np.cumsum(~block.empty)) * C  # where each list begins and the last ends
    columns = []
    for layer in range(layers):
        numbers = pyarrow.array(np.ascontiguousarray(narrowed[:, layer]).ravel())
        if options.on_empty == "null":
            offsets = pyarrow.array(bounds.astype(np.int32))
            mask = pyarrow.array(block.empty)
            columns.append(pyarrow.ListArray.from_arrays(offsets, numbers, mask=mask))
        else:
            columns.append(pyarrow.FixedSizeListArray.from_arrays(numbers, C))
    return columns


def _schema(about: dict[str, Any], found: Survey, options: Options) -> Any:
    import pyarrow

    carried = list(found.carried)
    if found.columns.id is None:
        carried.insert(0, pyarrow.field(ROW, pyarrow.int64()))
    kind = pyarrow.float32() if options.dtype == "float32" else pyarrow.float16()
    # No pyarrow before 26 reads a null in a list of fixed size.
    size = -1 if options.on_empty == "null" else about["output"]["width"]
    fields = [
        pyarrow.field(f"layer_{layer}", pyarrow.list_(kind, size)) for layer in options.layers
    ]
    names = [field.name for field in [*carried, *fields]]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            f"two columns of the output would be called {twice[0]!r}; rename the input's, or leave "
            "it out"
        )
    told_of = {key: about[key] for key in ("rwkvsts", "model", "embedding")}
    written = carried if options.format == "npy" else [*carried, *fields]
    return pyarrow.schema(written, metadata={ABOUT: json.dumps(told_of)})


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Make the folder if need be, and lock it for this process until the block ends."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        folder = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise DataError(
            f"--out: {path} cannot be used as a folder ({error.strerror}); choose another name"
        ) from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise DataError(
            f"--out: another process writes to {path}; wait for its end, or choose another folder"
        ) from None
    except OSError:
        pass  # a file system without locks, as some over a network
    try:
        yield
    finally:
        os.close(folder)


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Whatever the operating system refuses in the block is raised anew, short, with this path."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # in our words already
            raise
        raise OSError(f"{path}: {os.strerror(error.errno)}") from error


def _sync_folder(path: Path) -> None:
    with suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _digest(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with naming_file(path), replacing(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); choose another folder") from None
    return content if isinstance(content, dict) else {}


def room_for(path: Path, wanted: int) -> None:
    """Raise OSError where the disk has too little room for a file of this size."""
    free = shutil.disk_usage(path.parent).free
    if wanted > free:
        raise OSError(f"{path}: {wanted} bytes wanted, {free} free on its disk")
