"""Word vectors as an embedder: plain averages, SIF and uSIF, the baselines of averaged words.

Assumes vectors loaded for the words that will be asked about, see `baselines.load_vectors`; other
words are left out. SIF and uSIF weigh a word by how rare it is and remove what all sentences share:
both are learned from train sentences by `fit`, never from those that are scored. Promises that a
text's vector depends on that text alone once fitted.

SIF is Arora, Liang and Ma (ICLR 2017), uSIF Ethayarajh (Repl4NLP 2018) as its author's code has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..embedder import BaseEmbedder, FloatArray, Layer, Prompt, Request, check_texts
from .baselines import WordVectors, split_words

RECIPES = ("average", "sif", "usif")
SIF_A = 1e-3  # of the weight a / (a + p)
SIF_COMPONENTS, USIF_COMPONENTS = 1, 5
USIF_LENGTH = 11  # words of a sentence, as uSIF's author sets it

Array = NDArray[np.float64]


class Words(BaseEmbedder):
    """An `Embedder` of word vectors: float32 [S, D].

    A text without a known word is the zero vector. `encode` cuts a text after max_length words,
    refuses prompt and skip_first, since an average has no context, and has no use for batch_tokens
    and show_progress.

    vectors : of the words that will be asked about
    recipe : "average"; "sif" or "usif", which need `fit`
    words : cuts a text into words; default: words and punctuation apart, as GloVe has them

    Examples
    --------
    >>> from rwkvsts.data.datasets import asset
    >>> from rwkvsts.study.baselines import load_vectors
    >>> texts = ["rates rose sharply", "prices fell", "it rained"]
    >>> model = Words(load_vectors(asset("glove.demo.50d.txt.gz"), texts))
    >>> model.encode(texts).shape
    (3, 50)
    """

    architecture = "word vectors"
    device, dtype, revision = "cpu", "float32", None
    layers: tuple[Layer, ...] = ("final",)
    poolings = ("mean",)

    def __init__(
        self,
        vectors: WordVectors,
        recipe: str = "average",
        words: Callable[[str], list[str]] = split_words,
    ) -> None:
        if recipe not in RECIPES:
            raise ValueError(f"recipe={recipe!r}: expected one of {', '.join(RECIPES)}")
        self.vectors, self.recipe, self._cut = vectors, recipe, words
        self._weight: Callable[[str], float] | None = None
        self._common: list[tuple[float, Array]] = []  # how much of which direction is removed

    @property
    def name(self) -> str:
        """The vectors' file and the recipe, for tables and plots."""
        suffix = "" if self.recipe == "average" else f" {self.recipe}"
        return Path(self.vectors.source).name + suffix

    @property
    def source(self) -> str:
        """The file of the vectors."""
        return self.vectors.source

    @property
    def width(self) -> int:
        """D, the length of a vector."""
        return int(self.vectors.table.shape[1])

    def memory(self) -> dict[str, int]:
        """Bytes: the table of vectors is all there is."""
        size = self.vectors.table.nbytes
        return {"weights": size, "workspace": 0, "peak": size}

    def fit(self, texts: Iterable[str]) -> Words:
        """Learn the words' frequencies and what sentences have in common, from train sentences."""
        listed = list(texts)
        count = Counter(word for text in listed for word in self._cut(text))
        total = sum(count.values())
        if not total:
            raise ValueError("fit: the texts hold no word")
        probability = {word: n / total for word, n in count.items()}
        self._weight, self._common = _weights(self.recipe, probability), []
        components = {"average": 0, "sif": SIF_COMPONENTS, "usif": USIF_COMPONENTS}[self.recipe]
        if components:
            rows = np.array([self._sum(text) for text in listed])
            _, length, directions = np.linalg.svd(rows, full_matrices=False)  # not centred
            length, directions = length[:components], directions[:components]
            share = length**2 / (length**2).sum() if self.recipe == "usif" else np.ones(len(length))
            self._common = list(zip(share.tolist(), directions, strict=True))
        return self

    def _embed(self, texts: list[Any], axes: tuple[int, ...], request: Request) -> FloatArray:
        if request.prompt != Prompt() or request.skip_first:
            raise ValueError("an average of word vectors has no context: no prompt, no skip_first")
        if self.recipe != "average" and self._weight is None:
            raise ValueError(f"recipe={self.recipe!r}: call fit on train sentences first")
        check_texts(texts)
        result, rows = request.result(axes, self.width)
        for row, text in zip(rows, texts, strict=True):
            vector = self._sum(text, request.max_length)
            for share, direction in self._common:
                vector = vector - share * (vector @ direction) * direction
            row[:] = vector
        request.finish(rows)
        return result

    def _sum(self, text: str, max_length: int | None = None) -> Array:
        """The weighted mean of a text's known words."""
        known = [word for word in self._cut(text)[:max_length] if word in self.vectors.row]
        if not known:
            return np.zeros(self.width)
        rows = self.vectors.table[[self.vectors.row[word] for word in known]].astype(np.float64)
        if self.recipe == "usif":  # each dimension to length 1 over the text's words
            length = np.linalg.norm(rows, axis=0)
            rows = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
        if self._weight is not None:
            rows *= np.array([self._weight(word) for word in known])[:, None]
        return np.asarray(rows.mean(axis=0))


def _weights(recipe: str, probability: dict[str, float]) -> Callable[[str], float] | None:
    """The weight of a word; one that was never seen counts as the rarest that was."""
    least = min(probability.values())
    if recipe == "average":
        return None
    if recipe == "sif":
        return lambda word: SIF_A / (SIF_A + probability.get(word, least))
    V = len(probability)
    threshold = 1 - (1 - 1 / V) ** USIF_LENGTH
    alpha = sum(p > threshold for p in probability.values()) / V
    if not 0 < alpha < 1:
        raise ValueError(
            f"fit: {V} words, of which {alpha:.0%} are frequent: too few texts for uSIF's weights"
        )
    a = (1 - alpha) / (alpha * 0.5 * V)
    return lambda word: a / (0.5 * a + probability.get(word, least))
