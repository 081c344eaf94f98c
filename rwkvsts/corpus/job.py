"""A corpus job: reading, tokenising, computing and writing at the same time.

Three threads share the work: one reads, cuts and tokenises the next block, the caller's computes,
one writes the block before. A pass is filled with texts of as many blocks as it takes; where a
block or a pass is cut decides nothing about a text's bits, which depend on that text alone.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from ..batch import Batch, Reader
from .blocks import Block, Counts, Survey, cut, prepare
from .meter import Meter
from .options import Options, identity
from .output import Folder, Rows, npy_file, room_for, with_empty
from .overlap import ahead

READY = 2  # blocks read before they are computed
WRITING = 2  # blocks computed and not yet written


def to_folder(
    model: Any,
    found: Survey,
    out: str | os.PathLike[str],
    options: Options,
    batch_tokens: int | None = None,
) -> Counts:
    """Embed the inputs into a folder of shards; goes on after the last whole shard of an
    interrupted run. Returns the counts of the whole job.

    Parameters
    ----------
    model : what `rwkvsts.load` returns
    found : what `survey` returned for the inputs
    out : folder, new or empty or of the same job
    batch_tokens : tokens of a pass; changes memory and speed, never a bit of the result

    Raises
    ------
    DataError : the folder holds another job, or the inputs changed since the survey
    OSError : the disk is full; the shards that are whole stand
    """
    check(model, options)
    about = identity(model, found, options)
    block_rows, shard_rows = options.rows_of_block_and_shard(model)
    reader = reader_of(model, options, batch_tokens)
    with Folder(Path(out), about, found, options) as folder:
        start = folder.counts.rows
        done_bytes = round(found.text_bytes * start / sum(found.rows))
        with (
            closing(_blocks(reader, found, options, start, block_rows, shard_rows)) as blocks,
            Meter(found.text_bytes, done_bytes) as meter,
        ):
            _drain(embedded(blocks, reader, meter), options, folder.append)
        folder.complete()
        return folder.counts


def to_npy(
    model: Any,
    found: Survey,
    out: str | os.PathLike[str],
    options: Options,
    batch_tokens: int | None = None,
) -> Counts:
    """Embed the inputs into one .npy file, [rows, layers, C] or [rows, C] for one layer.

    The file is there when it is whole, or not at all. Parameters and errors are `to_folder`'s.
    """
    check(model, options)
    width = len(options.layers), options.width(model)
    written = sum(found.rows) - (found.empty if options.on_empty == "skip" else 0)
    place = Path(out)
    room_for(place, written * width[0] * width[1] * np.dtype(options.dtype).itemsize)
    block_rows, _ = options.rows_of_block_and_shard(model)
    reader, counts = reader_of(model, options, batch_tokens), Counts()
    with (
        npy_file(place, width, options.dtype, len(options.layers) == 1) as npy,
        closing(_blocks(reader, found, options, 0, block_rows, sum(found.rows))) as blocks,
        Meter(found.text_bytes, 0) as meter,
    ):

        def write(block: Block, rows: Rows) -> None:
            nonlocal counts
            npy.append(with_empty(block, rows, options.dtype))
            counts = counts + block.counts

        _drain(embedded(blocks, reader, meter), options, write)
    return counts


def check(model: Any, options: Options) -> None:
    """Raise DataError where the options' projection is not of this model."""
    if options.projection is not None:
        how = options.pooling, options.prompt, options.max_length
        options.projection.check(model, *how)


def reader_of(model: Any, options: Options, batch_tokens: int | None = None) -> Reader:
    """How a job's texts are read by the model."""
    reader: Reader = model.reader(
        list(options.layers),
        options.pooling,
        options.prompt,
        options.max_length,
        batch_tokens,
        options.normalize and options.projection is None,
    )
    return reader


def projected(rows: Rows, options: Options) -> Rows:
    """What is written of rows [texts, layers, C]."""
    projection = options.projection
    return rows if projection is None else projection.transform(rows, options.normalize)


def _blocks(
    reader: Reader, found: Survey, options: Options, start: int, block_rows: int, shard_rows: int
) -> Generator[Block, None, None]:
    """Blocks from row `start` on, made ready in a thread."""
    tables = cut(found, start, block_rows, shard_rows)
    how = found.columns, reader.prepare, options.max_length, options.on_empty
    return ahead((prepare(table, *how) for table in tables), READY)


Pieces = tuple[Block, list[Rows]]  # a block, and the rows of its texts in so many arrays


def embedded(blocks: Iterable[Block], reader: Reader, meter: Meter) -> Iterator[Pieces]:
    """The blocks in order, each when the rows of its texts are there."""
    run = _Run(reader, meter)
    for block in blocks:
        yield from run(block)
    yield from run(None)


class _Run:
    """Runs the texts of blocks in full passes, and tells the meter how far it is within each."""

    def __init__(self, reader: Reader, meter: Meter) -> None:
        self._reader, self._meter = reader, meter
        self._left = Batch.none()  # texts of the blocks before, which did not fill a pass
        self._tokens, self._bytes = np.zeros((2, 0), np.int64)  # of each of these
        self._waiting: deque[Pieces] = deque()

    def __call__(self, block: Block | None) -> Iterator[Pieces]:
        """The blocks that are complete with the texts of this one; with None, all that wait."""
        if block is not None:
            self._left = self._left.and_then(block.read)
            self._tokens = np.append(self._tokens, block.tokens)
            self._bytes = np.append(self._bytes, block.bytes)
            self._waiting.append((block, []))
        rows = np.empty((len(self._left), *self._reader.shape), np.float32)
        if len(rows):
            rows = rows[: self._fill(rows, block is not None)]
        while self._waiting:
            first, pieces = self._waiting[0]
            missing = len(first.read) - sum(map(len, pieces))
            pieces.append(rows[:missing])
            rows = rows[missing:]
            if len(pieces[-1]) < missing:
                return
            yield self._waiting.popleft()

    def _fill(self, rows: Rows, more: bool) -> int:
        read, tokens, size = self._left, int(self._tokens.sum()), int(self._bytes.sum())

        def tell(texts: int, done: int) -> None:  # `done` counts a prompt's tokens too
            every = len(read.ids)
            self._meter.within(texts, tokens * done // every, size * done / every)

        done = self._reader.run(read, rows, 0, more, tell)
        self._meter.update(done, int(self._tokens[:done].sum()), int(self._bytes[:done].sum()))
        self._left = read.after(done)
        self._tokens, self._bytes = self._tokens[done:], self._bytes[done:]
        return done


def _drain(
    blocks: Iterator[Pieces], options: Options, write: Callable[[Block, Rows], None]
) -> None:
    """Write the blocks, each while those after it are embedded."""

    def finish(block: Block, pieces: list[Rows]) -> None:
        rows = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        write(block, projected(rows, options))

    with ThreadPoolExecutor(1, "rwkvsts writing") as thread:
        pending: deque[Future[None]] = deque()
        for block, pieces in blocks:
            pending.append(thread.submit(finish, block, pieces))
            while len(pending) > WRITING:
                pending.popleft().result()
        for future in pending:
            future.result()
