"""Bad input to the model gets one clear exception, and the model goes on working after it."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makecheckpoint import write_safetensors
from tinymodel import load, random_ids, random_weights

import rwkvsts
from rwkvsts import RWKV6, CheckpointError, DeviceError, State, _core

Weights = dict[str, np.ndarray]


def renamed(weights: Weights, old: str, new: str) -> Weights:
    return {name.replace(old, new): array for name, array in weights.items()}


def without(weights: Weights, *parts: str) -> Weights:
    return {n: a for n, a in weights.items() if not any(part in n for part in parts)}


OTHERS = {
    "RWKV-7": lambda w: {
        **without(w, "time_maa"),
        "blocks.0.att.r_k": w["blocks.0.att.time_faaaa"],
    },
    "x060a": lambda w: {**without(w, "gate"), "blocks.0.att.gate_w1": w["ln_out.bias"]},
    "x060b or x060c": lambda w: {
        **without(w, "gate"),
        "blocks.0.att.time_maa_rkvw_w1": w["ln_out.bias"],
    },
    "RWKV-5.1 or 5.2": lambda w: without(w, "time_maa"),
    "RWKV-5.0": lambda w: without(w, "time_maa", "gate"),
    "RWKV-4": lambda w: renamed(without(w, "ln_x", "gate", "_w1", "_w2"), "time_maa", "time_mix"),
    "no RWKV model": lambda w: {"transformer.wte.weight": w["emb.weight"]},
    "state-tuned": lambda w: {**w, "blocks.1.att.time_state": np.zeros((1, 64, 64), np.float32)},
}


@pytest.mark.parametrize("family", OTHERS)
def test_other_models_are_named(tmp_path: Path, family: str) -> None:
    with pytest.raises(CheckpointError, match=family):
        load(tmp_path, OTHERS[family](random_weights()))


MISSING = ["emb.weight", "blocks.0.ln0.bias", "blocks.2.ffn.value.weight", "ln_out.weight"]


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{name} is missing"):
        load(tmp_path, without(random_weights(), name))


def test_an_embedding_without_dimensions_is_refused(tmp_path: Path) -> None:
    weights = {**random_weights(), "emb.weight": np.zeros((), np.float32)}
    with pytest.raises(CheckpointError, match=r"emb\.weight has 0 dimensions: expected 2"):
        load(tmp_path, weights)


def test_another_dimension_is_refused(tmp_path: Path) -> None:
    weights = random_weights()
    weights["blocks.1.ln1.weight"] = np.ones((64, 2), np.float32)
    with pytest.raises(CheckpointError, match=r"shape \[64, 2\]: expected \[64\]"):
        load(tmp_path, weights)


def test_five_dimensions_are_refused(tmp_path: Path) -> None:
    weights = random_weights()
    weights["blocks.1.ln1.weight"] = weights["blocks.1.ln1.weight"].reshape(1, 1, 1, 1, -1)
    with pytest.raises(CheckpointError, match="has 5 dimensions"):
        load(tmp_path, weights)


def test_an_endless_name_does_not_hide_the_reason(tmp_path: Path) -> None:
    weights = {**random_weights(), "é" * 400 + ".att.time_state": np.zeros(1, np.float32)}
    with pytest.raises(CheckpointError, match="éé.*state-tuned"):
        load(tmp_path, weights)


STRAYS = {
    "blocks.0.att.key.lora_A": "Merge them into the base weights first",
    "blocks.1.att.key.bias": "RWKV-6 has no such tensor",
    "blocks.2.ffn.experts.0.weight": "RWKV-6 has no such tensor",
    "emb.lora_A": "Merge them into the base weights first",
    "lora.blocks.0.att.key.A": "Merge them into the base weights first",
    "adapter.0.down.weight": "Merge them into the base weights first",
    "emb.bias": "RWKV-6 has no such tensor",
    "emb_norm.weight": "RWKV-6 has no such tensor",
    "pos_emb_x": "RWKV-6 has no such tensor",
    "ln0.weight": "RWKV-6 has no such tensor",
    "ln_out.scale": "RWKV-6 has no such tensor",
}


@pytest.mark.parametrize("name", STRAYS)
def test_a_tensor_that_would_be_ignored_is_refused(tmp_path: Path, name: str) -> None:
    weights = {**random_weights(), name: np.ones((4, 4), np.float32)}
    with pytest.raises(CheckpointError, match=rf"{name}'?: .*{STRAYS[name]}"):
        load(tmp_path, weights)


@pytest.mark.parametrize("name", ["head.lora_A", "head_q.weight", "extra", "optimizer.step"])
def test_a_tensor_that_the_stream_does_not_need_is_ignored(tmp_path: Path, name: str) -> None:
    weights = random_weights()
    expected = load(tmp_path, weights).encode_ids([[1, 2]], layers="final").tobytes()
    m = load(tmp_path, {**weights, name: np.ones((4, 4), np.float32)})
    assert m.encode_ids([[1, 2]], layers="final").tobytes() == expected


def test_a_missing_block_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"blocks\.1\.ln1\.weight is missing"):
        load(tmp_path, without(random_weights(), "blocks.1."))


WRONG = {
    "blocks.1.att.key.weight": r"shape \[64, 63\]: expected \[64, 64\]",
    "blocks.1.ffn.key.weight": r"shape \[96, 63\]: expected \[96, 64\]",
    "blocks.2.att.time_maa_w1": r"shape \[64, 39\]: expected \[64, 40\]",
    "blocks.1.att.time_decay": r"shape \[1, 1, 63\]: expected \[64\]",
    "blocks.0.att.time_faaaa": r"time_faaaa has shape \[1, 63\]: expected a product of 64",
    "blocks.2.att.time_maa_w2": r"shape \[5, 8, 63\]: expected \[5, 8, 64\]",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_shape_is_told(tmp_path: Path, name: str) -> None:
    weights = random_weights()
    weights[name] = np.ascontiguousarray(weights[name][..., :-1])
    with pytest.raises(CheckpointError, match=WRONG[name]):
        load(tmp_path, weights)


def test_a_transposed_matrix_is_refused(tmp_path: Path) -> None:
    weights = random_weights()
    name = "blocks.1.ffn.value.weight"
    weights[name] = np.ascontiguousarray(weights[name].T)
    with pytest.raises(CheckpointError, match=r"shape \[96, 64\]: expected \[64, 96\]"):
        load(tmp_path, weights)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float, dtype: str) -> None:
    weights = random_weights()
    weights["blocks.1.att.output.weight"][3, 5] = value
    where = r"blocks\.1\.att\.output\.weight holds NaN or infinity at element 197"
    with pytest.raises(CheckpointError, match=where):
        load(tmp_path, weights, dtype=dtype)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_layer": 3}, r"layer 3 asked for: the checkpoint has layers 0 \.\. 2"),
        ({"max_layer": -1}, r"max_layer=-1"),
        ({"max_layer": 2**40}, r"max_layer=1099511627776: expected 0 \.\. 4095"),
        ({"threads": -1}, r"threads=-1: expected 1 \.\. 1024"),
        ({"device_memory": -1}, r"device_memory=-1: expected 0"),
        ({"dtype": "float16"}, r"^dtype float16 on a CPU"),
        ({"dtype": "int4"}, r"dtype='int4'"),
        ({"device": "tpu"}, r"device='tpu'"),
        ({"tokenizer": "bert"}, r"bert"),
        ({"instruction_set": "mmx"}, r"^instruction_set='mmx': expected portable"),
        ({"tokenizer": "world"}, r"vocab"),
    ],
)
def test_options_that_do_not_exist(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises((ValueError, DeviceError), match=message):
        load(tmp_path, random_weights(), **options)


@pytest.fixture
def tiny(tmp_path: Path) -> RWKV6:
    return load(tmp_path, random_weights(V=256), tokenizer="bytes", max_layer=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": [[1], [], [2]]}, r"ids\[1\] is empty"),
        ({"ids": [[1], [2, 256]]}, r"ids\[1\] holds 2 \.\. 256: expected 0 \.\. 255"),
        ({"ids": [[1], [2, -3]]}, r"ids\[1\] holds -3 \.\. 2"),
        ({"ids": [[2**40]]}, r"ids\[0\] holds 1099511627776"),
        ({"ids": [[1]] * 9000 + [[256]]}, r"ids\[9000\] holds 256"),
        ({"layers": []}, r"layers is empty"),
        ({"layers": [0, 2]}, r"layer 2: this model holds layers 0 \.\. 1"),
        ({"layers": -1}, r"layer -1"),
        ({"layers": "final"}, r"layer 'final'"),
        ({"layers": True}, r"layer True"),
        ({"pooling": "cls"}, r"pooling='cls'"),
        ({"batch_tokens": 0}, r"batch_tokens=0"),
        ({"batch_tokens": 2**40}, r"batch_tokens=1099511627776: expected 1 \.\. 16777216"),
        ({"max_length": 0}, r"max_length=0"),
        ({"out": np.zeros((1, 64))}, r"out is float64"),
        (
            {"out": np.zeros((2, 64), np.float32)},
            r"expected writable C-contiguous float32 of shape",
        ),
    ],
)
def test_arguments_of_encode(tiny: RWKV6, arguments: dict, message: str) -> None:
    good = {"ids": [[1, 2]], "layers": 1}
    with pytest.raises(ValueError, match=message):
        tiny.encode_ids(**{**good, **arguments})
    assert np.isfinite(tiny.encode_ids(**good)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": [1, 2]}, r"ids\[0\]: expected a list of integers"),
        ({"ids": [[1], [2, [3]]]}, r"ids\[1\]: expected a list of integers"),
        ({"layers": 1.0}, r"layers=1\.0"),
        ({"out": [0.0] * 64}, r"out is list"),
        ({"state": [1, 2, 3]}, r"a state is a tuple \(att_x, ffn_x, wkv\): found list"),
        ({"state": (1, 2)}, r"a state is"),
    ],
)
def test_arguments_of_another_type(tiny: RWKV6, arguments: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        tiny.encode_ids(**{"ids": [[1, 2]], "layers": 1, **arguments})


def test_a_state_of_another_dtype_is_refused(tiny: RWKV6) -> None:
    state = State(*(array.astype(np.float64) for array in tiny.state([1])))
    with pytest.raises(ValueError, match="att_x must be a C-contiguous float32 array"):
        tiny.encode_ids([[1]], layers=0, state=state)


@pytest.mark.parametrize(
    ("ids", "start", "layer", "message"),
    [
        ([1, 256], [0, 2], 0, r"token 1 of sequence 0 is 256: expected 0 \.\. 255"),
        ([-1], [0, 1], 0, r"token 0 of sequence 0 is -1"),
        ([1], [0, 0, 1], 0, r"sequence 0 has 0 tokens"),
        ([1], [0, 2], 0, r"start must ascend"),
        ([1, 2, 3], [0, 2, 1, 3], 0, r"start must ascend"),
        ([1], [0, 1], 2, r"layer 2: this model holds layers 0 \.\. 1"),
        ([1], [0, 1], -1, r"layer -1"),
    ],
)
def test_the_core_refuses_by_itself(
    tiny: RWKV6, ids: list[int], start: list[int], layer: int, message: str
) -> None:
    """What Python refuses before it, in other words: memory is at stake."""
    out = np.zeros((len(start) - 1, 1, 64), np.float32)
    layers = np.array([layer], np.int32)
    with pytest.raises(ValueError, match=message):
        tiny._core.run(
            np.array(ids, np.int32), np.array(start), layers, 0, out, None, False, 0, None
        )


def test_the_core_takes_arrays_as_they_are(tiny: RWKV6) -> None:
    ids, start, layers = np.zeros(4, np.int32), np.array([0, 4]), np.zeros(1, np.int32)
    out = np.zeros((1, 1, 64), np.float32)
    frozen = out.copy()
    frozen.flags.writeable = False
    for wrong, message in (
        ((np.zeros(8, np.int32)[::2], start, layers, 0, out), r"ids must be a C-contiguous int32"),
        ((ids, start.astype(np.int32), layers, 0, out), r"start must be a C-contiguous int64"),
        ((ids, start, layers, 4, out), r"pooling be 0 \.\. 3"),
        ((ids, start, layers, 0, out[:, :, :63].copy()), r"shape \[1, 1, 64\]"),
        ((ids, start, layers, 0, frozen), r"out must be writable"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny._core.run(*wrong, None, False, 0, None)


def test_the_core_takes_each_tensor_once_and_only_its_own() -> None:
    weights = random_weights(L=2)
    core = _core.Model([(name, array.shape) for name, array in weights.items()], blocks=1)
    for name in ("ln_out.weight", "blocks.1.ln1.weight", "head.weight"):
        assert not core.wants(name)
        with pytest.raises(ValueError, match=f"{name} is not a tensor of this model of 1 blocks"):
            core.put(name, weights[name], "float32")
    core.put("emb.weight", weights["emb.weight"], "float32")
    with pytest.raises(ValueError, match=r"emb\.weight was given twice"):
        core.put("emb.weight", weights["emb.weight"], "float32")
    with pytest.raises(ValueError, match=r"ln0\.weight is missing"):
        core.seal()
    for name in filter(core.wants, weights.keys() - {"emb.weight"}):
        core.put(name, weights[name], "float32")
    core.seal()
    with pytest.raises(ValueError, match="sealed"):
        core.put("emb.weight", weights["emb.weight"], "float32")


def test_texts_that_are_none(tiny: RWKV6) -> None:
    with pytest.raises(ValueError, match=r"texts\[1\] is empty"):
        tiny.encode(["a", ""], layers=0)
    with pytest.raises(TypeError, match=r"texts\[1\] is float: expected str"):
        tiny.encode(["a", float("nan")], layers=0)  # an empty cell of a table
    with pytest.raises(TypeError, match=r"ids\[0\]"):
        tiny.encode_ids([[0.5]], layers=0)


def test_a_forced_instruction_set_decides_the_dtype(tmp_path: Path) -> None:
    """bfloat16 by default only where the instructions that were chosen multiply it."""
    assert load(tmp_path, random_weights(), instruction_set="portable").dtype == "float32"


def test_texts_need_a_tokenizer(tmp_path: Path) -> None:
    m = load(tmp_path, random_weights())
    with pytest.raises(ValueError, match="tokenizer=None"):
        m.encode("a", layers=0)


def test_cuda_that_is_not_there_says_what_is_missing(tmp_path: Path) -> None:
    try:
        load(tmp_path, random_weights(), device="cuda")
    except DeviceError as error:
        assert "cuda" in str(error).lower()
    else:
        pytest.skip("this machine has a CUDA device")


def test_interrupted_between_blocks(tmp_path: Path) -> None:
    """Ctrl-C stops a long run before its end, and the model is as good as before."""
    m = load(tmp_path, random_weights(L=2, C=128, F=512))
    few = random_ids(1, [400, 9])
    expected = m.encode_ids(few, layers=1).tobytes()
    S = 10_000  # of 400 tokens: seconds of work on the fastest processor
    ids, start = np.zeros(400 * S, np.int32), np.arange(0, 400 * S + 1, 400)
    layers, out = np.array([1], np.int32), np.full((S, 1, 128), np.nan, np.float32)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        m._core.run(ids, start, layers, 0, out, None, False, 0, None)
    assert np.isnan(out[-1]).all()
    assert m.encode_ids(few, layers=1).tobytes() == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_can_encode(tmp_path: Path) -> None:
    m = load(tmp_path, random_weights(L=2), threads=2)
    ids = random_ids(1, [9, 30])
    expected = m.encode_ids(ids, layers=1).tobytes()
    child = os.fork()
    if child == 0:
        os._exit(0 if m.encode_ids(ids, layers=1).tobytes() == expected else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0


def test_one_shard_alone_is_told(tmp_path: Path) -> None:
    """A missing tensor is not what is wrong with it."""
    shard = tmp_path / "model-00001-of-00003.safetensors"
    write_safetensors(shard, without(random_weights(), "blocks.1."))
    for source, words in (
        (shard, "is one of 3 shards: download all of them"),
        (tmp_path, "found 1 of 3 shards without one. Download model.safetensors.index.json"),
    ):
        with pytest.raises(CheckpointError, match=words):
            rwkvsts.load(source, device="cpu", tokenizer=None)


@pytest.mark.parametrize("source", [None, 3, b"demo", ["demo"]])
def test_a_source_of_another_type_is_told(source: Any) -> None:
    with pytest.raises(TypeError, match="source is .*: expected a path, a hub repository"):
        rwkvsts.load(source)


def test_a_link_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.pth").symlink_to("gone.pth")
    (tmp_path / "loop.pth").symlink_to("loop.pth")
    for name in ("m.pth", "loop.pth"):
        with pytest.raises(FileNotFoundError, match="found a link that leads nowhere"):
            rwkvsts.load(tmp_path / name)
