"""EmbeddingRWKV: RWKV-7 models that were trained to embed sentences (arXiv 2601.07861).

Such a model reads a text and an end-of-sentence token, 65535. What stands there after the last
norm is the sentence, and one of three small heads turns it into the embedding. Assumes the
checkpoints of the hub repository howard-hou/EmbeddingRWKV. Promises, as for every model here, that
an embedding depends on its text alone: in the models' own code padding runs through the state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core, batch
from .embedder import FloatArray, Layer, Layers, Request, as_list
from .errors import CheckpointError
from .model import RWKV7
from .opening import Opened, Options
from .progress import Show
from .states import State

EOS = 65535
# Heads for retrieval, similarity, classification; the default first.
TASKS: tuple[Layer, ...] = ("retr", "sts", "cls")
LN_EPS = 1e-5

RECIPES = ("once", "evaluation")
CONTEXT, CHUNK = 2048, 512  # of the evaluation recipe, in tokens
READINGS = CONTEXT // CHUNK  # ends of sentence that it puts into a context
LONGEST = 8 * CONTEXT


@dataclass(frozen=True)
class Head:
    """LayerNorm(fc2 relu(fc1 x) + x), what makes a sentence's row an embedding.

    fc1, fc2 : float32 [C, C], y = x W^T
    weight, bias : float32 [C], of the norm
    """

    fc1: FloatArray
    fc2: FloatArray
    weight: FloatArray
    bias: FloatArray

    def apply(self, x: FloatArray) -> FloatArray:
        """Rows [S, C] to embeddings [S, C], a row at a time: no row's bits depend on the others."""
        return _core.in_default_floats(lambda: self._apply(x))

    def _apply(self, x: FloatArray) -> FloatArray:
        hidden = np.maximum(np.matmul(x[:, None], self.fc1.T), 0)
        y = np.matmul(hidden, self.fc2.T)[:, 0].astype(np.float64) + x
        y -= y.mean(-1, keepdims=True)
        y /= np.sqrt(np.square(y).mean(-1, keepdims=True) + LN_EPS)
        result: FloatArray = (y * self.weight + self.bias).astype(np.float32)
        return result


class EmbeddingRWKV(RWKV7):
    """A trained sentence embedder; make one with `rwkvsts.load`.

    Its layers are those of an RWKV-7 model, and three more: "retr", "sts" and "cls", the heads,
    which stand on "final". Every layer is taken where a sentence ends, not over the whole text, so
    that `skip_first` and `branch` are refused, and `encode_ids` takes ids that hold the ends of
    sentence, 65535, at least one a list.

    Examples
    --------
    >>> import rwkvsts
    >>> m = rwkvsts.load("howard-hou/EmbeddingRWKV",
    ...     file="rwkv0b1-emb-curriculum.pth")  # doctest: +SKIP
    >>> m.encode(["A man plays a guitar.", "Someone makes music."]).shape  # doctest: +SKIP
    (2, 768)
    """

    architecture = "EmbeddingRWKV"
    poolings = ("mean",)

    def __init__(self, opened: Opened, options: Options | None = None) -> None:
        super().__init__(opened, options)
        self._heads = _heads(opened.heads, self.config.n_embd, self.source)
        if self.config.n_vocab <= EOS:
            raise CheckpointError(
                f"{self.source}: emb.weight has {self.config.n_vocab} rows: expected more than "
                f"{EOS}, the id that ends a sentence"
            )

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Every layer that can be asked for; the heads where all blocks are loaded."""
        streams = super().layers
        return (*streams, *TASKS) if "final" in streams else streams

    @property
    def default_layer(self) -> Layer:
        """The head for retrieval, as the models' own code has it."""
        return TASKS[0]

    def encode(
        self,
        texts: str | Iterable[str],
        layers: Layers | None = None,
        pooling: str | None = None,
        prompt: str | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        normalize: bool = False,
        show_progress: Show = None,
        out: FloatArray | None = None,
        *,
        state: State | None = None,
        skip_first: bool = False,
        recipe: str = "once",
    ) -> FloatArray:
        """Embed texts with a head.

        Parameters
        ----------
        texts : one text or many; none may be empty
        layers : default "retr"; "sts" or "cls" for the other heads; also the layers of the model
        pooling : "mean", of the ends of sentence: `recipe` says how many there are
        prompt : put before each text, or around it where it holds "{text}", and read as one text
            with it. The models' evaluation writes "Instruct: Retrieve semantically similar
            text\\nQuery: " before texts for "sts", and before queries but not documents
        max_length : tokens after which prompt and text are cut
        batch_tokens, normalize, show_progress, out, state : as for every model
        skip_first : refused, because ends of sentence alone are pooled
        recipe : "once", as the models' README has it: the text, then one end of sentence.
            "evaluation", as their evaluation has it: a text below 512 tokens four times, a longer
            one in four parts for each 2048 tokens, an end of sentence after each; 2.5 times the
            work of reading it so, as the text is read anew up to each end

        Returns
        -------
        float32 [S, C]; with a list of layers [S, len(layers), C]; without the first axis for one
        str. Not of length 1 unless normalize says so

        Raises
        ------
        ValueError : an argument is wrong, or a text is empty
        MemoryError : the device has too little memory: fewer batch_tokens need less
        """
        if recipe not in RECIPES:
            raise ValueError(f"recipe={recipe!r}: expected one of {', '.join(RECIPES)}")
        request = Request.of(
            self, layers, pooling, prompt, max_length, batch_tokens, normalize, show_progress, out
        )
        request = replace(request, skip_first=skip_first, state=state)
        return self._encode(*as_list(texts), self._prepare(request, recipe), request)

    def reader(
        self,
        layers: Layers | None = None,
        pooling: str | None = None,
        prompt: str | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        normalize: bool = False,
    ) -> batch.Reader:
        """As of every model; texts are read once."""
        request = Request.of(self, layers, pooling, prompt, max_length, batch_tokens, normalize)
        return self._reader(self._prepare(request, "once"), request)

    def _prepare(self, request: Request, recipe: str) -> batch.Prepare:
        tokenize = batch.from_texts(self._need_tokenizer(), request.max_length)
        ended = _ended if recipe == "once" else _read_for_evaluation

        def prepare(items: Sequence[Any], first: int) -> batch.Batch:
            whole = [  # what is no text, or empty, is left to tokenize to name
                request.prompt.around(text) if text and isinstance(text, str) else text
                for text in items
            ]
            return ended(tokenize(whole, first))

        return prepare

    def branch(self, *texts: Any, **options: Any) -> FloatArray:
        """Refused: a branch has no end of sentence."""
        raise ValueError("branch: this model pools the ends of sentence, which a branch has not")

    def _encode(
        self, items: list[Any], axes: tuple[int, ...], prepare: batch.Prepare, request: Request
    ) -> FloatArray:
        if request.skip_first:
            raise ValueError(
                "skip_first: this model pools the ends of sentence, and no first token"
            )
        return super()._encode(items, axes, prepare, request)

    def _fill(
        self,
        read: batch.Batch,
        first: int,
        request: Request,
        rows: FloatArray,
        progress: batch.Progress,
        more: bool,
    ) -> tuple[int, bool]:
        """The heads, each of the mean over the ends of sentence of each text.

        The row at an end is the last row of the text up to there: those texts are what is run.
        """
        ends = np.flatnonzero(read.ids == EOS)
        text = np.searchsorted(read.start, ends, "right") - 1  # of each end
        counts = np.bincount(text, minlength=len(rows))
        if not counts.all():
            place = first + int(np.flatnonzero(counts == 0)[0])
            raise ValueError(f"ids[{place}] holds no {EOS}: expected it where a sentence ends")
        pieces = [read.ids[read.start[s] : end + 1] for s, end in zip(text, ends, strict=True)]
        packed, begins = batch.join(pieces)
        names = [self.layers[column] for column in request.columns]
        final = len(super().layers) - 1
        columns = tuple(min(column, final) for column in request.columns)
        one = len(pieces) == len(rows)
        streams = rows if one else np.empty((len(pieces), *rows.shape[1:]), np.float32)

        def update(done: int, tokens: int) -> None:
            progress(int(text[done - 1]) if done else 0, tokens * len(read.ids) // len(packed))

        request = replace(request, columns=columns, pooling="last")
        run, _ = self._run(batch.Batch(packed, begins), request, streams, update, more=more)
        done = int(text[run]) if run < len(text) else len(rows)  # texts of which no end is left
        rows, counts = rows[:done], counts[:done]
        if done and not one:
            _core.in_default_floats(lambda: _mean(streams[: counts.sum()], counts, rows))
        for column, name in enumerate(names):
            if name in self._heads:
                rows[:, column] = self._heads[name].apply(rows[:, column].copy())
        return done, False  # a head may overflow where its stream is finite


def _mean(rows: FloatArray, counts: NDArray[Any], out: FloatArray) -> None:
    """The means [S, ...] of so many rows each, one after the other."""
    np.add.reduceat(rows, np.cumsum(counts) - counts, axis=0, out=out)
    out /= counts[:, None, None].astype(np.float32)


def _heads(tensors: Mapping[str, FloatArray], C: int, source: str) -> dict[Layer, Head]:
    """The heads of a checkpoint, by task."""
    leaves = {"fc1.weight": (C, C), "fc2.weight": (C, C), "norm.weight": (C,), "norm.bias": (C,)}
    heads: dict[Layer, Head] = {}
    for task in TASKS:
        parts = []
        for leaf, shape in leaves.items():
            name = f"head.{task}_head.{leaf}"
            found = tensors.get(name)
            if found is None or found.shape != shape:
                what = "none" if found is None else f"shape {list(found.shape)}"
                raise CheckpointError(
                    f"{source}: {name}: expected shape {list(shape)}, found {what}"
                )
            parts.append(found)
        heads[task] = Head(*parts)
    return heads


def _ended(read: batch.Batch) -> batch.Batch:
    """An end of sentence after each text."""
    ended = np.insert(read.ids, read.start[1:], EOS).astype(np.int32)
    lengths = np.diff(read.start) if read.lengths is None else read.lengths
    return batch.Batch(ended, read.start + np.arange(len(read.start)), lengths=lengths)


def _read_for_evaluation(read: batch.Batch) -> batch.Batch:
    texts = [read.ids[a:b] for a, b in pairwise(read.start)]
    return batch.Batch(*batch.join([_readings(ids[:LONGEST]) for ids in texts]))


def _readings(ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """A text as the evaluation of EmbeddingRWKV has it read, ends of sentence put in."""
    if len(ids) < CHUNK:
        parts = [ids] * READINGS
    else:
        whole = len(ids) <= CONTEXT - READINGS
        splits = 1 if whole else -(-len(ids) // CONTEXT)
        parts = [chunk for split in _cut(ids, splits) for chunk in _cut(split, READINGS)]
    return np.concatenate([np.append(part, np.int32(EOS)) for part in parts])


def _cut(ids: NDArray[np.int32], count: int) -> list[NDArray[np.int32]]:
    """`count` parts of one length, the last ones shorter."""
    size = -(-len(ids) // count)
    return [ids[i * size : (i + 1) * size] for i in range(count)]
