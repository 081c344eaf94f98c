"""The index of a `.safetensors` file: names, dtypes and places of its tensors.

Such a file is the length of a header (8 bytes, little-endian), the header (a JSON object) and the
tensors' bytes. The header is parsed here and not by the `safetensors` package: that one accepts a
name that occurs twice, serves tensors from a memory map whose pages stay resident, and has no
bfloat16 for NumPy.

Assumes nothing about the file. Promises that the tensors it lists cover the file's data exactly.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..errors import CheckpointError
from .layout import (
    ITEM_BYTES,
    Extent,
    TensorInfo,
    checked_sizes,
    count,
    read_exactly,
    refusal,
    shown,
    size_of,
)

# The format's own bound. A training's notes in it may take megabytes.
MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 100_000  # a model has some thousands; each of a hostile header's would cost time
DTYPE_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,19}")


class Stored(NamedTuple):
    """A tensor and how many bytes it takes; shape and dtype say so only of a known dtype."""

    extent: Extent
    size: int


def read_index(file: BinaryIO, path: Path) -> dict[str, Extent]:
    """Names and places of the tensors of an open safetensors file."""
    file_bytes = size_of(file)
    prefix = bytearray(8)
    read_exactly(file, path, 0, memoryview(prefix))
    header_bytes = int.from_bytes(prefix, "little")
    limit = min(MAX_HEADER_BYTES, file_bytes - 8)
    if header_bytes > limit:
        raise refusal(f"{path}: header", f"at most {limit} bytes", f"{header_bytes}")
    text = bytearray(header_bytes)
    read_exactly(file, path, 8, memoryview(text))
    header = _parse_header(bytes(text), f"{path}: header")
    if len(header) > MAX_TENSORS:
        raise refusal(f"{path}: header", f"at most {MAX_TENSORS} tensors", f"{len(header)}")
    data_start = 8 + header_bytes
    index = {
        name: _stored(entry, f"{path}: tensor {shown(name)}", data_start)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    _check_cover(index, path, data_start, file_bytes)
    return {name: stored.extent for name, stored in index.items()}


def _parse_header(text: bytes, where: str) -> dict[str, Any]:
    """The header's JSON object, with unique keys and no number but integers of sane length."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise refusal(where, "each name once", f"{shown(key)} twice")
            result[key] = value
        return result

    def integer(digits: str) -> int:
        if len(digits) > 20:
            raise refusal(where, "numbers below 2**64", f"one of {len(digits)} digits")
        return int(digits)

    def no_number(digits: str) -> float:
        raise refusal(where, "integers", shown(digits))

    try:
        header = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=unique,
            parse_int=integer,
            parse_float=no_number,
            parse_constant=no_number,
        )
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise refusal(where, "JSON text", str(error)[:100]) from error
    if not isinstance(header, dict):
        raise refusal(where, "a JSON object", shown(header))
    return header


def _stored(entry: Any, where: str, data_start: int) -> Stored:
    """One header entry, checked in itself: dtype, shape and offsets must say the same size."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise refusal(where, "the fields dtype, shape and data_offsets", shown(entry))
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or not DTYPE_NAME.fullmatch(dtype):
        raise refusal(where, "the name of a dtype, as F32", shown(dtype))
    shape = checked_sizes(entry["shape"], where, "a shape")
    offsets = checked_sizes(entry["data_offsets"], where, "data_offsets")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refusal(where, "the offsets of its first byte and its end", f"{list(offsets)}")
    elements, stored = count(shape, where), offsets[1] - offsets[0]
    # A dtype newer than this table cannot be read, but may lie beside what can.
    if dtype in ITEM_BYTES and stored != elements * ITEM_BYTES[dtype]:
        size = elements * ITEM_BYTES[dtype]
        raise refusal(where, f"{size} bytes for {dtype} {list(shape)}", f"offsets {list(offsets)}")
    return Stored(Extent(TensorInfo(dtype, shape), data_start + offsets[0]), stored)


def _check_cover(index: dict[str, Stored], path: Path, data_start: int, file_bytes: int) -> None:
    """The tensors must cover the data area exactly: no overlap, no hole, nothing after the last."""
    end = data_start
    for name, (extent, size) in sorted(index.items(), key=_start_and_size):
        if extent.start != end:
            raise refusal(
                f"{path}: tensor {shown(name)}",
                f"it at offset {end - data_start}, where the tensor before it ends",
                f"offset {extent.start - data_start}",
            )
        end += size
    if end != file_bytes:
        raise refusal(str(path), f"a file of {end} bytes", f"{file_bytes}")


def _start_and_size(item: tuple[str, Stored]) -> tuple[int, int]:
    return item[1].extent.start, item[1].size
