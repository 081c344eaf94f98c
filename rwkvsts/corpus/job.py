"""A corpus job: reading, tokenising, computing and writing at the same time.

Three threads share the work: one reads, cuts and tokenises the next block, the caller's computes,
one writes the block before. Where a block is cut decides nothing about a text's bits, which depend
on that text alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .blocks import Block, Counts, Survey, cut, prepare
from .meter import Meter
from .options import Options, identity
from .output import Folder, Rows, narrow, npy_file, room_for
from .overlap import ahead

if TYPE_CHECKING:
    from ..progress import Show

READY = 2  # blocks read before they are computed
WRITING = 2  # blocks computed and not yet written


def to_folder(
    model: Any,
    found: Survey,
    out: Path,
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
    block_rows, shard_rows = options.rows(model)
    with Folder(out, about, found, options) as folder:
        start = folder.counts.rows
        done_bytes = round(found.text_bytes * start / sum(found.rows))
        with (
            closing(_blocks(model, found, options, start, block_rows, shard_rows)) as blocks,
            Meter(found.text_bytes, done_bytes) as meter,
        ):
            _drain(blocks, _Embedding(model, options, batch_tokens, meter), folder.append)
        folder.complete()
        return folder.counts


def to_npy(
    model: Any,
    found: Survey,
    out: Path,
    options: Options,
    batch_tokens: int | None = None,
) -> Counts:
    """Embed the inputs into one .npy file, [rows, layers, C] or [rows, C] for one layer.

    The file is there when it is whole, or not at all. Parameters and errors are `to_folder`'s.
    """
    check(model, options)
    width = len(options.layers), options.width(model)
    rows = sum(found.rows) - (found.empty if options.on_empty == "skip" else 0)
    room_for(out, rows * width[0] * width[1] * np.dtype(options.dtype).itemsize)
    block_rows, _ = options.rows(model)
    counts = Counts()
    with (
        npy_file(out, width, options.dtype, len(options.layers) == 1) as npy,
        closing(_blocks(model, found, options, 0, block_rows, sum(found.rows))) as blocks,
        Meter(found.text_bytes, 0) as meter,
    ):

        def write(block: Block, rows: Rows) -> None:
            nonlocal counts
            npy.append(narrow(block, rows, options))
            counts = counts + block.counts

        _drain(blocks, _Embedding(model, options, batch_tokens, meter), write)
    return counts


def encode(
    model: Any,
    texts: list[str],
    options: Options,
    batch_tokens: int | None = None,
    progress: Show = False,
) -> Rows:
    """Embeddings as a job has them, float32 [texts, layers, width].

    progress : as in `RWKV.encode`
    """
    projection = options.projection
    rows: Rows = model.encode(
        texts,
        layers=list(options.layers),
        pooling=options.pooling,
        prompt=options.prompt,
        max_length=options.max_length,
        batch_tokens=batch_tokens,
        normalize=options.normalize and projection is None,
        show_progress=progress,
    )
    return rows if projection is None else projection.transform(rows, options.normalize)


def check(model: Any, options: Options) -> None:
    """Raise DataError where the options' projection is not of this model."""
    if options.projection is not None:
        options.projection.check(model, options.pooling, options.prompt)


def _blocks(
    model: Any, found: Survey, options: Options, start: int, block_rows: int, shard_rows: int
) -> Generator[Block, None, None]:
    """Blocks from row `start` on, made ready in a thread."""
    tables = cut(found, start, block_rows, shard_rows)
    how = found.columns, model.tokenizer, options.max_length, options.on_empty
    return ahead((prepare(table, *how) for table in tables), READY)


def _drain(
    blocks: Iterator[Block],
    embed: Callable[[Block], Rows],
    write: Callable[[Block, Rows], None],
) -> None:
    """Embed the blocks, each while those before it are written."""
    with ThreadPoolExecutor(1, "rwkvsts writing") as thread:
        pending: deque[Future[None]] = deque()
        for block in blocks:
            pending.append(thread.submit(write, block, embed(block)))
            while len(pending) > WRITING:
                pending.popleft().result()
        for future in pending:
            future.result()


class _Embedding:
    """Embeds blocks, and tells the meter how far it is within each, and within each long text."""

    def __init__(
        self, model: Any, options: Options, batch_tokens: int | None, meter: Meter
    ) -> None:
        self._model, self._options, self._meter = model, options, meter
        self._batch_tokens = batch_tokens

    def __call__(self, block: Block) -> Rows:
        """float32 [texts, layers, width]."""
        tokens = int(block.tokens.sum())
        if not block.texts:
            shape = 0, len(self._options.layers), self._options.width(self._model)
            return np.empty(shape, np.float32)

        def tell(texts: int, done: int) -> None:
            done = min(done, tokens)  # a prompt's tokens are read, and are not the input's
            self._meter.within(texts, done, done / tokens * block.text_bytes)

        rows = encode(self._model, block.texts, self._options, self._batch_tokens, progress=tell)
        self._meter.update(len(block.texts), tokens, block.text_bytes)
        return rows
