"""What all embedders share, and what RWKV adds: opening by architecture, defaults, pickling."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from makecheckpoint import write_safetensors
from tinymodel import load, random_ids, random_weights

import rwkvsts
from rwkvsts import RWKV, RWKV6, CheckpointError, Embedder, device
from rwkvsts.embedder import Prompt, to_unit_length
from rwkvsts.opening import Opened


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    write_safetensors(tmp_path / "model.safetensors", random_weights(5, L=4, V=256))
    return tmp_path / "model.safetensors"


def opened(path: Path, **options: object) -> RWKV:
    return rwkvsts.load(path, **{"device": "cpu", "tokenizer": "bytes", **options})  # type: ignore[arg-type]


def test_load_gives_the_class_of_the_architecture(weights: Path) -> None:
    m = opened(weights)
    assert type(m) is RWKV6 and isinstance(m, Embedder)
    assert (m.architecture, m.name, m.width) == ("RWKV-6", "model.safetensors", 64)
    assert m.layers == (0, 1, 2, 3, "final")
    assert opened(weights, max_layer=1).layers == (0, 1)


def test_a_class_refuses_another_architecture(weights: Path) -> None:
    class Other(RWKV):
        architecture = "RWKV-9"

    with pytest.raises(CheckpointError, match=r"this is RWKV-6, not RWKV-9: open it with rwkvsts"):
        Other.from_pretrained(weights, device="cpu", tokenizer=None)


def test_the_default_layer_is_half_way_up(weights: Path) -> None:
    m = opened(weights)
    assert m.encode(["ab", "c"]).tobytes() == m.encode(["ab", "c"], layers=2).tobytes()
    ids = random_ids(1, [3, 4])
    assert m.encode_ids(ids).tobytes() == m.encode_ids(ids, layers=2).tobytes()
    shallow = opened(weights, max_layer=1)
    with pytest.raises(ValueError, match=r"default layer is 2, and max_layer=1 left"):
        shallow.encode("ab")
    enough = opened(weights, max_layer="default")
    assert enough.n_blocks == 3 < m.config.n_layer and enough.layers == (0, 1, 2)
    assert enough.encode(["ab", "c"]).tobytes() == m.encode(["ab", "c"]).tobytes()
    assert pickle.loads(pickle.dumps(enough)).n_blocks == 3


def test_prompts_in_pieces() -> None:
    assert Prompt.of(None) == Prompt.of("") == Prompt()
    assert Prompt.of("say ") == Prompt(before="say ")
    assert Prompt.of('say "{text}" now') == Prompt('say "', (), '" now')
    assert Prompt.of("{text}; {text}") == Prompt("", ("; ",), "")
    assert Prompt.of("a{text}b{text}c{text}d") == Prompt("a", ("b", "c"), "d")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_opened_again(weights: Path, copied: object) -> None:
    m = opened(weights, max_layer=2, dtype="float32", threads=1)
    again = copied(m)  # type: ignore[operator]
    assert again is not m and type(again) is type(m)
    assert repr(again).split(":")[1] == repr(m).split(":")[1]
    texts = ["one", "another text"]
    assert again.encode(texts, layers=[0, 2]).tobytes() == m.encode(texts, layers=[0, 2]).tobytes()
    assert len(pickle.dumps(m)) < 2000  # no weights


def test_a_pickle_finds_its_file_from_another_folder(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps(opened(Path(weights.name)))
    monkeypatch.chdir("/")
    assert pickle.loads(content).n_blocks == 4
    os.remove(weights)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        pickle.loads(content)


def test_the_bundled_model_pickles_by_its_name() -> None:
    m = rwkvsts.load("demo", device="cpu", max_layer=0)
    assert b"assets" not in pickle.dumps(m)
    assert pickle.loads(pickle.dumps(m)).source == "demo"


def test_a_token_does_not_travel(weights: Path) -> None:
    assert b"hf_secret" not in pickle.dumps(opened(weights, token="hf_secret"))


def test_a_model_without_a_source_says_why_it_cannot_be_copied(tmp_path: Path) -> None:
    core = load(tmp_path, random_weights(L=1))._core
    m = RWKV6(Opened(core, None, "float32", 1, None))
    with pytest.raises(TypeError, match=r"it was not opened from a source"):
        pickle.dumps(m)
    with pytest.raises(TypeError, match=r"Make it with from_pretrained"):
        copy.deepcopy(m)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:1 ", "CUDA"])
def test_device_names_that_mean_nothing(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected 'auto', 'cpu', 'cuda' or 'cuda:1'"):
        device.parse(name)


def test_a_cuda_device_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [device.parse(n) for n in ("auto", "cpu", "cuda", "cuda:0", "cuda:3")] == [
        *(None, None),
        *(0, 0, 3),
    ]
    asked = []

    def query(ordinal: int = 0) -> device.Cuda:
        asked.append(ordinal)
        return device.Cuda("made up", (8, 0) if ordinal else (7, 5), 1, 1)

    monkeypatch.setattr(device, "query_cuda", query)
    assert device.choose("cuda:1", "auto") == device.Choice(1, "bfloat16")
    assert device.choose("cuda", "auto") == device.Choice(0, "float16")
    assert device.choose("auto", "float32") == device.Choice(0, "float32")
    assert asked == [1, 0, 0]
    assert device.choose("cpu", "float32") == device.Choice(None, "float32")
    assert [device.Choice(n, "").device for n in (None, 0, 1)] == ["cpu", "cuda", "cuda:1"]


def test_rows_that_are_zero_stay_zero() -> None:
    rows = np.array([[3, 4], [0, 0]], np.float32)
    to_unit_length(rows)
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0]], rtol=1e-6)
