"""A pass: one reading of one set of pairs by one model, every layer at once; and its keeping.

Assumes an embedder whose vector of a text depends on that text alone. Promises that a finished
pass lies whole on disk and is not computed again, whatever ended the process, while model, texts
and settings are the same. A model is recognised by what it makes of a probe, not by its name: a
replaced file or another device is another model.
"""

from __future__ import annotations

import json
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import Pairs
from ..embedder import Layer
from ..files.writing import remove_left, replacing
from ..progress import bar
from . import cost, postprocess, statistics
from .methods import digest
from .settings import JOINING, LEARNING, STATE, Reading, StudyConfig, endings

FORMAT = 2  # of a kept pass; a new one computes anew
PROBE = ("A probe, by which a model is known again.", "Another 1, with numbers: 23 and 456.")
CHUNK_BYTES = 1 << 28  # of embeddings at a time: a study's memory does not grow with its pairs
POSITIONS = (1, 2, 3, 4, 6, 8, 12, 16)
WARM_UP = 32  # texts before a batch is timed

POSTS: dict[str, Callable[[], postprocess.PostProcess]] = {
    "standardise": postprocess.Standardise,
    "abtt": postprocess.AllButTheTop,
    "whitening": postprocess.Whitening,
    "average": postprocess.AverageLayers,
    "concatenate": postprocess.ConcatenateLayers,
}

Arrays = dict[str, NDArray[Any]]
Step = Callable[[NDArray[np.float32]], NDArray[Any]]  # rows [n, layers, C] to [n, D]
Encode = Callable[[Sequence[str], Any], NDArray[np.float32]]  # texts, layers: [S, L, C] or [S, C]


@dataclass(frozen=True)
class Pass:
    """What a reading gave: the scores of each of its `cells`, float64 [cells, n], and what it took.

    seconds : float64 [cells, 2], median and mean of one call a pair; NaN where not timed
    batch_seconds, peak_bytes : of the whole set in one batch; the model's own peak
    """

    scores: NDArray[np.float64]
    seconds: NDArray[np.float64]
    batch_seconds: float
    peak_bytes: int


def cells(reading: Reading, layers: list[Layer]) -> list[tuple[str, Layer | str]]:
    """What a reading gives, each a row of the table: post-processing, and the layer or layers."""
    found: list[tuple[str, Layer | str]] = []
    for post in reading.posts:
        found += [(post, _joined(layers))] if post in JOINING else [(post, x) for x in layers]
    return found


def _joined(layers: list[Layer]) -> str:
    """Layers as one name: "0-11" for neighbours, else "1+3+final"."""
    numbers = [layer for layer in layers if isinstance(layer, int)]
    blocks = numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else False
    if blocks and len(layers) > 2 and layers in (numbers, [*numbers, "final"]):
        return f"{layers[0]}-{layers[-1]}"
    return "+".join(map(str, layers))


def encoder(model: Any, reading: Reading, config: StudyConfig) -> Encode:
    """The model's way to vectors with all that the reading fixes."""
    how: dict[str, Any] = {
        "max_length": config.max_length,
        "batch_tokens": config.batch_tokens,
        "show_progress": False,
    }
    if reading.lead:
        how["state"] = model.state([0])
    if branches := endings(reading.prompt):
        return partial(_branched, model, *branches, {**how, "pooling": reading.pooling})
    if reading.prompt is not None:
        how["prompt"] = reading.prompt
    if reading.pooling == STATE:
        return lambda texts, layers: model.encode_states(texts, layers=layers, **how)
    how["pooling"] = reading.pooling
    if reading.skip_first:
        how["skip_first"] = True
    return lambda texts, layers: model.encode(texts, layers=layers, **how)


def _branched(
    model: Any,
    template: str,
    signed: list[tuple[int, str]],
    how: dict[str, Any],
    texts: Sequence[str],
    layers: Any,
) -> NDArray[np.float32]:
    """The mean over endings of their vectors, each with its sign; as `Encode` has it.

    An RWKV reads each text once, for its own state; another model reads it anew for each ending.
    """
    if not hasattr(model, "branch"):
        each = (
            sign * model.encode(texts, layers=layers, prompt=template + end, **how)
            for sign, end in signed
        )
        return np.asarray(sum(each) / np.float32(len(signed)))
    ends = [end for _, end in signed]
    columns = len(layers) if isinstance(layers, list) else 1
    at_once = max(1, CHUNK_BYTES // (4 * len(ends) * columns * model.width))
    parts = []
    for first in range(0, len(texts), at_once):
        part = texts[first : first + at_once]
        found = model.branch(part, ends, layers=layers, prompt=template, **how)  # [S, endings, ...]
        # An ending after the other, so that a text's sum has one order in every batch.
        total = sum(sign * found[:, k] for k, (sign, _) in enumerate(signed))
        parts.append(total / np.float32(len(signed)))
    return np.concatenate(parts)


def run(
    model: Any,
    reading: Reading,
    layers: list[Layer],
    pairs: Pairs,
    config: StudyConfig,
    fit_on: list[str],
) -> Pass:
    """Score the pairs by every cell of the reading; time each layer alone, and layers joined.

    fit_on : train sentences that post-processing learns from
    """
    encode = encoder(model, reading, config)
    encode((pairs.sentence1 + pairs.sentence2)[:WARM_UP], layers)
    steps = _steps(model, reading, encode, layers, fit_on)
    seconds = _time(encode, reading, layers, steps, pairs, config.timed_pairs)
    scores = np.empty((len(steps), len(pairs)))
    at_once = max(1, CHUNK_BYTES // (8 * len(layers) * model.width))
    spent = 0.0
    progress = bar(total=len(pairs), desc=f"{pairs.name} {pairs.split}", unit=" pairs", leave=False)
    with progress:
        for first in range(0, len(pairs), at_once):
            part = slice(first, first + at_once)
            one, other = pairs.sentence1[part], pairs.sentence2[part]
            texts = list(dict.fromkeys(one + other))  # each text once: SICK repeats most of its own
            start = time.perf_counter()
            embedded = encode(texts, layers)  # [texts, layers, C]
            spent += time.perf_counter() - start
            row = {text: i for i, text in enumerate(texts)}
            left, right = ([row[text] for text in side] for side in (one, other))
            for score, step in zip(scores, steps, strict=True):
                rows = step(embedded)
                score[part] = statistics.cosine(rows[left], rows[right])
            progress.update(len(one))
    return Pass(scores, seconds, spent, int(model.memory()["peak"]))


def _steps(
    model: Any, reading: Reading, encode: Encode, layers: list[Layer], fit_on: list[str]
) -> list[Step]:
    """For each cell what makes its rows of a reading's."""
    learns = any(post in LEARNING for post in reading.posts)
    train = encode(fit_on, layers) if learns else None  # [sentences, layers, C]
    steps: list[Step] = []
    for post in reading.posts:
        if post in JOINING:
            steps.append(POSTS[post]().transform)
            continue
        every = postprocess.EmbedFilter(model.head()).transform if post == "filter" else None
        for i in range(len(layers)):
            change = every
            if post in LEARNING and train is not None:
                change = POSTS[post]().fit(train[:, i]).transform
            steps.append(partial(_of_layer, i, change))
    return steps


def _of_layer(i: int, change: Step | None, rows: NDArray[np.float32]) -> NDArray[Any]:
    return rows[:, i] if change is None else change(rows[:, i])


def _time(
    encode: Encode,
    reading: Reading,
    layers: list[Layer],
    steps: list[Step],
    pairs: Pairs,
    count: int,
) -> NDArray[np.float64]:
    """Seconds of a pair, median and mean, for each cell: the time of its layer, or of all."""
    listed = cells(reading, layers)
    if count == 0:
        return np.full((len(listed), 2), np.nan)
    # A layer's time is that of its stream: post-processing hardly adds to it.
    ways: dict[Layer | str, Callable[[list[str]], Any]] = {}
    for (post, layer), step in zip(listed, steps, strict=True):
        if post in JOINING:
            ways.setdefault(post, partial(_joining, encode, layers, step))
        else:
            ways.setdefault(layer, partial(_one_layer, encode, layer))
    times = {
        name: cost.time_pairs(way, pairs.sentence1, pairs.sentence2, pairs=count)
        for name, way in bar(ways.items(), desc="timing layers", leave=False)
    }
    each = (times[post if post in JOINING else layer] for post, layer in listed)
    return np.array([(t.median, t.mean) for t in each])


def _joining(encode: Encode, layers: list[Layer], step: Step, texts: list[str]) -> NDArray[Any]:
    return step(encode(texts, layers))


def _one_layer(encode: Encode, layer: Layer | str, texts: list[str]) -> NDArray[Any]:
    return encode(texts, layer)


def norms(model: Any, layers: list[Layer], texts: list[str]) -> NDArray[np.float64]:
    """Mean length of the stream at each of `POSITIONS`: float64 [positions, layers].

    Positions count from 1, as the model reads a text: a token that its tokenizer puts before each
    text is the first. NaN where no text is so long.
    """
    lengths = model.norms(texts, layers, max(POSITIONS)).astype(np.float64)
    there = ~np.isnan(lengths)
    total = np.where(there, lengths, 0).sum(axis=0)
    count = there.sum(axis=0)
    mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return np.asarray(mean[:, np.array(POSITIONS) - 1].T)


class Keep:
    """Finished work in a folder, each piece a file under the digest of all that it depends on.

    folder : None keeps nothing
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.failure: OSError | None = None  # the first time that something could not be kept
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            remove_left(folder)  # of a process that was killed

    def run(
        self,
        model: Any,
        reading: Reading,
        layers: list[Layer],
        pairs: Pairs,
        config: StudyConfig,
        fit_on: list[str],
    ) -> Pass:
        """The kept pass, or a new one, kept from now on."""
        if self._folder is None:
            return run(model, reading, layers, pairs, config, fit_on)
        depends = {
            **_fixed(model, layers, encoder(model, reading, config)),
            "reading": vars(reading),
            "max_length": config.max_length,
            "timed_pairs": config.timed_pairs,
            "texts": digest(*pairs.sentence1, *pairs.sentence2),
            "fit_on": digest(*fit_on),
        }
        arrays = self._recall(
            depends, lambda: _arrays(run(model, reading, layers, pairs, config, fit_on))
        )
        seconds, peak = arrays["batch_seconds"].item(), arrays["peak_bytes"].item()
        return Pass(arrays["scores"], arrays["seconds"], seconds, peak)

    def norms(self, model: Any, layers: list[Layer], texts: list[str]) -> NDArray[np.float64]:
        """Kept or new `norms` of the model for these texts."""
        depends = {
            **_fixed(model, layers, lambda texts, layers: model.encode(texts, layers=layers)),
            "positions": POSITIONS,
            "texts": digest(*texts),
        }
        return self._recall(depends, lambda: {"norms": norms(model, layers, texts)})["norms"]

    def _recall(self, depends: dict[str, Any], compute: Callable[[], Arrays]) -> Arrays:
        if self._folder is None:
            return compute()
        path = self._folder / f"{digest(json.dumps(depends, sort_keys=True))}.npz"
        found = _read(path)
        if found is None:
            found = compute()
            try:
                with replacing(path) as part, part.open("wb") as file:
                    np.savez(file, **found)  # type: ignore[arg-type]
            except OSError as error:  # a full disk must not end the study
                self.failure = self.failure or error
        return found


def _fixed(model: Any, layers: list[Layer], encode: Encode) -> dict[str, Any]:
    """What everything that a model computes depends on, the model itself by its probe."""
    return {
        "format": FORMAT,
        "layers": layers,
        "device": [model.device, model.dtype],
        "probe": np.ascontiguousarray(encode(list(PROBE), layers)).tobytes().hex(),
    }


def _arrays(found: Pass) -> Arrays:
    return {name: np.asarray(value) for name, value in vars(found).items()}


def _read(path: Path) -> Arrays | None:
    """Kept arrays; None where there are none, or none that are whole."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
