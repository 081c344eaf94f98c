"""How an RWKV answers a request: texts prepared, passes run by the C core, rows and states kept.

Assumes a model that opening.py has opened, and a request that has been checked. Promises that a
row depends on its own text alone; `rwkvsts.model.RWKV` adds what a user calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import batch
from .embedder import POOLING, BaseEmbedder, FloatArray, Ids, Request, in_words
from .opening import Opened
from .states import AT_A_TIME, State, state_bytes
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Config:
    """Sizes of a checkpoint, read off its tensors."""

    n_layer: int
    n_embd: int
    n_head: int
    head_size: int
    n_ffn: int
    n_vocab: int


class Running(BaseEmbedder):
    """An embedder whose passes the C core runs."""

    def __init__(self, opened: Opened) -> None:
        self._core = opened.core
        self.tokenizer: Tokenizer | None = opened.tokenizer
        self.config = Config(**opened.core.config)
        self.n_blocks = opened.blocks

    def _check_below(self, count: int, request: Request, what: str) -> None:
        """ValueError for a layer asked for that is not among the first so many."""
        for layer in (self.layers[i] for i in request.columns if i >= count):
            held = in_words(self.layers[:count])
            raise ValueError(f'layer "{layer}" has no {what}: name one of {held}')

    def _reading(self, request: Request) -> tuple[batch.Prepare, Request]:
        """How each text is read, and the request from the state after the prompt's prefix."""
        tokenizer = self._need_tokenizer()
        if before := request.prompt.before:
            state = self._after(tokenizer.encode(before), request.state)
            request = replace(request, state=state)
        skips = request.skip_first and request.state is None
        return batch.from_texts(tokenizer, request.max_length, request.prompt, skips), request

    def _after(self, prefix: Ids, state: State | None) -> State:
        """The state after a prefix that starts from `state`, or from nothing where that is None."""
        read = batch.from_ids(self.config.n_vocab)([prefix], 0)
        return State(*(array[0] for array in self._states(read, state)))

    def _states_of(
        self, texts: list[str], prepare: batch.Prepare, request: Request
    ) -> Iterator[tuple[int, State]]:
        """The states after some texts at a time, and the place of the first of them."""
        step = max(1, AT_A_TIME // state_bytes(self.n_blocks, self.width, self.config.head_size))
        with batch.Bar(len(texts), request.show_progress) as bar:
            for first in range(0, len(texts), step):
                read = prepare(texts[first : first + step], first)
                bar.expect(first, len(read.ids))
                yield first, self._states(read, request.state, request.batch_tokens)
                bar.update(len(read))

    def _states(
        self, read: batch.Batch, state: State | None, batch_tokens: int | None = None
    ) -> State:
        """The states after sequences, [S, ...] each array."""
        none, limit = np.empty(0, np.int32), batch_tokens or 0
        last = self._core.run(read.ids, read.start, none, 0, None, state, True, limit, None)
        return State(*last)

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError("the model was loaded with tokenizer=None: use encode_ids")
        return self.tokenizer

    def _embed(self, texts: list[Any], axes: tuple[int, ...], request: Request) -> FloatArray:
        prepare, request = self._reading(request)
        return self._encode(texts, axes, prepare, request)

    def _encode(
        self, items: list[Any], axes: tuple[int, ...], prepare: batch.Prepare, request: Request
    ) -> FloatArray:
        """The embeddings of texts or lists of ids; `axes` as in `_embed`."""
        result, rows = request.result(axes, self.width)
        if items:
            self._reader(prepare, request).fill(items, rows, request.show_progress)
        return result

    def _reader(self, prepare: batch.Prepare, request: Request) -> batch.Reader:
        def run(
            read: batch.Batch, rows: FloatArray, first: int, more: bool, progress: batch.Progress
        ) -> int:
            done, finite = self._fill(read, first, request, rows, progress, more)
            rows = rows[:done]
            if not finite:
                batch.warn_of_rows(rows, first, [self.layers[i] for i in request.columns])
            request.finish(rows)
            return done

        return batch.Reader(prepare, run, (len(request.columns), self.width))

    def _fill(
        self,
        read: batch.Batch,
        first: int,
        request: Request,
        rows: FloatArray,
        progress: batch.Progress,
        more: bool,
    ) -> tuple[int, bool]:
        """Fill the rows of the items from `first` on: how many, and whether all are finite."""
        return self._run(read, request, rows, progress, more=more)

    def _run(
        self,
        read: batch.Batch,
        request: Request,
        rows: FloatArray,
        progress: batch.Progress | None = None,
        origin: NDArray[np.int64] | None = None,
        more: bool = False,
    ) -> tuple[int, bool]:
        """Fill the pooled rows of sequences: how many, and whether all of them are finite.

        origin : [S], which of the request's states each starts from; None where that is one state
        more : sequences that would not fill a pass are left
        """
        done, finite = self._core.run(
            read.ids,
            read.start,
            np.array(request.columns, np.int32),
            POOLING.index(request.pooling),
            rows,
            request.state,
            False,
            request.batch_tokens or 0,
            progress,
            read.skip,
            origin,
            more,
        )
        return int(done), bool(finite)
