"""Word vectors as an embedder: SIF and uSIF by hand, from their papers, on a few sentences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rwkvsts import Embedder
from rwkvsts.data import datasets
from rwkvsts.study import baselines, statistics
from rwkvsts.study.words import Words

WORDS = ["the", "cat", "dog", "sat", "ran", "on", "mat", "a"]
TRAIN = [f"the {a} {b} on the {c}" for a in WORDS[1:3] for b in WORDS[3:5] for c in WORDS[5:]]
TEXTS = ["the cat sat", "a dog ran on the mat", "unknown words", "cat"]


@pytest.fixture
def vectors(tmp_path: Path) -> baselines.WordVectors:
    rng = np.random.default_rng(0)
    rows = [f"{w} " + " ".join(f"{x:.3f}" for x in rng.normal(size=5)) for w in WORDS]
    (tmp_path / "made.txt").write_text("\n".join(rows))
    return baselines.load_vectors(tmp_path / "made.txt", TRAIN + TEXTS)


def probability() -> dict[str, float]:
    words = " ".join(TRAIN).split()
    return {word: words.count(word) / len(words) for word in words}


def test_an_average_is_the_baselines(vectors: baselines.WordVectors) -> None:
    model = Words(vectors)
    assert isinstance(model, Embedder)
    right = vectors.average(TEXTS, baselines.split_words)
    np.testing.assert_allclose(model.encode(TEXTS), right, rtol=1e-6)
    assert (model.name, model.width, model.layers) == ("made.txt", 5, ("final",))
    assert model.memory()["peak"] == 8 * 5 * 4


def test_sif_by_hand(vectors: baselines.WordVectors) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition", reason="compares with it")
    p = probability()

    def mean(text: str) -> np.ndarray:
        known = [w for w in text.split() if w in vectors.row]
        rows = [vectors.table[vectors.row[w]] * 1e-3 / (1e-3 + p[w]) for w in known]
        return np.sum(rows, axis=0) / len(known) if known else np.zeros(5)

    svd = decomposition.TruncatedSVD(1, algorithm="arpack").fit(np.array([*map(mean, TRAIN)]))
    (u,) = svd.components_
    x = np.array([*map(mean, TEXTS)])
    found = Words(vectors, "sif").fit(TRAIN).encode(TEXTS)
    np.testing.assert_allclose(found, x - np.outer(x @ u, u), atol=1e-7)
    assert not found[2].any()


def test_usif_by_hand(vectors: baselines.WordVectors) -> None:
    with pytest.raises(ValueError, match=r"8 words, of which 0% are frequent: too few texts"):
        Words(vectors, "usif").fit(TRAIN)
    # A tail of words that come once, and have no vector, makes "the" frequent.
    train = [
        text + "".join(f" rare{100 * i + j}" for j in range(100)) for i, text in enumerate(TRAIN)
    ]
    words = " ".join(train).split()
    p = {word: words.count(word) / len(words) for word in words}
    V = len(p)
    alpha = sum(x > 1 - (1 - 1 / V) ** 11 for x in p.values()) / V
    a = (1 - alpha) / (alpha * V / 2)

    def mean(text: str) -> np.ndarray:
        known = [w for w in text.split() if w in vectors.row]
        if not known:
            return np.zeros(5)
        rows = vectors.table[[vectors.row[w] for w in known]].astype(np.float64)
        rows = rows / np.sqrt((rows**2).sum(0))
        return sum(r * a / (a / 2 + p[w]) for r, w in zip(rows, known, strict=True)) / len(known)

    _, s, u = np.linalg.svd(np.array([*map(mean, train)]), full_matrices=False)
    x = np.array([*map(mean, TEXTS)])
    for i in range(5):
        x = x - s[i] ** 2 / (s**2).sum() * np.outer(x @ u[i], u[i])
    found = Words(vectors, "usif").fit(train).encode(TEXTS)
    np.testing.assert_allclose(found, x, atol=1e-6)


def test_shapes_and_refusals(vectors: baselines.WordVectors) -> None:
    model = Words(vectors)
    assert model.encode("cat").shape == (5,)
    assert model.encode(TEXTS, ["final"]).shape == (4, 1, 5)
    assert np.array_equal(model.encode("cat sat", max_length=1), model.encode("cat"))
    np.testing.assert_allclose(np.linalg.norm(model.encode("a cat", normalize=True)), 1, rtol=1e-6)
    for arguments, message in [
        ({"layers": 3}, r'layer 3: this model holds "final"'),
        ({"pooling": "last"}, r"pooling='last': expected one of mean"),
        ({"prompt": "say "}, r"no context: no prompt"),
        ({"skip_first": True}, r"no context"),
        ({"max_length": -1}, r"max_length=-1: expected 1 \.\. "),
    ]:
        with pytest.raises(ValueError, match=message):
            model.encode(TEXTS, **arguments)
    with pytest.raises(ValueError, match=r"recipe='sif': call fit on train sentences first"):
        Words(vectors, "sif").encode(TEXTS)
    with pytest.raises(ValueError, match=r"recipe='tfidf'"):
        Words(vectors, "tfidf")
    with pytest.raises(ValueError, match=r"the texts hold no word"):
        Words(vectors, "sif").fit([" "])


def test_weights_lift_real_vectors_on_real_pairs(shared: Path) -> None:
    """STS-B test, fitted on its train sentences: both are well above the plain average's 0.374."""
    test, train = (datasets.load("stsb", split, shared) for split in ("test", "train"))
    texts = train.sentence1 + train.sentence2
    file = shared / "glove" / "glove.6B.50d.part.txt"
    vectors = baselines.load_vectors(file, texts + test.sentence1 + test.sentence2)
    found = {}
    for recipe in ("average", "sif", "usif"):
        model = Words(vectors, recipe).fit(texts)
        one, other = model.encode(test.sentence1), model.encode(test.sentence2)
        score = statistics.cosine(one, other)
        found[recipe] = statistics.spearman(score, test.label, resamples=1).value
    assert found["average"] == pytest.approx(0.3744, abs=5e-4)
    assert min(found["sif"], found["usif"]) > found["average"] + 0.1, found
