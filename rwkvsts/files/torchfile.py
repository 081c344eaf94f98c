"""The index of a `.pth` or `pytorch_model.bin`: names, dtypes and places of its tensors.

Such a file is a zip of stored members: `ROOT/data.pkl`, a pickle that describes the tensors, and
`ROOT/data/KEY`, their raw little-endian storages. The pickle is walked, not unpickled: picklewalk.

Assumes nothing about the file. Promises that each tensor it lists lies within one stored member,
and that a training checkpoint is read only where it holds one state_dict.
"""

from __future__ import annotations

import errno
import io
import math
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from .layout import (
    ITEM_BYTES,
    MAX_DESCRIPTION_BYTES,
    Extent,
    TensorInfo,
    cannot_read,
    checked_sizes,
    count,
    read_exactly,
    refusal,
    shown,
)
from .picklewalk import RESAVE, Storage, Tensor, walk

ZIP_ERRORS = (zipfile.BadZipFile, struct.error)
LOCAL_HEADER = struct.Struct("<4s5H3I2H")


@dataclass(frozen=True)
class Member:
    """A stored member of the zip: its bytes are [start, start + size) of the file."""

    start: int
    size: int


def read_index(file: BinaryIO, path: Path) -> dict[str, Extent]:
    """Names and places of the tensors of an open torch zip file.

    Raises CheckpointError for whatever is not one state_dict, alone or inside a checkpoint.
    """
    members = _members(file, path)
    roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise refusal(
            str(path), "one member ROOT/data.pkl, as torch.save writes", f"{len(roots)}", RESAVE
        )
    root = roots[0]
    order = members.get(f"{root}byteorder")
    if order is not None and _bytes(file, path, order, 16) != b"little":
        raise refusal(str(path), "little-endian tensors", "another byte order", RESAVE)
    pickled = _bytes(file, path, members[f"{root}data.pkl"], MAX_DESCRIPTION_BYTES)
    tensors = _state_dict(walk(pickled, f"{path}: data.pkl"), path)
    storages: dict[str, Storage] = {}
    return {name: _place(path, name, t, root, members, storages) for name, t in tensors.items()}


def _state_dict(top: object, path: Path) -> dict[str, Tensor]:
    """The tensors of the one state_dict that a file holds, whatever else a training left there.

    A state_dict names tensors by module and parameter, with a dot between them; an optimizer's
    `step` and `exp_avg` have none. Two are never chosen from: the other may be LoRA.
    """
    if (
        isinstance(top, dict) and "_strategy" in top
    ):  # products transposed, norms and scales folded in
        raise refusal(
            str(path),
            "a model as it was trained",
            "one that the rwkv package converted for its own use",
            "Give the .pth that it was made from.",
        )
    tensors = _mappings_of_tensors(top)
    found = {key: names for key, names in tensors.items() if any("." in name for name in names)}
    found = found or tensors
    if not found:
        inside = shown(top)
        if isinstance(top, dict):
            inside = f"no tensor under the keys {shown(', '.join(map(str, top)))}"
        raise refusal(str(path), "a mapping of names to tensors (a state_dict)", inside, RESAVE)
    if len(found) > 1:
        places = ", ".join(sorted(found)[:5])
        raise refusal(
            str(path),
            "one state_dict",
            f"a training checkpoint with {len(found)}, at {places}",
            "Save the one that is meant: torch.save(checkpoint[KEY], path).",
        )
    return next(iter(found.values()))


def _mappings_of_tensors(top: object) -> dict[str, dict[str, Tensor]]:
    """All mappings inside `top` that hold tensors under names, by the keys that lead there."""
    found: dict[str, dict[str, Tensor]] = {}
    seen = set()  # by identity: a pickle can make 2**60 paths to one value
    waiting: list[tuple[str, object]] = [("", top)]
    while waiting:
        place, value = waiting.pop()
        if id(value) in seen or not isinstance(value, dict | list | tuple):
            continue
        seen.add(id(value))
        items = [*(value.items() if isinstance(value, dict) else enumerate(value))]
        tensors = {k: v for k, v in items if isinstance(k, str) and isinstance(v, Tensor)}
        if tensors:
            found[place or "the top"] = tensors
        waiting += [(f"{place}[{shown(key)}]"[:200], inner) for key, inner in items]
    return found


def _place(
    path: Path,
    name: str,
    value: Tensor,
    root: str,
    members: dict[str, Member],
    storages: dict[str, Storage],
) -> Extent:
    """One tensor's place, after checking that every element lies in its storage's member."""
    where = f"{path}: tensor {shown(name)}"
    storage = value.storage
    if storages.setdefault(storage.key, storage) != storage:
        raise refusal(where, f"one dtype and size for storage {shown(storage.key)}", "two")
    member = members.get(f"{root}data/{storage.key}")
    stored = ITEM_BYTES[storage.dtype]
    if member is None or member.size != storage.numel * stored:
        found = "no such member" if member is None else f"{member.size} bytes"
        raise refusal(
            where, f"storage {shown(storage.key)} of {storage.numel} x {stored} bytes", found
        )
    shape = checked_sizes(value.size, where, "a shape")
    strides = checked_sizes(value.stride, where, "strides")
    (offset,) = checked_sizes([value.offset], where, "a storage offset")
    if len(shape) != len(strides):
        raise refusal(where, f"{len(shape)} strides for shape {list(shape)}", f"{len(strides)}")
    row_major = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    info = TensorInfo(value.dtype, shape)
    # Of a dtype without a known size, which cannot be read, an element is taken for one byte.
    item = ITEM_BYTES.get(value.dtype, 1)
    extent = Extent(info, member.start + offset * item, None if strides == row_major else strides)
    room = member.size // item
    # The second bound is for elements that share a place (stride 0): few bytes must not claim many.
    if offset + extent.span() > room or count(shape, where) > room:
        raise refusal(
            where,
            f"elements within a storage of {room}",
            f"offset {offset}, shape {list(shape)}, strides {list(strides)}",
            RESAVE,
        )
    return extent


def _bytes(file: BinaryIO, path: Path, member: Member, limit: int) -> bytes:
    """A small member's contents."""
    if member.size > limit:
        raise refusal(str(path), f"at most {limit} bytes of description", f"{member.size}")
    data = bytearray(member.size)
    read_exactly(file, path, member.start, memoryview(data))
    return bytes(data)


def _members(file: BinaryIO, path: Path) -> dict[str, Member]:
    """The zip's members by name, each stored as it is, none overlapping another.

    The directory is zipfile's work. The bytes are then read from the file itself, since zipfile
    would copy each tensor and check a CRC that torch may have been told not to write.
    """
    entries, directory = _directory(file, path)
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        found = "a TorchScript program"
        raise refusal(str(path), "weights", found, "Give the checkpoint that it was made from.")
    if not any(entry.filename.endswith("/data.pkl") for entry in entries):
        names = ", ".join(entry.filename for entry in entries[:3])
        raise refusal(
            str(path),
            "one member ROOT/data.pkl, as torch.save writes",
            f"another zip, of {shown(names)}" if names else "an empty zip",
            "If the weights are inside, unpack it and give their file.",
        )
    members: dict[str, Member] = {}
    ends = [*(entry.header_offset for entry in entries), directory][1:]
    for entry, end in zip(entries, ends, strict=True):
        where = f"{path}: member {shown(entry.filename)}"
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise refusal(where, "a stored member", "a compressed or encrypted one", RESAVE)
        if entry.filename in members:
            raise refusal(where, "one member of this name", "two")
        header = bytearray(LOCAL_HEADER.size)
        if not 0 <= entry.header_offset <= directory - len(header):
            raise refusal(where, "a header within the file", f"offset {entry.header_offset}")
        read_exactly(file, path, entry.header_offset, memoryview(header))
        signature, *_, name_bytes, extra_bytes = LOCAL_HEADER.unpack(header)
        start = entry.header_offset + len(header) + name_bytes + extra_bytes
        if signature != b"PK\3\4" or entry.file_size != entry.compress_size:
            raise refusal(where, "a local header that agrees with the directory", "another")
        if start + entry.file_size > end:
            raise refusal(where, f"{entry.file_size} bytes of its own", f"{max(0, end - start)}")
        members[entry.filename] = Member(start, entry.file_size)
    return members


def _directory(file: BinaryIO, path: Path) -> tuple[list[zipfile.ZipInfo], int]:
    """The zip's entries in the order of the file, and where its directory begins."""
    # zipfile takes a short read for the end of the file; a buffered reader asks again.
    buffered = io.BufferedReader(cast(io.RawIOBase, file))
    try:
        # Closing the archive leaves the file open, since zipfile did not open it.
        with zipfile.ZipFile(buffered) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
            return entries, archive.start_dir
    except (OSError, ValueError, NotImplementedError, EOFError, *ZIP_ERRORS) as error:
        # zipfile hides what the disk answered. A damaged directory leads to offsets no file has.
        answer = error if isinstance(error, OSError) else error.__context__
        if isinstance(answer, OSError) and answer.errno != errno.EINVAL:
            raise cannot_read(path, answer) from error
        found = "one that ends early" if "not a zip" in str(error) else str(error)
        raise refusal(str(path), "a zip file as torch.save writes", found) from error
    finally:
        buffered.detach()
