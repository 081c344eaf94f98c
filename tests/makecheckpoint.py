"""Writes weight files by hand, so that tests need no torch and can write what torch never would.

Arrays are float32 (F32), float16 (F16) or uint16 (BF16 bits, see `bf16`), named as BlinkDL does;
`hf_names` gives the Hugging Face spelling. Promises files that torch and safetensors accept, as
long as the caller passes what is valid.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]

DTYPES = {np.dtype("f4"): "F32", np.dtype("f2"): "F16", np.dtype("u2"): "BF16"}
STORAGES = {"F32": "Float", "F16": "Half", "BF16": "BFloat16", "F64": "Double"}


def bf16(values: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16, nearest even; its bits as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def hf_names(arrays: Arrays) -> dict[str, np.ndarray]:
    """The same arrays under their Hugging Face names."""
    parts = {"emb": "embeddings", "ln0": "pre_ln", "att": "attention", "ffn": "feed_forward"}
    return {
        name
        if name == "head.weight"
        else ".".join(["rwkv", *(parts.get(part, part) for part in name.split("."))]): array
        for name, array in arrays.items()
    }


def safetensors_bytes(header: object, data: bytes) -> bytes:
    """A safetensors file from any header, right or wrong; bytes are taken as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def write_safetensors(path: Path, arrays: Arrays) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in arrays.items():
        raw = array.tobytes()
        offsets = [len(data), len(data) + len(raw)]
        shape = list(array.shape)
        header[name] = {"dtype": DTYPES[array.dtype], "shape": shape, "data_offsets": offsets}
        data += raw
    path.write_bytes(safetensors_bytes(header, data))


@dataclass(frozen=True)
class Stored:
    """A tensor as torch's pickle describes it: a view of `numel` elements of storage `key`."""

    dtype: str
    key: str
    numel: int
    offset: int
    shape: Sequence[Any]
    strides: Sequence[Any]


def op_value(value: Any) -> bytes:
    """Opcodes of pickle protocol 2 that push a string, number, None or tuple."""
    if isinstance(value, str):
        text = value.encode()
        return b"X" + struct.pack("<I", len(text)) + text
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(raw)]) + raw
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    return b"(" + b"".join(op_value(item) for item in value) + b"t"


def op_global(name: str) -> bytes:
    """Push the global "module name"."""
    return b"c" + name.replace(" ", "\n").encode() + b"\n"


def op_tensor(tensor: Stored, *, parameter: bool = False) -> bytes:
    """Push a tensor, or a parameter that wraps it, as torch.save writes it."""
    kind = op_global(f"torch {STORAGES[tensor.dtype]}Storage")
    label = op_value("storage") + kind + op_value(tensor.key) + op_value("cpu")
    storage = b"(" + label + op_value(tensor.numel) + b"tQ"
    hooks = op_global("collections OrderedDict") + b")R"
    view = storage + b"".join(map(op_value, (tensor.offset, tensor.shape, tensor.strides, False)))
    built = op_global("torch._utils _rebuild_tensor_v2") + b"(" + view + hooks + b"tR"
    if not parameter:
        return built
    return op_global("torch._utils _rebuild_parameter") + built + b"\x88" + hooks + b"\x87R"


def torch_pickle(
    entries: Mapping[str, Stored | bytes], *, ordered: bool = False, parameter: bool = False
) -> bytes:
    """A pickled state_dict; an entry given as bytes is put in as opcodes."""
    top = op_global("collections OrderedDict") + b")R" if ordered else b"}"
    items = b"".join(
        op_value(name)
        + (entry if isinstance(entry, bytes) else op_tensor(entry, parameter=parameter))
        for name, entry in entries.items()
    )
    # A state_dict's one attribute, `_metadata`, follows its items.
    attributes = b"}" + op_value("_metadata") + b"}sb" if ordered else b""
    return b"\x80\x02" + top + b"q\x00(" + items + b"u" + attributes + b"."


def torch_zip(
    path: Path,
    pickled: bytes,
    storages: Mapping[str, bytes],
    *,
    root: str = "archive",
    byteorder: bytes = b"little",
    compression: int = zipfile.ZIP_STORED,
) -> None:
    """The zip around a pickle and its storages, each aligned to 64 bytes as torch does."""
    members = {"data.pkl": pickled, "byteorder": byteorder}
    members |= {f"data/{key}": raw for key, raw in storages.items()} | {"version": b"3\n"}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, raw in members.items():
            info = zipfile.ZipInfo(f"{root}/{name}")
            padding = -(archive.start_dir + 30 + len(info.filename) + 4) % 64
            info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
            archive.writestr(info, raw, compression)


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def write_torch(
    path: Path,
    arrays: Arrays,
    *,
    root: str = "archive",
    ordered: bool = False,
    parameter: bool = False,
) -> None:
    """A `.pth` or `pytorch_model.bin`: a dict or OrderedDict of tensors or parameters."""
    entries = {
        name: Stored(
            DTYPES[array.dtype], str(key), array.size, 0, array.shape, row_major(array.shape)
        )
        for key, (name, array) in enumerate(arrays.items())
    }
    pickled = torch_pickle(entries, ordered=ordered, parameter=parameter)
    storages = {str(key): array.tobytes() for key, array in enumerate(arrays.values())}
    torch_zip(path, pickled, storages, root=root)


def write_sharded(folder: Path, arrays: Arrays, suffix: str, shards: int = 2) -> Path:
    """Shards and their index as transformers writes them; suffix ".safetensors" or ".bin"."""
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    write = write_safetensors if suffix == ".safetensors" else write_torch
    names = list(arrays)
    weight_map = {}
    for shard in range(shards):
        file = f"{stem}-{shard + 1:05d}-of-{shards:05d}{suffix}"
        part = {name: arrays[name] for name in names[shard::shards]}
        write(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index
