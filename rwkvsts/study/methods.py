"""The nouns of a study: a method, what it cost, and the scores it gave to a set of pairs.

A method is everything that turns a pair into a score: model, tokenizer, pooling, prompt,
post-processing, layer. Promises that equal methods are equal values, so that scores from several
runs can be laid side by side.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data import Pairs
from ..embedder import Layer
from .settings import OWN, PAPER_LAYERS, PROMPTS, STEPS, Reading

_LONGEST_PROMPT = 24


class System(NamedTuple):
    """What competes in a table: a model with its tokenizer, or a control."""

    model: str
    tokenizer: str | None


@dataclass(frozen=True)
class Method:
    """A way to score a pair; fields that have no meaning for it are None or False.

    layer : of several layers joined, their names in one
    """

    model: str
    tokenizer: str | None = None
    pooling: str | None = None
    lead: bool = False
    skip_first: bool = False
    prompt: str | None = None
    post: str = "none"
    layer: Layer | str | None = None

    @classmethod
    def of(cls, model: str, reading: Reading, post: str, layer: Layer | str) -> Method:
        """The method of one cell of a reading."""
        return cls(
            model,
            reading.tokenizer,
            reading.pooling,
            reading.lead,
            reading.skip_first,
            reading.prompt,
            post,
            layer,
        )

    @property
    def system(self) -> System:
        """The model and tokenizer, whatever the reading and layer."""
        return System(self.model, self.tokenizer)

    @property
    def label(self) -> str:
        """The method in words, but for its layer."""
        words = [f"{self.model} {self.pooling}" if self.pooling else self.model]
        words += [self.tokenizer] if self.tokenizer else []
        words += ["token 0 first"] if self.lead else []
        words += ["skip first"] if self.skip_first else []
        words += [prompt_name(self.prompt)] if self.prompt else []
        words += [self.post] if self.post != "none" else []
        return ", ".join(words)

    @property
    def step(self) -> str:
        """The highest step of the ladder that the method takes; empty for what is not on it."""
        if self.pooling in (None, OWN):
            return ""
        taken = (
            True,
            self.tokenizer != "gpt2",
            self.lead,
            self.layer not in PAPER_LAYERS,
            self.pooling != "mean" or self.skip_first,
            self.post != "none",
            self.prompt is not None,
        )
        return STEPS[max(i for i, step in enumerate(taken) if step)]


@dataclass(frozen=True)
class Cost:
    """Milliseconds a pair, median and mean of one call a pair and in one batch; peak MiB.

    NaN where it was not measured.
    """

    ms_per_pair: float = float("nan")
    ms_per_pair_mean: float = float("nan")
    ms_per_pair_batched: float = float("nan")
    peak_mib: float = float("nan")


@dataclass(frozen=True)
class Published:
    """What a publication prints for a method; None where it prints nothing."""

    spearman: float
    source: str
    s_per_pair: float | None = None
    peak_mib: float | None = None


@dataclass(frozen=True)
class PairSet:
    """The pairs of one task and split, as far as scores need them.

    `label` is float64 [n]; `digest` stands for sentences and labels.
    """

    task: str
    split: str
    label: NDArray[np.float64]
    digest: str
    source: str = ""

    @property
    def key(self) -> str:
        """Task and split in words."""
        return f"{self.task} {self.split}"

    @classmethod
    def of(cls, pairs: Pairs) -> PairSet:
        """The set of loaded pairs."""
        content = digest(*pairs.sentence1, *pairs.sentence2, pairs.label.tobytes().hex())
        return cls(pairs.name, pairs.split, pairs.label, content, pairs.source)


@dataclass(frozen=True)
class Scored:
    """The scores, float64 [n], that a method gave to the pairs of a set.

    `published` is what a publication of the same protocol prints, if there is one.
    """

    method: Method
    pairs: PairSet
    scores: NDArray[np.float64]
    cost: Cost = Cost()
    published: Published | None = None


def prompt_name(prompt: str) -> str:
    """The name of a known prompt, else its beginning."""
    for name, known in PROMPTS.items():
        if prompt == known:
            return f"prompt {name}"
    line = re.sub(r"\s+", " ", prompt)
    short = line if len(line) <= _LONGEST_PROMPT else line[: _LONGEST_PROMPT - 3] + "..."
    return f"prompt '{short}'"


def digest(*parts: str) -> str:
    """SHA-256 of texts, each with its length, so that no two lists of texts share it."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        total.update(f"{len(data)}:".encode() + data)
    return total.hexdigest()
