"""The paper's experiment as data: layers x splits x methods, one table.

Assumes nothing about the model but the surface of `RWKV6`. Promises that the controls (word
overlap, averaged GloVe) stand in every table, that a published figure stands only beside a row of
the same protocol, and that the facts needed to repeat the run go with it.

The paper is arXiv 2502.14620, "Exploring RWKV for Sentence Embeddings".
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..data import datasets
from ..data.datasets import Pairs
from ..model import PAPER_LAYERS, RWKV6, Layer
from ..progress import bar
from . import baselines, cost, machine, statistics
from .cost import MIB

if TYPE_CHECKING:
    import pandas

DEMO_VECTORS = "glove.demo.50d.txt.gz"


@dataclass(frozen=True)
class Published:
    """What the paper prints for one method, layer and split of MRPC."""

    spearman: float
    s_per_pair: float
    peak_mib: float


def _published_rwkv(split: str) -> dict[tuple[Layer, str], Published]:
    rho, seconds, peak = {
        "train[:1000]": (
            (0.2879, 0.2766, 0.2671, 0.2491, 0.2296, 0.2245),
            (0.3366, 0.3348, 0.3342, 0.3301, 0.3277, 0.3279),
            (3078.39, 3078.39, 3078.39, 3078.38, 3078.38, 3078.38),
        ),
        "validation": (
            (0.3498, 0.3410, 0.3345, 0.3170, 0.3127, 0.3073),
            (0.3318, 0.3287, 0.3298, 0.3300, 0.3296, 0.3288),
            (3078.44,) * 6,
        ),
    }[split]
    rows = map(Published, rho, seconds, peak)
    return {(layer, split): row for layer, row in zip(PAPER_LAYERS, rows, strict=True)}


PUBLISHED_RWKV = {**_published_rwkv("train[:1000]"), **_published_rwkv("validation")}
PUBLISHED_GLOVE = {
    "train[:1000]": Published(0.3876, 0.0006, 3059.73),
    "validation": Published(0.4326, 0.2186, 3077.13),
}
# The sizes of RWKV/v6-Finch-1B6-HF: a local copy of the paper's model has any name.
PAPER_MODEL = {"n_layer": 24, "n_embd": 2048, "n_vocab": 65536}

DEFAULT_SPLITS = {
    "mrpc": ("train[:1000]", "validation"),
    "stsb": ("validation", "test"),
    "sick": ("test",),
    "sick-2014": ("test",),
    "demo": ("all",),
}


@dataclass(frozen=True)
class StudyConfig:
    """What to run.

    `splits` None takes the paper's for MRPC and the reported ones elsewhere. `glove` None takes
    the bundled word vectors. `max_length` 128 tokens is the paper's. `timed_pairs` are run one by
    one for the time per pair.
    """

    model: str = "demo"
    task: str = "demo"
    tokenizers: tuple[str, ...] = ("world",)
    layers: tuple[Layer, ...] = PAPER_LAYERS
    splits: tuple[str, ...] | None = None
    pooling: str = "mean"
    data: str | Path | None = None
    glove: str | Path | None = None
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    max_length: int | None = 128
    batch_tokens: int | None = None
    resamples: int = 1000
    seed: int = 0
    timed_pairs: int = 20
    cache_dir: str | Path | None = None
    local_files_only: bool = False


@dataclass(frozen=True)
class Row:
    """One line of the table; NaN or None where a figure does not exist.

    `low` and `high` are the 95 % interval of `spearman`; `over_overlap` is its lead over word
    overlap on the same pairs, with its paired interval. `ms_per_pair` is the median of one call
    per pair for this layer alone, `ms_per_pair_mean` its mean as in the paper;
    `ms_per_pair_batched` is the whole split in one call for all layers. `peak_mib` counts the
    method's own allocations: for a GPU those on the device.
    """

    method: str
    tokenizer: str | None
    layer: Layer | None
    split: str
    n: int
    spearman: float
    low: float
    high: float
    auc: float
    over_overlap: float
    over_overlap_low: float
    over_overlap_high: float
    ms_per_pair: float
    ms_per_pair_mean: float
    ms_per_pair_batched: float
    peak_mib: float
    published_spearman: float | None = None
    published_s_per_pair: float | None = None
    published_peak_mib: float | None = None


@dataclass(frozen=True)
class Study:
    """The table, what was asked for, and where and with what it was run."""

    config: StudyConfig
    rows: list[Row]
    facts: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def frame(self) -> pandas.DataFrame:
        """The table as a pandas frame, a column per field of `Row`."""
        import pandas

        return pandas.DataFrame([asdict(row) for row in self.rows])


def splits_of(config: StudyConfig) -> tuple[str, ...]:
    """The splits to run: those asked for, else the task's, of those its source offers."""
    if config.splits is not None:
        return config.splits
    if config.task == "sick-2014" and config.data is None:
        return ("all",)
    return DEFAULT_SPLITS.get(config.task, ())


def load_pairs(config: StudyConfig) -> list[Pairs]:
    """All splits of the study, checked, before anything is computed."""
    return [
        datasets.load(
            config.task,
            split,
            config.data,
            cache_dir=config.cache_dir,
            local_files_only=config.local_files_only,
        )
        for split in splits_of(config) or (None,)
    ]


def open_model(config: StudyConfig, tokenizer: str) -> RWKV6:
    """The RWKV-6 model of the study, no deeper than its highest layer."""
    whole = any(isinstance(layer, str) for layer in config.layers)
    return RWKV6.from_pretrained(
        config.model,
        revision=config.revision,
        device=config.device,
        dtype=config.dtype,
        tokenizer=tokenizer,
        max_layer=None if whole else max(int(layer) for layer in config.layers),
        cache_dir=config.cache_dir,
        local_files_only=config.local_files_only,
    )


def run(config: StudyConfig) -> Study:
    """Run the study: each tokenizer's model over all layers and splits, and the controls.

    Raises what `datasets.load`, `baselines.load_vectors` and `RWKV6` raise. Data, word vectors
    and model are read and checked in this order, before anything is computed.
    """
    pairs = load_pairs(config)
    vectors = baselines.load_vectors(
        config.glove or datasets.asset(DEMO_VECTORS),
        (text for split in pairs for text in split.sentence1 + split.sentence2),
    )
    overlap = {p.split: baselines.word_overlap(p.sentence1, p.sentence2) for p in pairs}
    rows: list[Row] = []
    facts = machine.machine_facts()
    facts["data"] = {p.split: p.source for p in pairs}
    facts["word_vectors"] = {"source": vectors.source, "rows": vectors.file_rows}
    facts["models"] = []
    for tokenizer in config.tokenizers:
        model = open_model(config, tokenizer)
        for split in pairs:
            rows += _model_rows(config, split, model, tokenizer, overlap[split.split])
        facts["models"].append(_model_facts(model, tokenizer))
        # Two models at once would double the memory, on the device as well.
        del model
        gc.collect()
    facts["host_peak_mib"] = _mib(cost.host_peak_bytes())
    for split in pairs:
        rows += _control_rows(config, split, vectors, overlap[split.split])
    # Split by split, controls first, else as they came: the sort is stable.
    rows.sort(key=lambda row: (list(overlap).index(row.split), row.layer is not None))
    return Study(config, rows, facts, _notes(config, rows, vectors))


@dataclass(frozen=True)
class _Cost:
    one: cost.PairTime
    batched_s: float
    peak_bytes: int


def _row(
    config: StudyConfig,
    pairs: Pairs,
    scores: NDArray[np.float64],
    overlap: NDArray[np.float64],
    spent: _Cost,
    labels: tuple[str, str | None, Layer | None],
    published: Published | None = None,
) -> Row:
    """A line of the table from the scores of all pairs and what they cost."""
    rho = statistics.spearman(scores, pairs.label, config.resamples, config.seed)
    lead = statistics.spearman_difference(
        scores, overlap, pairs.label, config.resamples, config.seed
    )
    method, tokenizer, layer = labels
    return Row(
        method=method,
        tokenizer=tokenizer,
        layer=layer,
        split=pairs.split,
        n=len(pairs),
        spearman=rho.value,
        low=rho.low,
        high=rho.high,
        auc=statistics.auc(scores, pairs.label),
        over_overlap=lead.value,
        over_overlap_low=lead.low,
        over_overlap_high=lead.high,
        ms_per_pair=1e3 * spent.one.median,
        ms_per_pair_mean=1e3 * spent.one.mean,
        ms_per_pair_batched=1e3 * spent.batched_s / len(pairs),
        peak_mib=spent.peak_bytes / MIB,
        published_spearman=published.spearman if published else None,
        published_s_per_pair=published.s_per_pair if published else None,
        published_peak_mib=published.peak_mib if published else None,
    )


def _control_rows(
    config: StudyConfig,
    pairs: Pairs,
    vectors: baselines.WordVectors,
    overlap: NDArray[np.float64],
) -> Iterator[Row]:
    start = time.perf_counter()
    baselines.word_overlap(pairs.sentence1, pairs.sentence2)
    seconds = time.perf_counter() - start
    # One pair at a time is how word overlap works anyway.
    each = cost.PairTime(seconds / len(pairs), seconds / len(pairs), len(pairs))
    yield _row(
        config, pairs, overlap, overlap, _Cost(each, seconds, 0), ("word overlap", None, None)
    )
    for name, words in (
        ("GloVe", baselines.space_words),
        ("GloVe, words split", baselines.split_words),
    ):
        one = cost.time_pairs(
            lambda texts, words=words: vectors.average(texts, words),  # type: ignore[misc]
            pairs.sentence1,
            pairs.sentence2,
            pairs=len(pairs),
        )
        start = time.perf_counter()
        scores = statistics.cosine(
            vectors.average(pairs.sentence1, words), vectors.average(pairs.sentence2, words)
        )
        spent = _Cost(one, time.perf_counter() - start, vectors.table.nbytes)
        paper = (
            config.task == "mrpc"
            and config.glove is not None  # the bundled vectors are of another corpus
            and vectors.table.shape[1] == 50
            and words is baselines.space_words
        )
        published = PUBLISHED_GLOVE.get(pairs.split) if paper else None
        yield _row(config, pairs, scores, overlap, spent, (name, None, None), published)


def _model_rows(
    config: StudyConfig, pairs: Pairs, model: RWKV6, tokenizer: str, overlap: NDArray[np.float64]
) -> Iterator[Row]:
    """A row per layer. Every layer comes from one pass; each is timed alone, a pair a call."""
    how: dict[str, Any] = {
        "pooling": config.pooling,
        "max_length": config.max_length,
        "batch_tokens": config.batch_tokens,
    }
    layers = list(config.layers)
    times = _time_layers(config, pairs, model, how)
    texts = pairs.sentence1 + pairs.sentence2
    model.encode(texts[:32], layers=layers, **how, show_progress=False)  # warm-up of a batch
    start = time.perf_counter()
    embeddings = model.encode(texts, layers=layers, **how)  # [2 n, len(layers), C]
    seconds = time.perf_counter() - start
    first, second = embeddings[: len(pairs)], embeddings[len(pairs) :]
    spent = _Cost(times[0], seconds, model.memory()["peak"])
    for i, layer in enumerate(layers):
        scores = statistics.cosine(first[:, i], second[:, i])
        published = _published(config, model, pairs.split, tokenizer, layer)
        labels = (f"RWKV-6 {config.pooling}", tokenizer, layer)
        yield _row(config, pairs, scores, overlap, replace(spent, one=times[i]), labels, published)


def _time_layers(
    config: StudyConfig, pairs: Pairs, model: RWKV6, how: dict[str, Any]
) -> list[cost.PairTime]:
    return [
        cost.time_pairs(
            lambda texts, layer=layer: model.encode(  # type: ignore[misc]
                texts, layers=layer, **how, show_progress=False
            ),
            pairs.sentence1,
            pairs.sentence2,
            pairs=config.timed_pairs,
        )
        for layer in bar(config.layers, desc="timing layers", leave=False)
    ]


def _published(
    config: StudyConfig, model: RWKV6, split: str, tokenizer: str, layer: Layer
) -> Published | None:
    """The paper's figure for a row, if the row follows the paper's protocol."""
    sizes = {name: getattr(model.config, name, None) for name in PAPER_MODEL}
    same = (config.task, config.pooling, tokenizer) == ("mrpc", "mean", "gpt2")
    if not same or sizes != PAPER_MODEL:
        return None
    return PUBLISHED_RWKV.get((layer, split))


def _notes(config: StudyConfig, rows: list[Row], vectors: baselines.WordVectors) -> list[str]:
    """What a reader must know to read the table right."""
    notes = [
        "Spearman with a 95 % percentile bootstrap interval over pairs "
        f"({config.resamples} resamples, seed {config.seed}); 'over overlap' is the lead over word "
        "overlap, paired on the same pairs.",
        "ms a pair: median of one call per pair, this layer alone; batched: the whole split in "
        "one call that yields every layer. MiB: the method's own peak allocation. Texts are cut "
        f"to {config.max_length} tokens.",
        f"GloVe: average of word vectors, {vectors.file_rows} rows in {Path(vectors.source).name}; "
        "an unknown word is a zero vector; 'words split' cuts punctuation off and leaves unknown "
        "words out.",
    ]
    if any(row.published_spearman is not None for row in rows):
        notes.append(
            "Paper: as published in arXiv 2502.14620. Its RWKV figures use the GPT-2 tokenizer on "
            "a model with another vocabulary, so they measure a scrambled input. Its 0.2186 s a "
            "pair for GloVe on validation is a mean of cumulative times (0.00106 s is meant), and "
            "its GPU memory for GloVe is that of the idle RWKV model (0 is meant)."
        )
    if "gpt2" in config.tokenizers:
        notes.append("Tokenizer gpt2: the paper's mode, ids that mean other tokens to the model.")
    return notes


def _model_facts(model: RWKV6, tokenizer: str) -> dict[str, Any]:
    return {
        "source": str(model.source),
        "revision": model.revision,
        "tokenizer": tokenizer,
        "device": model.device,
        "dtype": model.dtype,
        "blocks": model.n_blocks,
        "memory": {name: int(size) for name, size in model.memory().items()},
        "process_gpu_mib": _mib(cost.gpu_process_bytes()),
    }


def _mib(size: int | None) -> float | None:
    return None if size is None else size / MIB
