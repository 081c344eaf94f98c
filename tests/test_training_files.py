"""What training programs save beside or around the weights: read where it is certain, else named.

Nothing of it is ever built: pickles of torch's own making need torch, all others are made here.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makecheckpoint import (
    Stored,
    op_global,
    op_tensor,
    op_value,
    safetensors_bytes,
    torch_zip,
    write_torch,
)

from rwkvsts.errors import CheckpointError
from rwkvsts.files import layout, picklewalk, torchfile
from rwkvsts.files.checkpoint import Checkpoint, open_checkpoint
from rwkvsts.files.hub import resolve

VALUES = np.array([1.5, -2.0, 3.25, 4.0], np.float32)
TENSOR = op_tensor(Stored("F32", "0", 4, 0, (4,), (1,)))


def opened(path: Path) -> Checkpoint:
    return open_checkpoint(resolve(path))


def mapping(**entries: bytes) -> bytes:
    """Opcodes of a dict; `__` in a name is a dot."""
    items = (op_value(name.replace("__", ".")) + code for name, code in entries.items())
    return b"}(" + b"".join(items) + b"u"


def write(path: Path, top: bytes) -> Path:
    torch_zip(path, b"\x80\x02" + top + b".", {"0": VALUES.tobytes()})
    return path


WEIGHTS = mapping(emb__weight=TENSOR)
OPTIMIZER = mapping(
    state=b"}K\x00" + mapping(step=TENSOR, exp_avg=TENSOR) + b"s",  # keyed by a number
    param_groups=b"]" + mapping(lr=op_value(0.1), betas=op_value((0.9, 0.99))) + b"a",
)
NUMPY_FLOAT = (
    op_global("numpy._core.multiarray scalar")
    + op_global("numpy dtype")
    + op_value(("f8", False, True))
    + b"R"
    + op_value((3, "<", None))
    + b"b"
    + op_global("_codecs encode")
    + op_value(("abc", "latin1"))
    + b"R\x86R"
)
READABLE = {
    "state_dict inside": mapping(state_dict=WEIGHTS),
    "model and epoch": mapping(epoch=op_value(3), model=WEIGHTS),
    "model and optimizer": mapping(model=WEIGHTS, optimizer=OPTIMIZER),
    "two levels deep": mapping(checkpoint=mapping(module=WEIGHTS)),
    "in a list": b"](" + WEIGHTS + OPTIMIZER + b"e",
    "numbers and texts beside": mapping(
        emb__weight=TENSOR, step=op_value(7), note=op_value("hello"), loss=op_value(0.5)
    ),
    "numpy scalar beside": mapping(emb__weight=TENSOR, loss=NUMPY_FLOAT),
    "list beside": mapping(emb__weight=TENSOR, sizes=b"](K\x01K\x02e"),
    "set beside": mapping(emb__weight=TENSOR, seen=b"\x8f(K\x01\x90"),
    "options beside": mapping(
        emb__weight=TENSOR,
        args=op_global("argparse Namespace") + b")\x81}" + op_value("lr") + b"K\x01sb",
    ),
    "dtype and device beside": mapping(
        emb__weight=TENSOR,
        dtype=op_global("torch float8_e4m3fn"),
        device=op_global("torch device") + op_value(("cpu",)) + b"R",
    ),
    "tuple as a key": b"}" + op_value((1, 2)) + b"K\x01s(" + op_value("emb.weight") + TENSOR + b"u",
    "attributes of a tensor": mapping(emb__weight=TENSOR + mapping(foo=op_value(1)) + b"b"),
    "tensor with a state": mapping(
        emb__weight=op_global("torch._tensor _rebuild_from_type_v2")
        + b"("
        + TENSOR.removesuffix(b"R").replace(
            b"_rebuild_tensor_v2\n(", b"_rebuild_tensor_v2\n" + op_global("torch Tensor") + b"(", 1
        )
        + b"}tR"
    ),
}


@pytest.mark.parametrize("case", READABLE)
def test_the_one_state_dict_is_read(tmp_path: Path, case: str) -> None:
    with opened(write(tmp_path / "x.pth", READABLE[case])) as checkpoint:
        assert list(checkpoint.tensors) == ["emb.weight"]
        assert checkpoint.read("emb.weight").tobytes() == VALUES.tobytes()


REFUSED = {
    "two state_dicts": (
        mapping(model=WEIGHTS, ema=WEIGHTS),
        ["a training checkpoint with 2", "['model']", "['ema']", "torch.save(checkpoint[KEY]"],
    ),
    "LoRA beside the model": (
        mapping(model=WEIGHTS, lora=mapping(blocks__0__att__key__lora_A=TENSOR)),
        ["a training checkpoint with 2", "['lora']"],
    ),
    "no tensors": (mapping(epoch=op_value(3)), ["a mapping of names to tensors", "'epoch'"]),
    "NumPy arrays": (mapping(emb__weight=NUMPY_FLOAT), ["no tensor under the keys 'emb.weight'"]),
    "converted by the rwkv package": (
        mapping(emb__weight=TENSOR, _strategy=op_value("cpu fp32")),
        ["one that the rwkv package converted", "Give the .pth"],
    ),
    "sparse": (
        mapping(emb__weight=op_global("torch._utils _rebuild_sparse_tensor")),
        ["tensor.to_dense()"],
    ),
    "quantised by torch": (
        mapping(emb__weight=op_global("torch._utils _rebuild_qtensor")),
        ["the checkpoint that is not quantised"],
    ),
    "a list": (b"]", ["a mapping of names to tensors"]),
    "a class of the trainer": (
        mapping(model=WEIGHTS, config=op_global("trainer Config") + b")\x81"),
        ["'trainer Config'", "an object of a program", "may be hostile", "Nothing in it was run"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_certain_is_refused_by_name(tmp_path: Path, case: str) -> None:
    top, words = REFUSED[case]
    with pytest.raises(CheckpointError) as caught:
        opened(write(tmp_path / "x.pth", top))
    for word in words:
        assert word in str(caught.value)


def test_only_what_could_run_is_called_hostile(tmp_path: Path) -> None:
    quantized = op_global("torch._utils _rebuild_qtensor")
    for top in (mapping(a=quantized), b"\x88\xff", b"]" + op_value(1) + b"s"):
        with pytest.raises(CheckpointError) as caught:
            opened(write(tmp_path / "x.pth", top))
        assert "hostile" not in str(caught.value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickle(protocol: int) -> None:
    """Values of all kinds in Python's own pickles; torch.save passes the protocol on to it."""
    values: dict[str, Any] = {
        "text": "h\u00e9" * 200,
        "numbers": [1, -1, 255, 65535, 2**40, -(2**70), 0.5, True, None],
        "nested": {"a": ({"b": ()},)},
        "again": "h\u00e9",
    }
    assert picklewalk.walk(pickle.dumps(values, protocol), "here") == values
    beside = {"bytes": b"abc" * 100, "set": {1, 2}, "frozen": frozenset([3])}
    found = picklewalk.walk(pickle.dumps(beside, protocol), "here")
    assert isinstance(found, dict) and list(found) == list(beside)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols_of_torch(tmp_path: Path, protocol: int) -> None:
    torch = pytest.importorskip("torch", reason="compares with what torch itself writes")
    weights = {"emb.weight": torch.arange(12.0).view(3, 4), "ln.bias": torch.ones(4).bfloat16()}
    parameter = torch.nn.Parameter(torch.arange(4.0))
    parameter.note = "an attribute"
    extra = {
        "f8.weight": torch.zeros(4).to(torch.float8_e4m3fn),
        "u16": torch.zeros(4).to(torch.uint16),
    }
    torch.save(
        {**weights, "p.weight": parameter, **extra}, tmp_path / "x.pth", pickle_protocol=protocol
    )
    with opened(tmp_path / "x.pth") as checkpoint:
        assert checkpoint.read("emb.weight").tolist() == weights["emb.weight"].tolist()
        assert checkpoint.read("ln.bias").tolist() == [0x3F80] * 4
        assert checkpoint.read("p.weight").tolist() == [0, 1, 2, 3]
        assert checkpoint.tensors["f8.weight"].dtype == "F8_E4M3"
        with pytest.raises(CheckpointError, match="expected dtype F32, F16 or BF16, found F8_E4M3"):
            checkpoint.read("f8.weight")


def test_a_dtype_of_the_future_matters_only_where_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header = {
        "new": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]},
        "emb.weight": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]},
    }
    path.write_bytes(safetensors_bytes(header, b"ab" + VALUES[:1].tobytes()))
    with opened(path) as checkpoint:
        assert checkpoint.read("emb.weight").tolist() == [1.5]
        with pytest.raises(CheckpointError, match=r"'new': expected.*found F4\..*not quantised"):
            checkpoint.read("new")
    future = op_tensor(Stored("F32", "0", 4, 0, (4,), (1,)))
    future = future.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3")
    future = future.removesuffix(b"tR") + op_global("torch float4_e2m1fn_x2") + b"tR"
    write(tmp_path / "x.pth", mapping(emb__weight=TENSOR, new=future))
    with opened(tmp_path / "x.pth") as checkpoint:
        assert checkpoint.read("emb.weight").tobytes() == VALUES.tobytes()


class Dribble(io.FileIO):
    """A file of a network: a read gives a part of what was asked for, or fails once."""

    error: OSError | None = None

    def read(self, size: int = -1) -> bytes:
        return super().read(min(size, 7) if size >= 0 else size)

    def readinto(self, target: Any) -> int:
        if self.error is not None:
            raise self.error
        return super().readinto(memoryview(target)[:7])


def test_short_reads_are_not_damage(tmp_path: Path) -> None:
    write_torch(tmp_path / "x.pth", {"emb.weight": VALUES})
    with Dribble(tmp_path / "x.pth") as file:
        index = torchfile.read_index(file, tmp_path / "x.pth")
        read = layout.read_tensor(file, tmp_path / "x.pth", "emb.weight", index["emb.weight"])
    assert read.tobytes() == VALUES.tobytes()


def test_an_error_of_the_disk_is_not_damage(tmp_path: Path) -> None:
    write_torch(tmp_path / "x.pth", {"emb.weight": VALUES})
    with Dribble(tmp_path / "x.pth") as file, pytest.raises(OSError, match="cannot read") as caught:
        file.error = OSError(5, "Input/output error")
        torchfile.read_index(file, tmp_path / "x.pth")
    assert not isinstance(caught.value, CheckpointError)
    assert caught.value.filename == str(tmp_path / "x.pth")


def test_a_zip_of_other_things_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("RWKV-x060.pth", b"weights" * 100)
    with pytest.raises(CheckpointError, match=r"another zip, of 'RWKV-x060.pth'.*unpack it"):
        opened(tmp_path / "x.pth")


def test_a_torchscript_program_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("code/__torch__.py", "data.pkl", "constants.pkl"):
            archive.writestr(f"x/{name}", b"code" * 100)
    with pytest.raises(CheckpointError, match="found a TorchScript program"):
        opened(tmp_path / "x.pt")


def test_a_header_of_megabytes_is_read(tmp_path: Path) -> None:
    """A training's notes, or the names of very many tensors; the format permits 100 MB."""
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    header = {"__metadata__": {"log": "x" * (5 << 20)}, "emb.weight": entry}
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes(header, VALUES.tobytes()))
    with opened(tmp_path / "x.safetensors") as checkpoint:
        assert checkpoint.read("emb.weight").tobytes() == VALUES.tobytes()
