"""A pass: one reading of one set of pairs by one model, every layer at once; and its keeping.

Assumes an embedder whose vector of a text depends on that text alone. Promises that a finished
pass lies whole on disk and is not computed again, whatever ended the process, while model, texts
and settings are the same. A model is recognised by what it makes of a probe, not by its name: a
replaced file or another device is another model.
"""

from __future__ import annotations

import json
import os
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import Pairs
from ..model import Layer
from ..progress import bar
from . import cost, postprocess, statistics
from .methods import digest
from .settings import Reading, StudyConfig

FORMAT = 1  # of a kept pass; a new one computes anew
PROBE = ("A probe, by which a model is known again.", "Another 1, with numbers: 23 and 456.")
CHUNK_BYTES = 1 << 28  # of embeddings at a time: a study's memory does not grow with its pairs
POSITIONS = (1, 2, 3, 4, 6, 8, 12, 16)
WARM_UP = 32  # texts before a batch is timed

Arrays = dict[str, NDArray[Any]]
Step = Callable[[NDArray[np.float32]], NDArray[Any]]
Encode = Callable[[Sequence[str], Any], NDArray[np.float32]]  # texts, layers: [S, L, C] or [S, C]


@dataclass(frozen=True)
class Pass:
    """What a reading gave: scores float64 [posts, layers, n], and what it took.

    seconds : float64 [layers, 2], median and mean of one call a pair; NaN where not timed
    batch_seconds, peak_bytes : of the whole set in one batch; the model's own peak
    """

    scores: NDArray[np.float64]
    seconds: NDArray[np.float64]
    batch_seconds: float
    peak_bytes: int


def encoder(model: Any, reading: Reading, config: StudyConfig) -> Encode:
    """The model's `encode` with all that the reading fixes."""
    how: dict[str, Any] = {
        "pooling": reading.pooling,
        "max_length": config.max_length,
        "batch_tokens": config.batch_tokens,
        "show_progress": False,
    }
    if reading.prompt is not None:
        how["prompt"] = reading.prompt
    if reading.skip_first:
        how["skip_first"] = True
    if reading.lead:
        how["state"] = model.state([0])
    return lambda texts, layers: model.encode(texts, layers=layers, **how)


def run(
    model: Any,
    reading: Reading,
    layers: list[Layer],
    pairs: Pairs,
    config: StudyConfig,
    fit_on: list[str],
) -> Pass:
    """Score the pairs at every layer, as they are and post-processed; time each layer alone.

    fit_on : train sentences that post-processing learns from
    """
    encode = encoder(model, reading, config)
    encode((pairs.sentence1 + pairs.sentence2)[:WARM_UP], layers)
    seconds = _time_layers(encode, layers, pairs, config.timed_pairs)
    steps = _fitted(model, reading.posts, encode, layers, fit_on)
    scores = np.empty((len(reading.posts), len(layers), len(pairs)))
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
            for p, i in np.ndindex(scores.shape[:2]):
                rows = steps[p][i](embedded[:, i])
                scores[p, i, part] = statistics.cosine(rows[left], rows[right])
            progress.update(len(one))
    return Pass(scores, seconds, spent, int(model.memory()["peak"]))


def _fitted(
    model: Any, posts: tuple[str, ...], encode: Encode, layers: list[Layer], fit_on: list[str]
) -> list[list[Step]]:
    """For each post-processing and layer what it does to rows [n, C]."""
    if posts == ("none",):
        return [[_as_it_is] * len(layers)]
    kinds: dict[str, Callable[[], Any]] = {
        "standardise": postprocess.Standardise,
        "abtt": postprocess.AllButTheTop,
        "whitening": postprocess.Whitening,
        "filter": lambda: postprocess.EmbedFilter(model.head()),
    }
    learns = any(post not in ("none", "filter") for post in posts)
    train = encode(fit_on, layers) if learns else None  # [sentences, layers, C]
    steps: list[list[Step]] = []
    for post in posts:
        if post == "none":
            steps.append([_as_it_is] * len(layers))
        elif post == "filter" or train is None:
            steps.append([kinds[post]().transform] * len(layers))
        else:
            fitted = (kinds[post]().fit(train[:, i]) for i in range(len(layers)))
            steps.append([step.transform for step in fitted])
    return steps


def _as_it_is(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows


def _time_layers(
    encode: Encode, layers: list[Layer], pairs: Pairs, count: int
) -> NDArray[np.float64]:
    if count == 0:
        return np.full((len(layers), 2), np.nan)
    times = [
        cost.time_pairs(
            lambda texts, layer=layer: encode(texts, layer),  # type: ignore[misc]
            pairs.sentence1,
            pairs.sentence2,
            pairs=count,
        )
        for layer in bar(layers, desc="timing layers", leave=False)
    ]
    return np.array([(t.median, t.mean) for t in times])


def norms(
    model: Any, reading: Reading, layers: list[Layer], texts: list[str], config: StudyConfig
) -> NDArray[np.float64]:
    """Mean length of the stream at each of `POSITIONS`: float64 [positions, layers].

    Positions count from 1. The last token of a text that is cut to n tokens is the text's n-th.
    """
    plain = replace(reading, pooling="last", skip_first=False, prompt=None)
    rows = []
    for position in POSITIONS:
        encode = encoder(model, plain, replace(config, max_length=position))
        rows.append(np.linalg.norm(encode(texts, layers), axis=-1).mean(axis=0, dtype=np.float64))
    return np.array(rows)


class Keep:
    """Finished work in a folder, each piece a file under the digest of all that it depends on.

    folder : None keeps nothing
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.failure: OSError | None = None  # the first time that something could not be kept
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(".*.part"):  # of a process that was killed
                left.unlink(missing_ok=True)

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
            **_fixed(model, reading, layers, config),
            "timed_pairs": config.timed_pairs,
            "texts": digest(*pairs.sentence1, *pairs.sentence2),
            "fit_on": digest(*fit_on) if reading.posts != ("none",) else "",
        }
        arrays = self._recall(
            depends, lambda: _arrays(run(model, reading, layers, pairs, config, fit_on))
        )
        seconds, peak = arrays["batch_seconds"].item(), arrays["peak_bytes"].item()
        return Pass(arrays["scores"], arrays["seconds"], seconds, peak)

    def norms(
        self,
        model: Any,
        reading: Reading,
        layers: list[Layer],
        texts: list[str],
        config: StudyConfig,
    ) -> NDArray[np.float64]:
        """Kept or new `norms` of the model for these texts."""
        depends = {
            **_fixed(model, reading, layers, config),
            "positions": POSITIONS,
            "texts": digest(*texts),
        }
        return self._recall(
            depends, lambda: {"norms": norms(model, reading, layers, texts, config)}
        )["norms"]

    def _recall(self, depends: dict[str, Any], compute: Callable[[], Arrays]) -> Arrays:
        if self._folder is None:
            return compute()
        path = self._folder / f"{digest(json.dumps(depends, sort_keys=True))}.npz"
        found = _read(path)
        if found is None:
            found = compute()
            try:
                _write(path, found)
            except OSError as error:  # a full disk must not end the study
                self.failure = self.failure or error
        return found


def _fixed(
    model: Any, reading: Reading, layers: list[Layer], config: StudyConfig
) -> dict[str, Any]:
    """What everything that a model computes depends on, the model itself by its probe."""
    probe = encoder(model, reading, config)(list(PROBE), layers)
    return {
        "format": FORMAT,
        "reading": vars(reading),
        "layers": layers,
        "max_length": config.max_length,
        "device": [model.device, model.dtype],
        "probe": np.ascontiguousarray(probe).tobytes().hex(),
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


def _write(path: Path, arrays: Arrays) -> None:
    """Put the arrays under their name at once, and onto the disk before that."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
