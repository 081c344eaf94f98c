"""Where a tensor lies in a weight file, and how it is read: what every file format shares.

Assumes a regular file that does not change while it is open. Promises that a tensor costs no more
memory than the file holds for it, that only its own bytes are read, and that whatever is wrong
becomes one `CheckpointError` that says what, where, expected, found and what to do.
"""

from __future__ import annotations

import math
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import CheckpointError

# Bytes per element. Those of READABLE can be read; the rest may lie in a file beside them.
ITEM_BYTES = {
    "F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "C64": 8, "C128": 16,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
}  # fmt: skip
READABLE: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}

# No RWKV tensor has more than 3 dimensions; 2**48 elements are beyond any machine, and keep
# products of a hostile shape from growing without bound.
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 2**48

# What a file says about its tensors: 0.2 MB for Finch 14B's 1714. Bounds the work of hostile files.
MAX_DESCRIPTION_BYTES = 4 * 2**20

QUANTISED = "These are no plain numbers: take the checkpoint that is not quantised."
DAMAGED = "The file is damaged or incomplete: download or copy it again."

# First bytes of files that are often taken for weights or what lies beside them, and what to do.
STRANGERS = {
    b"version https://git-lfs": "a Git LFS pointer: run `git lfs pull` in its folder",
    b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9": "torch's format from before version 1.6: load and "
    "save it again with a newer torch",
    b"GGUF": "a GGUF file: give the .pth or the Hugging Face weights",
    b"fmgg": "a rwkv.cpp file: give the .pth or the Hugging Face weights",
    b"\x1f\x8b": "compressed by gzip: unpack it and give the file inside",
    b"7z\xbc\xaf": "a 7z archive: unpack it and give the weights inside",
    b"\x89HDF\r\n": "an HDF5 file: give the .pth or the Hugging Face weights",
}
# A page that a server sent in place of the file.
PAGE = re.compile(rb"\s*<(!doctype|html|head|body|\?xml|error)", re.IGNORECASE)


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's dtype ("F32", "F16", "BF16" are readable) and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Extent:
    """A tensor in a file: first element at byte `start`; strides in elements, None if row-major."""

    info: TensorInfo
    start: int
    strides: tuple[int, ...] | None = None

    def span(self) -> int:
        """Elements from the first to the last one in the file, both included."""
        if 0 in self.info.shape:
            return 0
        if self.strides is None:
            return math.prod(self.info.shape)
        steps = zip(self.info.shape, self.strides, strict=True)
        return 1 + sum((size - 1) * stride for size, stride in steps)


def refusal(where: str, expected: str, found: str, remedy: str = DAMAGED) -> CheckpointError:
    """The one form in which a file is refused."""
    return CheckpointError(f"{where}: expected {expected}, found {found}. {remedy}")


def shown(value: object) -> str:
    """A value from a file, fit for a message: hostile ones may be endless when printed in full."""
    if isinstance(value, str):
        return repr(value if len(value) <= 80 else value[:77] + "...")
    if isinstance(value, int) and abs(value) < 2**64:
        return str(value)
    return f"a value of type {type(value).__name__}"


def checked_sizes(value: object, where: str, what: str) -> tuple[int, ...]:
    """A list or tuple of sizes or strides from a file as a tuple of integers >= 0."""
    if not isinstance(value, list | tuple) or len(value) > MAX_DIMENSIONS:
        raise refusal(where, f"{what} of at most {MAX_DIMENSIONS} numbers", shown(value))
    for size in value:
        if type(size) is not int or not 0 <= size <= MAX_ELEMENTS:
            raise refusal(where, f"{what} of integers from 0 to 2**48", shown(size))
    return tuple(value)


def count(shape: tuple[int, ...], where: str) -> int:
    """Elements of a shape, refused before the product outgrows any possible file."""
    total = 1
    for size in shape:
        total *= size
        if total > MAX_ELEMENTS:
            raise refusal(where, "at most 2**48 elements", f"shape {list(shape)}")
    return total


def refuse_strangers(path: Path, start: bytes | bytearray, wanted: str) -> None:
    """Refuse a file of another kind than is wanted, which its first bytes tell, by what it is."""
    for magic, what in STRANGERS.items():
        if start.startswith(magic):
            raise CheckpointError(f"{path} is {what}.")
    if PAGE.match(start):
        raise CheckpointError(
            f"{path} is a web page, not {wanted}: its address leads to a page about the file, or "
            "to an error. Download the file itself."
        )


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read without a buffer.

    Raises CheckpointError for a pipe or a device, at which reading would wait or never end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        found = "a folder" if path.is_dir() else "a pipe or a device"
        raise refusal(str(path), "a regular file", found, "Give a file on a disk.")
    return path.open("rb", buffering=0)


def size_of(file: BinaryIO) -> int:
    """Bytes of an open file."""
    return os.fstat(file.fileno()).st_size


def read_text(path: Path, most: int) -> str:
    """A small UTF-8 file, without its byte order mark.

    Raises CheckpointError for one of more than `most` bytes, or that is no UTF-8 text.
    """
    with open_regular(path) as file:
        size = size_of(file)
        if size > most:
            raise refusal(str(path), f"at most {most} bytes", f"{size}")
        raw = bytearray(size)
        read_exactly(file, path, 0, memoryview(raw))
    refuse_strangers(path, raw[:200], "a text of data")
    if bytes(raw[:2]) in (b"\xff\xfe", b"\xfe\xff"):
        raise refusal(str(path), "UTF-8 text", "UTF-16", "Save it as UTF-8.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refusal(str(path), "UTF-8 text", f"another byte at {error.start}") from error


def read_exactly(file: BinaryIO, path: Path, start: int, target: memoryview) -> None:
    """Fill `target` with the file's bytes from `start` on.

    Plain reads, not a memory map: mapped pages stay in the resident set after their last use.
    """
    done = 0
    try:
        file.seek(start)
        while done < len(target):
            # A raw read may give less than was asked, on Linux never more than 2 GiB at once.
            got = file.readinto(target[done:])  # type: ignore[attr-defined]
            if not got:
                raise refusal(
                    str(path), f"{len(target)} bytes at offset {start}", f"only {done} bytes"
                )
            done += got
    except OSError as error:
        raise cannot_read(path, error) from error


def cannot_read(path: Path, error: OSError) -> OSError:
    """The system's refusal to read a file, with the file's name; the file itself may be good."""
    return OSError(error.errno, f"cannot read: {error.strerror}", str(path))


def read_tensor(file: BinaryIO, path: Path, name: str, extent: Extent) -> np.ndarray:
    """One tensor as a fresh row-major array; BF16 comes as uint16, its upper half of a float32.

    Raises CheckpointError for a dtype that is not in READABLE.
    """
    info = extent.info
    if info.dtype not in READABLE:
        raise refusal(
            f"{path}: tensor {shown(name)}",
            "dtype F32, F16 or BF16",
            info.dtype,
            "Convert it by tensor.float()." if info.dtype == "F64" else QUANTISED,
        )
    dtype = READABLE[info.dtype]
    flat = np.empty(extent.span(), dtype)
    if flat.size:
        read_exactly(file, path, extent.start, flat.data.cast("B"))
    if extent.strides is None or not flat.size:
        return flat.reshape(info.shape)
    steps = tuple(stride * dtype.itemsize for stride in extent.strides)
    return np.array(np.lib.stride_tricks.as_strided(flat, info.shape, steps), order="C")
