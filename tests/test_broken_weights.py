"""Files in place of weights, and weights that no training left: refused, or read and said."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from makecheckpoint import (
    Stored,
    bf16,
    hf_names,
    safetensors_bytes,
    torch_pickle,
    torch_zip,
    write_safetensors,
)
from tinymodel import load, random_ids, random_weights

from rwkvsts import RWKV6, CheckpointError
from rwkvsts.files.checkpoint import open_checkpoint
from rwkvsts.files.hub import resolve

TEXTS = {
    "page": (
        b"<!DOCTYPE html>\n<html><head><title>RWKV at main</title></head></html>\n",
        "a web page",
    ),
    "page in capitals": (b"\n <HTML><BODY>404</BODY></HTML>", "a web page"),
    "answer": (b"Entry not found", "a text, not weights: 'Entry not found'"),
    "json": (b'{"error":"Repository not found"}', "a text, not weights"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
}


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
@pytest.mark.parametrize("case", TEXTS)
def test_a_text_in_place_of_weights_is_named(tmp_path: Path, name: str, case: str) -> None:
    content, words = TEXTS[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        RWKV6.from_pretrained(tmp_path / name, device="cpu", tokenizer=None)
    assert str(caught.value).count(str(tmp_path)) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_pipe_is_refused_without_waiting(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match="a regular file, found a pipe or a device"):
        RWKV6.from_pretrained(tmp_path, device="cpu", tokenizer=None)


@pytest.mark.parametrize("names", [dict, hf_names])
def test_a_file_that_is_zero_from_some_byte_on_is_refused(tmp_path: Path, names: type) -> None:
    """Whatever the byte: what is zero throughout is refused, in every naming."""
    write_safetensors(tmp_path / "x.safetensors", names(random_weights(L=2)))
    whole = (tmp_path / "x.safetensors").read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for share in (0.0, 0.3, 0.6, 0.9):
        cut = start + int(share * (len(whole) - start))
        (tmp_path / "x.safetensors").write_bytes(whole[:cut] + bytes(len(whole) - cut))
        with pytest.raises(CheckpointError, match="zeros throughout.*broke off"):
            RWKV6.from_pretrained(tmp_path, device="cpu", tokenizer=None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name", ["emb.weight", "blocks.1.ln2.weight", "blocks.0.att.key.weight", "ln_out.weight"]
)
def test_a_weight_of_zeros_is_named(tmp_path: Path, name: str, dtype: str) -> None:
    weights = random_weights(L=2)
    weights[name] = -0.0 * weights[name]
    if dtype == "bfloat16":
        weights = {n: bf16(array) for n, array in weights.items()}
    with pytest.raises(CheckpointError, match=f"'{name}': expected numbers.*found zeros"):
        load(tmp_path, weights)


def test_zeros_that_training_starts_from_are_weights(tmp_path: Path) -> None:
    """A bias, a low rank, a mix, and a weight with one number in its last place."""
    weights = random_weights(L=1)
    for name in ("blocks.0.ln1.bias", "blocks.0.att.time_maa_w1", "blocks.0.att.time_maa_x"):
        weights[name] = np.zeros_like(weights[name])
    weights["blocks.0.att.output.weight"][:] = 0
    weights["blocks.0.att.output.weight"][-1, -1] = 1
    assert np.isfinite(load(tmp_path, weights).encode_ids(random_ids(1, [5]), layers=0)).all()


def test_another_model_is_named_with_its_path_once(tmp_path: Path) -> None:
    weights = random_weights(L=1)
    del weights["blocks.0.ln1.weight"]
    with pytest.raises(CheckpointError, match=r"ln1\.weight is missing") as caught:
        load(tmp_path, weights)
    assert str(caught.value).count(str(tmp_path)) == 1


def test_many_tensors_of_one_storage_are_counted_first(tmp_path: Path) -> None:
    shared = Stored("F32", "0", 10_000, 0, (100, 100), (100, 1))
    pickled = torch_pickle({f"blocks.{i}.att.key.weight": shared for i in range(60)})
    torch_zip(tmp_path / "x.pth", pickled, {"0": bytes(40_000)})
    with pytest.raises(CheckpointError, match=r"60 that share storages and come to 2400000 bytes"):
        open_checkpoint(resolve(tmp_path / "x.pth"))


def test_a_tied_head_is_no_claim(tmp_path: Path) -> None:
    tied = {
        name: Stored("F32", "0", 1024, 0, (32, 32), (32, 1))
        for name in ("emb.weight", "head.weight")
    }
    torch_zip(tmp_path / "x.pth", torch_pickle(tied), {"0": np.ones(1024, np.float32).tobytes()})
    with open_checkpoint(resolve(tmp_path / "x.pth")) as checkpoint:
        assert checkpoint.read("head.weight").tolist() == np.ones((32, 32)).tolist()


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model.rwkv.", "student.", "net.llm."],
)
def test_what_wrappers_put_before_names_is_dropped(tmp_path: Path, prefix: str) -> None:
    weights, ids = random_weights(L=1), random_ids(1, [5, 3])
    expected = load(tmp_path, weights).encode_ids(ids, layers=0).tobytes()
    wrapped = {prefix + name: array for name, array in weights.items()}
    assert load(tmp_path, wrapped).encode_ids(ids, layers=0).tobytes() == expected
    compiled = {n.replace("blocks.0.", "blocks.0._orig_mod."): a for n, a in weights.items()}
    assert load(tmp_path, compiled).encode_ids(ids, layers=0).tobytes() == expected


def test_two_models_under_two_names_are_never_chosen_from(tmp_path: Path) -> None:
    both = {p + n: a for p in ("student.", "teacher.") for n, a in random_weights(L=1).items()}
    with pytest.raises(CheckpointError, match=r"one model, found 2, .* with student\., teach"):
        load(tmp_path, both)


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        ("att.time_state", "the states of state tuning alone. Give the plain model"),
        ("att.key.lora_A", "LoRA weights alone. Merge them into the model"),
    ],
)
def test_what_tuning_saves_alone_is_named(tmp_path: Path, leaf: str, words: str) -> None:
    part = {f"blocks.{i}.{leaf}": np.ones((2, 4), np.float32) for i in range(2)}
    with pytest.raises(CheckpointError, match=f"expected a model.*, found {words}"):
        load(tmp_path, part)


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        ("att.key.bone", "base weights alone, found LoRA weights or the like beside"),
        ("att.key.base_layer.weight", "Merge them into the base weights first"),
        ("att.key.weight.absmax", "what quantising leaves.*not quantised"),
        ("att.key.SCB", "what quantising leaves"),
        ("att.key.qweight", "what quantising leaves"),
        ("att.key.weight_scale", "what quantising leaves"),
        ("att.key.weight_mx", "what quantising leaves"),
    ],
)
def test_what_stands_beside_a_weight_is_named(tmp_path: Path, leaf: str, words: str) -> None:
    beside = {**random_weights(L=1), f"blocks.0.{leaf}": np.ones((2, 4), np.float32)}
    with pytest.raises(CheckpointError, match=f"'blocks.0.{leaf}': expected .*{words}"):
        load(tmp_path, beside)


def test_a_quantised_head_is_not_needed(tmp_path: Path) -> None:
    beside = {**random_weights(L=1), "head.weight.absmax": np.ones((2, 4), np.float32)}
    load(tmp_path, beside).encode_ids([[1]], layers=0)


def test_a_header_of_more_tensors_than_any_model_has(tmp_path: Path) -> None:
    tensor = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes({f"t{i}": tensor for i in range(100_001)}, b""))
    with pytest.raises(CheckpointError, match="at most 100000 tensors, found 100001"):
        open_checkpoint(resolve(path))
