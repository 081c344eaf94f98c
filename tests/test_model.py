"""The forward pass end to end: against published logits, the float64 reference, and itself.

Every model here goes through a file and `from_pretrained`, as a user's does. float32 results must
agree with the reference to 1e-4 of a row's length: sums of at most 200 * 64 products at 6e-8 each,
over a few blocks, stay well below; a wrong term does not.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from makecheckpoint import bf16, hf_names, write_safetensors, write_torch
from tinymodel import error, load, random_ids, random_weights

from rwkvsts import RWKV6, State
from rwkvsts.batch import ahead

TOLERANCE = 1e-4
LENGTHS = [1, 2, 3, 17, 64, 65, 200, 31, 1, 128]
SIZES = {
    "head size 64": {"C": 128, "N": 64, "F": 448, "R": 32, "D": 64},
    "head size 8": {"C": 64, "N": 8, "F": 224, "R": 8, "D": 64},
    "odd ranks and widths": {"C": 72, "N": 24, "F": 101, "R": 5, "D": 7},
    "one head": {"C": 16, "N": 16, "F": 16, "R": 1, "D": 1},
}


def float32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


# ---- published logits ---------------------------------------------------------------------------


TINY = ["tiny6v0_1m_blinkdl_bf16.pth", "tiny6v0_1m_hf_bf16.bin", "tiny6v0_1m_hf_bf16.safetensors"]


@pytest.mark.parametrize("name", TINY)
def test_logits_of_the_tiny_model(shared: Path, name: str) -> None:
    """rwkv.cpp publishes 256 logits after the prompt '"in'; the head is applied here."""
    from rwkvsts.files.checkpoint import open_checkpoint
    from rwkvsts.files.hub import resolve

    path = shared / "rwkv" / name
    m = RWKV6.from_pretrained(path, device="cpu", dtype="float32", tokenizer="bytes")
    assert m.config.head_size == 8
    with open_checkpoint(resolve(path)) as checkpoint:
        head = float32(checkpoint.read("head.weight"))
    logits = head.astype(np.float64) @ m.encode('"in', layers="final", pooling="last")
    expected = np.fromfile(shared / "rwkv" / "expected-logits-6v0-1m.bin", "<f4")
    assert np.abs(logits - expected).max() < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_file_format_gives_the_same_bits(shared: Path, dtype: str) -> None:
    ids = random_ids(1, [3, 20, 90], V=256)
    options = {"device": "cpu", "dtype": dtype, "tokenizer": None}
    rows = [
        RWKV6.from_pretrained(shared / "rwkv" / name, **options).encode_ids(ids).tobytes()
        for name in TINY
    ]
    assert rows[0] == rows[1] == rows[2]


def test_every_file_format_gives_the_same_bits_on_made_weights(tmp_path: Path) -> None:
    weights = {name: bf16(a) for name, a in random_weights(L=2).items()}
    ids = random_ids(1, [3, 20, 90])
    write_torch(tmp_path / "a.pth", weights)
    write_torch(tmp_path / "b.bin", hf_names(weights))
    write_safetensors(tmp_path / "c.safetensors", hf_names(weights))
    write_safetensors(tmp_path / "d.safetensors", {n: float32(a) for n, a in weights.items()})
    rows = [
        RWKV6.from_pretrained(path, device="cpu", tokenizer=None).encode_ids(ids, [0, 1]).tobytes()
        for path in sorted(tmp_path.iterdir())
    ]
    assert len(set(rows)) == 1 and len(rows) == 4


# ---- the float64 reference ----------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_the_reference(tmp_path: Path, size: str) -> None:
    """Every layer, every pooling, ragged lengths 1 .. 200."""
    weights = random_weights(7, L=3, **SIZES[size])
    ids = random_ids(8, LENGTHS)
    hidden = [reference.forward(weights, sequence)[0] for sequence in ids]
    m = load(tmp_path, weights, dtype="float32")
    for pooling in ("mean", "last", "weighted", "max"):
        found = m.encode_ids(ids, layers=[0, 1, 2, "final"], pooling=pooling)
        expected = np.array([[reference.pool(x, pooling) for x in layers] for layers in hidden])
        assert found.shape == expected.shape and found.dtype == np.float32
        assert error(found, expected) < TOLERANCE, pooling


@pytest.mark.parametrize("size", SIZES)
def test_bfloat16_stays_close_to_the_reference(tmp_path: Path, size: str) -> None:
    """Weights that bfloat16 holds exactly: only the rounding of the products' inputs is left."""
    weights = {n: float32(bf16(a)) for n, a in random_weights(3, L=3, **SIZES[size]).items()}
    ids = random_ids(4, LENGTHS)
    found = load(tmp_path, weights, dtype="bfloat16").encode_ids(ids, layers=[0, 1, 2])
    hidden = [reference.forward(weights, sequence)[0] for sequence in ids]
    expected = np.array([[x.mean(0) for x in layers[:3]] for layers in hidden])
    cosine = (found * expected).sum(-1)
    cosine /= np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    assert cosine.min() > 0.9995


def test_very_strong_decay_and_large_keys_stay_finite(tmp_path: Path) -> None:
    """exp(w) overflows float32 from w = 88 on: the decay must be 0 then, never NaN."""
    weights = random_weights(5, L=2)
    for i in range(2):
        weights[f"blocks.{i}.att.time_decay"][..., ::2] = 100.0
        weights[f"blocks.{i}.ffn.key.weight"] *= 300
    ids = random_ids(6, [40])
    found = load(tmp_path, weights, dtype="float32").encode_ids(ids, layers=[0, 1])
    hidden = reference.forward(weights, ids[0])[0]
    assert error(found[0], hidden[:2].mean(1)) < TOLERANCE


# ---- states -------------------------------------------------------------------------------------


def test_state_after_a_prefix(tmp_path: Path) -> None:
    weights = random_weights(9, L=3, C=64, N=8)
    prefix, rest = random_ids(1, [13, 29])
    m = load(tmp_path, weights, dtype="float32")
    state = m.state(prefix)
    _, expected = reference.forward(weights, prefix)
    for found, wanted in zip(state, expected, strict=True):
        assert found.dtype == np.float32 and found.shape == wanted.shape
        assert np.abs(found - wanted).max() < TOLERANCE * np.abs(wanted).max()
    hidden = reference.forward(weights, rest, expected)[0]
    found = m.encode_ids([rest, rest], layers=[0, 2], state=state)
    assert error(found[0], hidden[[0, 2]].mean(1)) < TOLERANCE
    assert found[0].tobytes() == found[1].tobytes()


def test_a_prefix_computed_once_gives_the_bits_of_the_whole(tmp_path: Path) -> None:
    m = load(tmp_path, random_weights(2, L=2))
    whole = random_ids(3, [50])[0]
    expected = m.encode_ids([whole], layers=[0, 1], pooling="last")
    for cut in (1, 17, 49):
        state = m.state(whole[cut // 2 : cut], m.state(whole[: cut // 2]) if cut > 1 else None)
        found = m.encode_ids([whole[cut:]], layers=[0, 1], pooling="last", state=state)
        assert found.tobytes() == expected.tobytes(), cut


def test_a_prompt_surrounds_each_text(tmp_path: Path) -> None:
    m = load(tmp_path, random_weights(2, L=2, V=256), tokenizer="bytes")
    texts = ["one", "and another"]
    found = m.encode(texts, layers=1, pooling="last", prompt='say "{text}" in a word:')
    joined = [f'say "{text}" in a word:' for text in texts]
    assert found.tobytes() == m.encode(joined, layers=1, pooling="last").tobytes()
    found = m.encode(texts, layers=1, pooling="last", prompt="say ", max_length=2)
    assert found.tobytes() == m.encode(["say on", "say an"], layers=1, pooling="last").tobytes()


def test_states_of_many_sequences(tmp_path: Path) -> None:
    """More than leave the device at a time, cut across three passes and more."""
    weights = random_weights(2, L=2)
    m = load(tmp_path, weights, dtype="float32")
    lengths = [1, 40, 2, 7, 1, 1, 3, 90, *[1 + i % 4 for i in range(30)], 25]
    lists = random_ids(3, lengths)
    ids = np.concatenate(lists).astype(np.int32)
    start = np.cumsum([0, *lengths])
    given = m.state([7, 8, 9])
    for limit in (0, 1, 8, 33):
        for first in (None, given):
            out = np.empty((len(lists), 1, 64), np.float32)
            layer = np.array([0], np.int32)
            found = m._core.run(ids, start, layer, 0, out, first, True, limit, None)
            assert found is not None
            for i in (0, 1, 7, 15, 16, 17, len(lists) - 1):
                expected = m.state(lists[i], first)
                for name, array, wanted in zip(State._fields, found, expected, strict=True):
                    assert array[i].tobytes() == wanted.tobytes(), (limit, i, name)
            assert out[:, 0].tobytes() == m.encode_ids(lists, 0, state=first).tobytes(), limit


def test_states_and_embeddings_in_turn_share_a_session(tmp_path: Path) -> None:
    """Opening one for each call would cost more than the call."""
    m = load(tmp_path, random_weights(2, L=2))
    held = set()
    for _ in range(3):
        m.encode_ids([[1, 2], [3]], [0, 1], state=m.state([4, 5]))
        held.add(m.memory()["workspace"])
        m.state([6])
        held.add(m.memory()["workspace"])
    assert len(held) == 1


def test_a_state_prints_its_shapes(tmp_path: Path) -> None:
    state = load(tmp_path, random_weights(2, L=2)).state([1, 2])
    assert repr(state).startswith("<State att_x (2, ") and len(repr(state)) < 100


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    m = load(tmp_path, random_weights(2, L=2))
    state = m.state([1, 2])
    wrong = State(state.att_x, state.ffn_x, state.wkv[:1])
    shapes = r"wkv has shape \(1, 1, 64, 64\): expected \(2, 1, 64, 64\)"
    with pytest.raises(ValueError, match=shapes):
        m.encode_ids([[1]], layers=1, state=wrong)


# ---- same text, same bits -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", ["head size 64", "odd ranks and widths"])
def test_bits_do_not_depend_on_the_batch(tmp_path: Path, dtype: str, size: str) -> None:
    """Batch mates, order, pass size (sequences cut across passes) and threads."""
    rng = np.random.default_rng(0)
    weights = random_weights(11, L=2, **SIZES[size])
    models = [load(tmp_path, weights, dtype=dtype, threads=n) for n in (1, 2, 3)]
    ids = random_ids(12, [1, 5, 200, 33, 2, 64, 7, 90])
    for pooling in ("mean", "last", "weighted", "max"):
        alone = [models[0].encode_ids([x], [0, 1, "final"], pooling).tobytes() for x in ids]
        for trial, limit in enumerate([1, 3, 16, 50, 257, 4096]):  # tokens of a pass
            most = 6 if limit < 16 else 16  # passes are many then
            order = rng.permutation(np.repeat(np.arange(len(ids)), 2))[: rng.integers(4, most)]
            m = models[trial % 3]
            rows = m.encode_ids([ids[i] for i in order], [0, 1, "final"], pooling, None, limit)
            for i, row in zip(order, rows, strict=True):
                assert row.tobytes() == alone[i], (pooling, trial, limit, i)


def test_layers_asked_together_or_alone_give_the_same_bits(tmp_path: Path) -> None:
    m = load(tmp_path, random_weights(1, L=3))
    ids = random_ids(2, [9, 30])
    both = m.encode_ids(ids, layers=[2, 0, 2, "final"])
    for column, layer in enumerate([2, 0, 2, "final"]):
        assert both[:, column].tobytes() == m.encode_ids(ids, layers=layer).tobytes()


def test_threads_may_share_a_model(tmp_path: Path) -> None:
    m = load(tmp_path, random_weights(1, L=2), threads=2)
    ids = random_ids(2, [9, 30, 70] * 4)
    expected = m.encode_ids(ids, layers=[0, 1]).tobytes()
    found: list[bytes] = []

    def work() -> None:
        for _ in range(5):
            found.append(m.encode_ids(ids, layers=[0, 1]).tobytes())

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 30 and set(found) == {expected}


# ---- the shape of a call ------------------------------------------------------------------------


def test_shapes_out_and_normalize(tmp_path: Path) -> None:
    m = load(tmp_path, random_weights(1, L=3, V=256), tokenizer="bytes")
    texts = ["a", "bc", "def"]
    assert m.encode(texts, layers=[0, 2]).shape == (3, 2, 64)
    assert m.encode(texts, layers=1).shape == (3, 64)
    assert m.encode("abc", layers=[0, 2]).shape == (2, 64)
    assert m.encode("abc", layers="final").shape == (64,)
    out = np.zeros((3, 2, 64), np.float32)
    assert m.encode(texts, layers=[0, 2], out=out, normalize=True) is out
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), 1, rtol=1e-6)
    plain = m.encode(texts, layers=[0, 2])
    np.testing.assert_allclose(out * np.linalg.norm(plain, axis=-1)[..., None], plain, rtol=1e-5)


def test_blocks_above_max_layer_are_not_loaded(tmp_path: Path) -> None:
    weights = random_weights(1, L=4)
    whole, part = load(tmp_path, weights), load(tmp_path, weights, max_layer=1)
    ids = random_ids(2, [9, 30])
    assert whole.encode_ids(ids, [0, 1]).tobytes() == part.encode_ids(ids, [0, 1]).tobytes()
    assert part.n_blocks == 2 and part.config.n_layer == 4
    assert part.memory()["weights"] < 0.6 * whole.memory()["weights"]
    memory = part.memory()
    assert memory["peak"] >= memory["weights"] + memory["workspace"] > memory["weights"]


def test_more_texts_than_are_prepared_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = load(tmp_path, random_weights(1, L=1, V=256), tokenizer="bytes")
    texts = [f"text {i}" * (1 + i % 5) for i in range(50)]
    expected = m.encode(texts, layers=0)
    monkeypatch.setattr("rwkvsts.batch.SLICE", 7)
    assert m.encode(texts, layers=0, show_progress=False).tobytes() == expected.tobytes()
    monkeypatch.setattr("rwkvsts.batch.LONG", 40)
    assert m.encode(texts, layers=0, show_progress=False).tobytes() == expected.tobytes()
    with pytest.raises(ValueError, match=r"texts\[31\] is empty"):
        m.encode([*texts[:31], "", *texts], layers=0)


def test_progress_is_told_by_tokens_within_a_text(tmp_path: Path) -> None:
    m = load(tmp_path, random_weights(1, L=2, V=256), tokenizer="bytes")
    told: list[tuple[int, int]] = []

    def progress(texts: int, tokens: int) -> None:
        told.append((texts, tokens))
        time.sleep(0.06)  # the core asks at most every 50 ms

    texts = ["a" * 1500, "b" * 500]
    found = m.encode(texts, layers=1, batch_tokens=1000, show_progress=progress)
    assert np.array_equal(found, m.encode(texts, layers=1))
    first, second = [(0, 0), (0, 500), (0, 1000)], [(0, 1000), (0, 1500), (0, 2000)]
    assert told == [*first, *second, (2, 2000), (2, 2000)]


def test_what_is_prepared_at_a_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the number of texts and by their characters, so that Ctrl-C need not wait for long."""
    monkeypatch.setattr("rwkvsts.batch.SLICE", 4)
    monkeypatch.setattr("rwkvsts.batch.LONG", 10)
    lengths = [1, 2, 3, 4, 1, 25, 30, 5, 5, 1, 1, 1, 1, 1]

    here = threading.get_ident()

    def prepare(texts: Any, first: int) -> Any:
        # Of two threads the caller's alone hears Ctrl-C while it prepares.
        assert (threading.get_ident() == here) == (len(texts[0]) > 10)
        return [len(text) for text in texts]

    found = list(ahead(["a" * n for n in lengths], prepare))
    slices = [[1, 2, 3, 4], [1], [25], [30], [5, 5], [1, 1, 1, 1], [1]]
    assert [part for _, part in found] == slices
    assert [first for first, _ in found] == [0, 4, 5, 6, 7, 9, 13]
    no_texts = [None, 3, np.zeros(()), list]
    assert [first for first, _ in ahead(no_texts * 2, lambda *_: None)] == [0, 4]  # type: ignore


def test_progress_counts_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    m = load(tmp_path, random_weights(1, L=1))
    ids = random_ids(2, [9, 30, 70])
    m.encode_ids(ids, layers=0)
    assert capsys.readouterr().err == ""
    m.encode_ids(ids, layers=0, show_progress=True)
    assert "3/3" in capsys.readouterr().err
