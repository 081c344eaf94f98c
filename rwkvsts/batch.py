"""Texts and id lists on their way to the core: checked, tokenised ahead of the device, counted.

A slice of them rarely fills whole passes: what is left of it goes into a pass with the next slice.

Assumes nothing about the items. Promises packed ids without an empty sequence, or one exception
that names the item by its place in the caller's list.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from operator import length_hint
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .embedder import FloatArray, Prompt, check_texts
from .progress import Show, bar
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Batch:
    """Sequences of token ids, packed; S sequences, T tokens.

    skip : how many first tokens of each sequence are read but not pooled; None for none
    lengths : of the texts in tokens, before max_length cut them and a prompt came around them; None
        where these are the sequences' own
    """

    ids: NDArray[np.int32]  # [T]
    start: NDArray[np.int64]  # [S+1]
    skip: NDArray[np.int32] | None = None  # [S]
    lengths: NDArray[np.int64] | None = None  # [S]

    @classmethod
    def none(cls) -> Batch:
        """No sequence."""
        return cls(np.zeros(0, np.int32), np.zeros(1, np.int64))

    def __len__(self) -> int:
        return len(self.start) - 1

    def after(self, done: int) -> Batch:
        """The sequences from the one at `done` on, to be run."""
        begin = self.start[done]
        skip = None if self.skip is None else self.skip[done:]
        return Batch(self.ids[begin:], self.start[done:] - begin, skip)

    def and_then(self, other: Batch) -> Batch:
        """These sequences and the other's, to be run."""
        if not len(self):
            return other
        skip = None
        if self.skip is not None or other.skip is not None:
            each = [np.zeros(len(b), np.int32) if b.skip is None else b.skip for b in (self, other)]
            skip = np.concatenate(each)
        start = np.append(self.start[:-1], other.start + self.start[-1])
        return Batch(np.concatenate([self.ids, other.ids]), start, skip)


Prepare = Callable[[Sequence[Any], int], Batch]  # items and the place of the first among all
Progress = Callable[[int, int], object]  # sequences and tokens that are done

SLICE = 8192  # items prepared at a time, while the core runs the slice before them,
LONG = 1 << 22  # or so many characters or ids: Ctrl-C waits for the slice that a thread prepares
FIRST = 512  # items of the first slice, which nothing runs beside: a GPU would wait for 8192
QUIET = 20_000  # tokens: what takes but a moment shows no bar
NO_PROMPT = Prompt()


def from_texts(
    tokenizer: Tokenizer,
    max_length: int | None = None,
    prompt: Prompt = NO_PROMPT,
    skip_first: bool = False,
    name: str = "texts",
) -> Prepare:
    """Texts to ids: each cut to max_length tokens, and read as often as the prompt has it.

    The prompt's `before` is not put there: a state stands for it. What comes before the last
    reading of a text is skipped; so is the first token where `skip_first` asks for it.
    """
    *between, after = (
        np.array(tokenizer.encode(piece) if piece else [], np.int32)
        for piece in (*prompt.between, prompt.after)
    )

    def prepare(texts: Sequence[Any], first: int) -> Batch:
        check_texts(texts, name, first)
        try:
            encoded = tokenizer.encode_many(texts)
        except ValueError:
            for i, text in enumerate(texts):
                _check_utf8(text, first + i)
            raise
        ids, start = _not_empty(*encoded, name, first)
        if max_length is None and not between and not len(after):
            return _skipping(Batch(ids, start), int(skip_first), name, first)
        lengths = np.diff(start)
        cut = [ids[a:b][:max_length] for a, b in pairwise(start)]
        earlier = [[part for piece in between for part in (text, piece)] for text in cut]
        joined = [
            np.concatenate([*read, text, after]) for read, text in zip(earlier, cut, strict=True)
        ]
        skip = np.array([sum(map(len, read)) for read in earlier], np.int32)
        return _skipping(Batch(*join(joined), skip, lengths), int(skip_first), name, first)

    return prepare


def from_ids(n_vocab: int, max_length: int | None = None, skip_first: bool = False) -> Prepare:
    """Lists of token ids below n_vocab, each cut to max_length."""

    def prepare(lists: Sequence[Any], first: int) -> Batch:
        pieces = []
        for i, ids in enumerate(lists):
            piece = _integers(ids)
            if piece is None:
                raise TypeError(f"ids[{first + i}]: expected a list of integers")
            pieces.append(piece if max_length is None else piece[:max_length])
        joined, start = join(pieces)
        if not _within(joined, n_vocab):  # at once: one by one, a GPU would wait
            i, piece = next((i, p) for i, p in enumerate(pieces) if not _within(p, n_vocab))
            bounds = f"{piece.min()} .. {piece.max()}"
            raise ValueError(f"ids[{first + i}] holds {bounds}: expected 0 .. {n_vocab - 1}")
        found = _not_empty(joined.astype(np.int32, copy=False), start, "ids", first)
        return _skipping(Batch(*found), int(skip_first), "ids", first)

    return prepare


def repeated(start: NDArray[np.int64], times: int) -> NDArray[np.int64]:
    """Where sequences begin if all of them come so many times, one round after the other."""
    rounds = np.arange(times)[:, None] * start[-1] + start[:-1]
    return np.append(rounds.ravel(), times * start[-1])


def ahead(items: Sequence[Any], prepare: Prepare) -> Iterator[tuple[int, Batch]]:
    """Slices of the items, prepared, each while the caller works on the one before."""
    bounds = list(pairwise(_cuts(items)))
    if len(bounds) == 1:
        yield 0, prepare(items, 0)
        return
    with ThreadPoolExecutor(1) as thread:

        def begin(first: int, end: int) -> Callable[[], Batch]:
            part = items[first:end]
            if length_hint(part[0]) > LONG:  # in this thread, which alone hears Ctrl-C meanwhile
                return partial(prepare, part, first)
            return thread.submit(prepare, part, first).result

        pending = begin(*bounds[0])
        for (first, _), later in zip(bounds, [*bounds[1:], None], strict=True):
            batch = pending()
            if later is not None:
                pending = begin(*later)
            yield first, batch


def _cuts(items: Sequence[Any]) -> list[int]:
    """Where slices begin, and the end of the last."""
    cuts, size = [0], 0
    for i, item in enumerate(items):
        length = length_hint(item)  # 0 of what has none: prepare refuses it
        most = min(FIRST, SLICE) if len(cuts) == 1 else SLICE
        if i - cuts[-1] == most or (size and size + length > LONG):
            cuts.append(i)
            size = 0
        size += length
    return [*cuts, len(items)]


class Run(Protocol):
    """Runs sequences into their rows [S, L, C], the first of which is the one at `first` of all.

    Returns how many it ran. Where `more` are to come it leaves those at the end that would not fill
    a pass, to be run with the next.
    """

    def __call__(
        self, read: Batch, rows: FloatArray, first: int, more: bool, progress: Progress
    ) -> int: ...


@dataclass(frozen=True)
class Reader:
    """What a model does with the texts of a call, or of a job whose texts come some at a time.

    shape : of a text's rows, (layers, C)
    """

    prepare: Prepare
    run: Run
    shape: tuple[int, int]

    def fill(self, items: Sequence[Any], rows: FloatArray, show: Show) -> None:
        """The rows of all items, [S, L, C]."""
        left, done = Batch.none(), 0
        with Bar(len(items), show) as bar:
            for first, read in ahead(items, self.prepare):
                more = first + len(read) < len(items)
                read = left.and_then(read)
                bar.expect(done, len(read.ids))
                count = self.run(read, rows[done : done + len(read)], done, more, bar.update)
                bar.update(count, int(read.start[count]))
                left, done = read.after(count), done + count


class Bar:
    """A call's progress; silent unless asked for, or where it takes long on a terminal.

    total : texts of the call
    show : True, False, or None to decide by the work and the terminal; or a function that is told
        the texts and tokens that are done instead of a bar
    """

    def __init__(self, total: int, show: Show) -> None:
        self._total, self._first, self._tokens = total, 0, 0
        self._before, self._done = 0, 0  # tokens, until this stretch and in it
        self._tell = show if callable(show) else None
        self._show = False if callable(show) else show
        self._bar: Any = None

    def expect(self, first: int, tokens: int) -> None:
        """The stretch that begins with text `first` comes next, and has so many tokens."""
        self._first, self._tokens = first, tokens
        self._before, self._done = self._before + self._done, 0
        if self._bar is None and (self._show or (self._show is None and tokens > QUIET)):
            self._bar = bar(total=self._total, unit=" texts", show=self._show)

    def update(self, done: int, tokens: int | None = None) -> None:
        """So many texts and tokens of it are done; all its tokens, where none are said."""
        self._done = self._tokens if tokens is None else tokens
        tokens = self._before + self._done
        if self._tell is not None:
            self._tell(self._first + done, tokens)
        if self._bar is not None:
            # In one long text nothing else would move.
            self._bar.set_postfix_str(f"{tokens} tokens", refresh=False)
            if not self._bar.update(self._first + done - self._bar.n):
                self._bar.refresh()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._bar is not None:
            self._bar.close()


def warn_of_rows(rows: NDArray[np.float32], first: int, layers: Sequence[Any]) -> None:
    """Warn, once a slice, of embeddings that hold NaN or infinity.

    rows : float32 [S, len(layers), C], of the texts from `first` on
    """
    # A sum is finite only if all of it is; the reverse fails near the end of float32's range.
    with np.errstate(over="ignore", invalid="ignore"):
        suspects = np.argwhere(~np.isfinite(rows.sum(axis=-1)))
    bad = [(text, layer) for text, layer in suspects if not np.isfinite(rows[text, layer]).all()]
    if bad:
        text, layer = bad[0]
        warnings.warn(
            f"{len({text for text, _ in bad})} of {len(rows)} embeddings hold NaN or infinity, the "
            f"first of texts[{first + text}], layer {layers[layer]!r}: the weights are damaged, or "
            "too large for this dtype",
            RuntimeWarning,
            stacklevel=_callers_level(),
        )


def _callers_level() -> int:
    """How many frames above the function that asks the first lies that is not of this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(f"{__package__}."):
        frame, level = frame.f_back, level + 1
    return level


def _check_utf8(text: str, place: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = text[max(error.start - 20, 0) : error.end]
        raise ValueError(
            f"texts[{place}] holds half a surrogate pair at character {error.start}, {shown!r}: it "
            "is no text; read its file as UTF-8, with errors='replace' if it must be"
        ) from None


def _integers(ids: Any) -> NDArray[Any] | None:
    """One list of integers as an array; None for anything else."""
    try:
        piece = np.asarray(ids)
    except ValueError:  # a list in the list
        return None
    fits = piece.ndim == 1 and (piece.dtype.kind in "iu" or not piece.size)
    return piece if fits else None


def _within(ids: NDArray[Any], n_vocab: int) -> bool:
    return not ids.size or (ids.min() >= 0 and ids.max() < n_vocab)


def join(pieces: list[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Id lists as one array [T], and where each begins [S+1]."""
    start = np.zeros(len(pieces) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)), out=start[1:])
    return np.concatenate(pieces) if pieces else np.empty(0, np.int32), start


def _not_empty(
    ids: NDArray[np.int32], start: NDArray[np.int64], name: str, first: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    empty = np.flatnonzero(np.diff(start) == 0)
    if len(empty):
        where = f"{name}[{first + empty[0]}]"
        raise ValueError(f"{where} is empty: it has no token to pool. Leave it out.")
    return ids, start


def _skipping(batch: Batch, least: int, name: str, first: int) -> Batch:
    """The batch with at least so many first tokens of each sequence not pooled."""
    if not least and batch.skip is None:
        return batch
    lengths = np.diff(batch.start)
    skip = np.zeros(len(lengths), np.int32) if batch.skip is None else batch.skip
    skip = np.maximum(skip, least).astype(np.int32)
    check_left(skip, lengths, name, first)
    return replace(batch, skip=skip if skip.any() else None)


def check_left(skip: NDArray[Any], lengths: NDArray[Any], name: str, first: int) -> None:
    """ValueError for a sequence of which nothing is left to pool."""
    if (skip >= lengths).any():
        where = f"{name}[{first + int(np.argmax(skip >= lengths))}]"
        raise ValueError(
            f"{where} has one token: without its first none is left to pool. Leave it out, or pool "
            "with skip_first=False"
        )
