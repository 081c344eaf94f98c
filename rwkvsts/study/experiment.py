"""Running a study: models x readings x tasks, the controls beside them, one table.

Assumes nothing about a model but what `passes` asks of it. Promises that data, word vectors and
the first model are read and checked before anything is computed; that the controls (word overlap,
averaged GloVe) stand in every table; and that the facts needed to repeat the run go with it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..data import datasets, load_file
from ..data.pairs import Pairs, shown
from ..embedder import Layer
from ..errors import DataError
from . import baselines, cost, machine, models, notes, published, statistics, table
from .cost import MIB
from .methods import Cost, Method, PairSet, Published, Scored
from .passes import POSITIONS, Keep, cells
from .settings import LEARNING, STATE, Reading, StudyConfig, readings
from .table import OVERLAP, Row
from .words import Words

if TYPE_CHECKING:
    import pandas

DEMO_VECTORS = "glove.demo.50d.txt.gz"

FIT_SENTENCES = 4096  # that post-processing learns from; whitening needs more than the width
NORM_PASSAGES = 32  # of up to four sentences
CASE = {"sif": "SIF", "usif": "uSIF"}  # as their authors write them

DEFAULT_SPLITS = {
    "mrpc": ("train[:1000]", "validation"),
    "stsb": ("validation", "test"),
    "sick": ("validation", "test"),
    "sick-2014": ("validation", "test"),
}


@dataclass(frozen=True)
class Study:
    """The table, the scores that it is made of, and where and with what it was run.

    rows, scored : the same methods in the same order
    runs : of each run its "config" and "facts"; one, unless runs were merged
    norms : of each model its name, layers, positions and the mean length of the stream there
    failures : what went wrong without ending the study
    """

    rows: list[Row]
    scored: list[Scored]
    runs: list[dict[str, Any]]
    resamples: int
    seed: int
    notes: list[str] = field(default_factory=list)
    norms: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def facts(self) -> dict[str, Any]:
        """Machine, versions, data and models of the last run."""
        facts: dict[str, Any] = self.runs[-1]["facts"]
        return facts

    def frame(self) -> pandas.DataFrame:
        """The table as a pandas frame, a column per field of `Row`."""
        import pandas

        return pandas.DataFrame([asdict(row) for row in self.rows])


def run(config: StudyConfig, keep: str | Path | None = None) -> Study:
    """Run the study: every model's readings over all tasks and splits, and the controls.

    `keep` is a folder for finished passes: what lies there of an earlier run is not computed
    again. Raises what `datasets.load`, `baselines.load_vectors` and the models raise.
    """
    pairs = load_pairs(config)
    sets = [PairSet.of(split) for split in pairs]
    fit_on = train_sentences(config, pairs)
    texts = [text for split in pairs for text in split.sentence1 + split.sentence2]
    if config.baselines:
        texts += [text for train in fit_on.values() for text in train]
    vectors = baselines.load_vectors(config.glove or datasets.asset(DEMO_VECTORS), texts)
    fitted = {
        name: [Words(vectors, kind).fit(fit_on[name]) for kind in config.baselines]
        for name in dict.fromkeys(split.name for split in pairs)
    }
    facts = machine.machine_facts()
    facts["data"] = {s.key: s.source for s in sets}
    facts["word_vectors"] = _vector_facts(vectors)
    facts["models"] = []
    kept = Keep(None if keep is None else Path(keep))
    of_models: list[Scored] = []
    norms: list[dict[str, Any]] = []
    sources = tuple(map(str, config.models))
    for source, name in zip(sources, model_names(sources), strict=True):
        for group in _by_tokenizer(models.readings_of(config, source)):
            model = models.open_model(config, source, group)
            for reading in group:
                for split, its_set in zip(pairs, sets, strict=True):
                    train = fit_on[split.name]
                    of_models += _score(kept, model, name, reading, split, its_set, train, config)
            if config.norms and "last" in model.poolings:  # else its stream is not to be had
                norms.append(_norms(kept, model, name, group[0], pairs[0]))
            facts["models"].append(_model_facts(model, name, group[0].tokenizer))
            # Two models at once would double the memory, on the device as well.
            del model
            gc.collect()
    facts["host_peak_mib"] = _mib(cost.host_peak_bytes())
    scored: list[Scored] = []
    for split, its_set in zip(pairs, sets, strict=True):
        scored += _controls(split, its_set, vectors, fitted[split.name])
        scored += [s for s in of_models if s.pairs is its_set]
    record = {"config": settings_record(config), "facts": facts}
    study = assemble(scored, [record], config.resamples, config.seed, norms)
    if kept.failure is not None:
        study.failures.append(f"finished passes were not kept: {kept.failure}")
    return study


def assemble(
    scored: list[Scored],
    runs: list[dict[str, Any]],
    resamples: int,
    seed: int,
    norms: list[dict[str, Any]],
) -> Study:
    """The table of these scores, from one run or several."""
    rows = table.build(scored, resamples, seed)
    return Study(rows, scored, runs, resamples, seed, notes.of(rows, runs, resamples, seed), norms)


def load_pairs(config: StudyConfig) -> list[Pairs]:
    """All splits of all tasks of the study, checked, before anything is computed."""
    found = [
        _load(config, task, split)
        for task in config.tasks
        for split in splits_of(config, task) or (None,)
    ]
    for path in config.pairs:
        found += load_file(path, config.columns)
    if not found:
        raise DataError("there is nothing to score: name a task or a file of pairs")
    seen: set[tuple[str, str]] = set()
    for pairs in found:
        if (pairs.name, pairs.split) in seen:
            raise DataError(f"{pairs.name} {pairs.split} is there twice; name it once")
        seen.add((pairs.name, pairs.split))
        if len(set(pairs.label)) < 2:
            raise DataError(
                f"{pairs.name} {pairs.split}: expected labels that differ, found "
                f"{pairs.label[0]:g} for all {len(pairs)} pairs: nothing correlates with them"
            )
    return found


def train_sentences(config: StudyConfig, pairs: list[Pairs]) -> dict[str, list[str]]:
    """For each task the sentences that what learns is fitted on, the first of its train split.

    Empty where nothing learns. Raises `DataError` where a task has no train split.
    """
    posts = {post for reading in readings(config) for post in reading.posts}
    learns = [*(post for post in LEARNING if post in posts), *config.baselines]
    names = dict.fromkeys(p.name for p in pairs)
    if not learns:
        return {name: [] for name in names}
    found = {}
    for name in names:
        train = [p for p in pairs if (p.name, p.split) == (name, "train")]
        if name in config.tasks and not train:
            train = [_load(config, name, "train")]
        if not train:
            raise DataError(
                f"{name} has no train split, which {', '.join(learns)} would be fitted on; give "
                "its file a column split, or leave that out"
            )
        sentences = dict.fromkeys(train[0].sentence1 + train[0].sentence2)
        found[name] = list(sentences)[:FIT_SENTENCES]
    return found


def _load(config: StudyConfig, task: str, split: str | None) -> Pairs:
    return datasets.load(
        task,
        split,
        config.data,
        cache_dir=config.cache_dir,
        local_files_only=config.local_files_only,
    )


def splits_of(config: StudyConfig, task: str) -> tuple[str, ...]:
    """The splits to run: those asked for, else the task's, of those its source offers."""
    if config.splits is not None:
        return config.splits
    if task == "sick-2014" and config.data is None:
        return ("all",)
    return DEFAULT_SPLITS.get(task, ())


def model_names(sources: tuple[str, ...]) -> list[str]:
    """A short name for each model: the end of its path, as much of it as tells them apart.

    Two revisions of a repository are told apart by these.

    >>> model_names(("org/model", "other/model")), model_names(("org/model@v1", "org/model@v2"))
    (['org/model', 'other/model'], ['model@v1', 'model@v2'])
    """
    found = [models.pinned(source) for source in sources]
    paths = [Path(source) for source, _ in found]
    parts = [path.parts or path.absolute().parts for path in paths]  # . has none
    marks = [f"@{revision}" if revision else "" for _, revision in found]
    names = list(sources)
    for count in range(max(map(len, parts)), 0, -1):
        plain = ["/".join(part[-count:]) for part in parts]
        marked = [name + mark for name, mark in zip(plain, marks, strict=True)]
        names = next((x for x in (plain, marked) if len(set(x)) == len(x)), names)
    return names


def _by_tokenizer(listed: list[Reading]) -> list[list[Reading]]:
    """Readings that one opened model can serve, in the order in which they are listed."""
    groups: dict[str | None, list[Reading]] = {}
    for reading in listed:
        groups.setdefault(reading.tokenizer, []).append(reading)
    return list(groups.values())


def _score(
    kept: Keep,
    model: Any,
    name: str,
    reading: Reading,
    pairs: Pairs,
    its_set: PairSet,
    fit_on: list[str],
    config: StudyConfig,
) -> Iterator[Scored]:
    """One pass as scored methods, a layer and a post-processing each."""
    layers = layers_of(model, reading)
    found = kept.run(model, reading, layers, pairs, config, fit_on)
    batched = 1e3 * found.batch_seconds / len(pairs)
    for i, (post, layer) in enumerate(cells(reading, layers)):
        median, mean = (1e3 * found.seconds[i]).tolist()
        spent = Cost(median, mean, batched, found.peak_bytes / MIB)
        method = Method.of(name, reading, post, layer)
        printed = published.of_rwkv(
            method, _sizes(model), pairs.name, pairs.split, config.max_length
        )
        yield Scored(method, its_set, found.scores[i], spent, printed)


def layers_of(model: Any, reading: Reading) -> list[Layer]:
    """The layers of a reading by their numbers; a state has no layer with a name."""
    if reading.layers != "all":
        return list(reading.layers)
    numbers_only = reading.pooling == STATE
    return [x for x in model.layers if isinstance(x, int) or not numbers_only]


def _norms(kept: Keep, model: Any, name: str, reading: Reading, pairs: Pairs) -> dict[str, Any]:
    """The stream's length by position and layer, over passages of a few sentences."""
    sentences = pairs.sentence1[: 4 * NORM_PASSAGES]
    passages = [" ".join(sentences[i::NORM_PASSAGES]) for i in range(NORM_PASSAGES)]
    layers = layers_of(model, reading)
    found = kept.norms(model, layers, [p for p in passages if p])
    reached = ~np.isnan(found).all(axis=1)
    return {
        "model": name,
        "tokenizer": reading.tokenizer,
        "layers": layers,
        "positions": np.array(POSITIONS)[reached].tolist(),
        "norms": found[reached].tolist(),
    }


def _controls(
    pairs: Pairs, its_set: PairSet, vectors: baselines.WordVectors, fitted: list[Words]
) -> Iterator[Scored]:
    start = time.perf_counter()
    overlap = baselines.word_overlap(pairs.sentence1, pairs.sentence2)
    each = 1e3 * (time.perf_counter() - start) / len(pairs)
    # One pair at a time is how word overlap works anyway.
    yield Scored(OVERLAP, its_set, overlap, Cost(each, each, each, 0.0))
    size = vectors.table.shape[1], vectors.file_rows
    as_the_paper = published.of_glove(pairs.name, pairs.split, *size)
    yield _by_vectors("GloVe", vectors.average, pairs, its_set, vectors, as_the_paper)
    split = partial(vectors.average, words=baselines.split_words)
    yield _by_vectors("GloVe, words split", split, pairs, its_set, vectors)
    for words in fitted:
        name = f"GloVe, {CASE[words.recipe]}"
        yield _by_vectors(name, words.encode, pairs, its_set, vectors)


def _by_vectors(
    name: str,
    embed: Callable[[list[str]], NDArray[Any]],
    pairs: Pairs,
    its_set: PairSet,
    vectors: baselines.WordVectors,
    printed: Published | None = None,
) -> Scored:
    """The control that word vectors make of the pairs, by one way to a text's vector."""
    one = cost.time_pairs(embed, pairs.sentence1, pairs.sentence2, pairs=len(pairs))
    start = time.perf_counter()
    scores = statistics.cosine(embed(pairs.sentence1), embed(pairs.sentence2))
    batched = 1e3 * (time.perf_counter() - start) / len(pairs)
    spent = Cost(1e3 * one.median, 1e3 * one.mean, batched, vectors.table.nbytes / MIB)
    return Scored(Method(name), its_set, scores, spent, printed)


def _model_facts(model: Any, name: str, tokenizer: str | None) -> dict[str, Any]:
    return {
        "name": name,
        "source": shown(Path(model.source)),
        "revision": model.revision,
        "tokenizer": tokenizer,
        "device": model.device,
        "dtype": model.dtype,
        "architecture": model.architecture,
        "sizes": _sizes(model),
        "memory": {name: int(size) for name, size in model.memory().items()},
        "process_gpu_mib": _mib(cost.gpu_process_bytes()),
    }


def _vector_facts(vectors: baselines.WordVectors) -> dict[str, Any]:
    return {
        "source": shown(Path(vectors.source)),
        "rows": vectors.file_rows,
        "dims": vectors.table.shape[1],
        "share": round(vectors.share, 4),
    }


def _sizes(model: Any) -> dict[str, int]:
    config = getattr(model, "config", None)  # what is no RWKV has none
    return {size: getattr(config, size, 0) for size in published.PAPER_MODEL}


def settings_record(config: StudyConfig) -> dict[str, Any]:
    """The configuration as JSON has it; of absolute paths only the end."""
    record = asdict(config)
    for name, value in record.items():
        if name in ("models", "pairs"):
            record[name] = [shown(Path(path)) for path in value]
        elif isinstance(value, tuple):
            record[name] = list(value)
        elif isinstance(value, Path) or name in ("data", "glove", "cache_dir"):
            record[name] = None if value is None else shown(Path(value))
    return record


def _mib(size: int | None) -> float | None:
    return None if size is None else size / MIB
