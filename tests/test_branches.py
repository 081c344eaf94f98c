"""What a state of each text's own gives: echo, branches, states as vectors; and tokens not pooled.

Everything is held to the plain way, one sequence at a time, to the bit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import reference
from tinymodel import error, load, random_ids, random_weights
from tinymodel7 import load7, random_weights7

import rwkvsts.running
from rwkvsts import RWKV
from rwkvsts.states import vectors

TEXTS = ["one", "and another text", "x", "one", "the last of them all"]
LAYERS = [0, 2, "final"]
POOLINGS = ("mean", "last", "weighted", "max")


@pytest.fixture(params=["RWKV-6 float32", "RWKV-6 bfloat16", "RWKV-7 float32"])
def model(tmp_path: Path, request: pytest.FixtureRequest) -> RWKV:
    kind, dtype = request.param.split()
    options = {"tokenizer": "bytes", "dtype": dtype, "threads": 2}
    if kind == "RWKV-7":
        return load7(tmp_path, random_weights7(31, L=3, V=256), **options)
    return load(tmp_path, random_weights(31, L=3, V=256), **options)


# ---- tokens that are read and not pooled ---------------------------------------------------------


@pytest.mark.parametrize("pooling", POOLINGS)
def test_without_the_first_token(model: RWKV, pooling: str) -> None:
    texts = [text for text in TEXTS if len(text) > 1]
    found = model.encode(texts, LAYERS, pooling, skip_first=True)
    for row, text in zip(found, texts, strict=True):
        ids = list(text.encode())
        plain = model.encode_ids([ids[1:]], LAYERS, pooling, state=model.state(ids[:1]))
        assert row.tobytes() == plain[0].tobytes()
    ids = [list(text.encode()) for text in texts]
    assert model.encode_ids(ids, LAYERS, pooling, skip_first=True).tobytes() == found.tobytes()


def test_without_the_first_token_against_float64(tmp_path: Path) -> None:
    weights = random_weights(31, L=3)
    ids = random_ids(2, [2, 9, 40])
    found = load(tmp_path, weights, dtype="float32").encode_ids(ids, [0, 1, 2], skip_first=True)
    hidden = [reference.forward(weights, one)[0][:3, 1:] for one in ids]
    assert error(found, np.array([x.mean(1) for x in hidden])) < 1e-4


def test_after_a_prefix_there_is_no_first_token(model: RWKV) -> None:
    for how in ({"prompt": "say "}, {"state": model.state([5])}):
        plain = model.encode(TEXTS, 1, **how)
        assert model.encode(TEXTS, 1, skip_first=True, **how).tobytes() == plain.tobytes()


def test_a_text_of_one_token_has_nothing_left(model: RWKV) -> None:
    with pytest.raises(
        ValueError, match=r"texts\[2\] has one token: without its first none is left"
    ):
        model.encode(TEXTS, 1, skip_first=True)
    with pytest.raises(ValueError, match=r"ids\[1\] has one token"):
        model.encode_ids([[1, 2], [3]], 1, skip_first=True)


# ---- echo ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("prompt", ["{text}{text}", "say {text}, again {text}.", "{text} {text} "])
def test_echo_pools_the_last_reading(model: RWKV, prompt: str, pooling: str) -> None:
    before, between, after = prompt.split("{text}")
    found = model.encode(TEXTS, LAYERS, pooling, prompt=prompt, max_length=6)
    for row, text in zip(found, TEXTS, strict=True):
        state = model.state(before + text[:6] + between)
        plain = model.encode([text[:6] + after], LAYERS, pooling, state=state)
        assert row.tobytes() == plain[0].tobytes()


def test_echo_more_than_once(model: RWKV) -> None:
    found = model.encode("ab", 1, prompt="{text}-{text}+{text}")
    assert found.tobytes() == model.encode("ab", 1, state=model.state("ab-ab+")).tobytes()


# ---- branches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", POOLINGS)
def test_branches_have_the_bits_of_the_plain_way(model: RWKV, pooling: str) -> None:
    suffixes = [" in a word:", "!", " means the same as"]
    found = model.branch(TEXTS, suffixes, LAYERS, pooling, prompt='say "{text}"', max_length=6)
    assert found.shape == (5, 3, 3, 64)
    for row, text in zip(found, TEXTS, strict=True):
        state = model.state(f'say "{text[:6]}"')
        plain = model.encode(suffixes, LAYERS, pooling, state=state)
        assert row.tobytes() == plain.tobytes()


def test_a_last_token_is_that_of_the_whole_text(model: RWKV) -> None:
    found = model.branch(TEXTS, [" in a word:", "?"], 2)
    for column, suffix in enumerate([" in a word:", "?"]):
        whole = model.encode(TEXTS, 2, "last", prompt="{text}" + suffix)
        assert found[:, column].tobytes() == whole.tobytes()


def test_branches_over_many_texts(model: RWKV, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer states at a time, passes that cut a text and a suffix: never another bit."""
    texts = [f"text {i} " * (1 + i % 4) for i in range(11)]
    suffixes = ["a", "bcd", "efghijkl"]
    expected = model.branch(texts, suffixes, [0, 2], prompt="{text};{text}", normalize=True)
    monkeypatch.setattr(rwkvsts.running, "AT_A_TIME", 4 * 3 * 64 * 66 * 5)
    for limit in (None, 1, 7, 100):
        found = model.branch(
            texts, suffixes, [0, 2], prompt="{text};{text}", normalize=True, batch_tokens=limit
        )
        assert found.tobytes() == expected.tobytes(), limit


def test_shapes_and_refusals_of_branches(model: RWKV) -> None:
    assert model.branch("a", ["b", "c"]).shape == (2, 64)
    assert model.branch(["a"], ["b", "c"], [1]).shape == (1, 2, 1, 64)
    out = np.zeros((1, 2, 64), np.float32)
    assert model.branch(["a"], ["b", "c"], out=out) is out and out.any()
    with pytest.raises(ValueError, match=r"suffixes\[1\] is empty"):
        model.branch(["a"], ["b", ""])
    with pytest.raises(ValueError, match=r"suffixes is empty"):
        model.branch(["a"], [])
    with pytest.raises(TypeError, match=r"suffixes\[0\] is int"):
        model.branch(["a"], [1])  # type: ignore[list-item]


# ---- states as vectors ---------------------------------------------------------------------------


def test_a_states_vector_by_hand(model: RWKV) -> None:
    found = model.encode_states(TEXTS, [0, 2], width=None)
    assert found.shape == (5, 2, 64 * 64)
    for row, text in zip(found, TEXTS, strict=True):
        wkv = model.state(text).wkv[[0, 2]].astype(np.float64)  # one head of 64
        length = np.sqrt((wkv**2).sum((2, 3)))[..., None, None]
        np.testing.assert_allclose(row, (wkv / length).reshape(2, -1), rtol=1e-6)


def test_each_head_counts_the_same(tmp_path: Path) -> None:
    m = load(tmp_path, random_weights(3, L=2, C=64, N=8, V=256), tokenizer="bytes")
    found = m.encode_states("some text", 1, width=None).reshape(8, 64)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, rtol=1e-6)
    assert np.array_equal(vectors(np.zeros((2, 8, 8, 8), np.float32), 16), np.zeros((2, 16)))


def test_a_projection_keeps_cosines() -> None:
    """A count sketch of width W errs by about 1 / sqrt(W); five of these hold 100 pairs."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(1, 4, 16, 16))
    wkv = (base + rng.normal(size=(15, 4, 16, 16))).astype(np.float32)
    whole, short = vectors(wkv, None), vectors(wkv, 512)
    assert short.shape == (15, 512) and short.dtype == np.float32

    def cosines(x: np.ndarray) -> np.ndarray:
        x = x / np.linalg.norm(x, axis=-1, keepdims=True)
        return x @ x.T

    assert np.abs(cosines(whole) - cosines(short)).max() < 5 / np.sqrt(512)
    assert not np.array_equal(short[0], short[1])


def test_a_states_vector_does_not_depend_on_the_batch(
    model: RWKV, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.encode_states(TEXTS, [2, 0], 100, prompt="say {text}", normalize=True)
    monkeypatch.setattr(rwkvsts.running, "AT_A_TIME", 1)
    together = model.encode_states(TEXTS, [2, 0], 100, prompt="say {text}", normalize=True)
    assert together.tobytes() == expected.tobytes()
    for row, text in zip(expected, TEXTS, strict=True):
        alone = model.encode_states(text, [2, 0], 100, prompt="say {text}", normalize=True)
        assert alone.tobytes() == row.tobytes()
    with pytest.raises(ValueError, match=r'"final" has no state: name one of layers 0 \.\. 2'):
        model.encode_states(TEXTS, "final")
    with pytest.raises(ValueError, match=r"width=0"):
        model.encode_states(TEXTS, 0, width=0)


# ---- norms ---------------------------------------------------------------------------------------


def test_norms_by_position(tmp_path: Path) -> None:
    weights = random_weights(31, L=3, V=256)
    m = load(tmp_path, weights, tokenizer="bytes", dtype="float32")
    found = m.norms(TEXTS, [0, 2, "final"], positions=5)
    assert found.shape == (5, 3, 5) and np.isnan(found[0, :, 3:]).all()
    for row, text in zip(found, TEXTS, strict=True):
        ids = list(text.encode())[:5]
        hidden = reference.forward(weights, ids)[0][[0, 2, 3]]
        expected = np.linalg.norm(hidden, axis=-1)
        np.testing.assert_allclose(row[:, : len(ids)], expected, rtol=1e-4)
