"""The index of a `.pth` or `pytorch_model.bin`: names, dtypes and places of its tensors.

Such a file is a zip of stored members: `ROOT/data.pkl`, a pickle that describes the tensors, and
`ROOT/data/KEY`, their raw little-endian storages. The pickle is not unpickled: its opcodes are
walked by a small machine that knows strings, numbers, tuples, dicts and the names below, and has no
way to import or call anything. An opcode or a name that it does not know ends the walk.

Assumes nothing about the file. Promises that each tensor it lists lies within one stored member.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CheckpointError
from .layout import (
    ITEM_BYTES,
    MAX_DESCRIPTION_BYTES,
    Extent,
    TensorInfo,
    checked_sizes,
    count,
    read_exactly,
    refusal,
    shown,
)

LOCAL_HEADER = struct.Struct("<4s5H3I2H")
RESAVE = "Save a plain state_dict again: torch.save(model.state_dict(), path)."

ORDERED_DICT = "collections OrderedDict"
REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
REBUILD_PARAMETER = "torch._utils _rebuild_parameter"
STORAGES = {
    "torch FloatStorage": "F32",
    "torch HalfStorage": "F16",
    "torch BFloat16Storage": "BF16",
    "torch DoubleStorage": "F64",
    "torch LongStorage": "I64",
    "torch IntStorage": "I32",
    "torch ShortStorage": "I16",
    "torch CharStorage": "I8",
    "torch ByteStorage": "U8",
    "torch BoolStorage": "BOOL",
}
KNOWN_NAMES = {ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER, *STORAGES}


@dataclass(frozen=True)
class Member:
    """A stored member of the zip: its bytes are [start, start + size) of the file."""

    start: int
    size: int


@dataclass(frozen=True)
class Name:
    """A global that the pickle names. Only a label: nothing stands behind it."""

    name: str


@dataclass(frozen=True)
class Storage:
    dtype: str
    key: str
    numel: int


@dataclass(frozen=True)
class Tensor:
    storage: Storage
    offset: object
    size: object
    stride: object


def read_index(file: BinaryIO, path: Path) -> dict[str, Extent]:
    """Names and places of the tensors of an open torch zip file.

    Raises CheckpointError for whatever is not a flat mapping of names to tensors.
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
    top = _walk(pickled, f"{path}: data.pkl")
    if not isinstance(top, dict):
        raise refusal(str(path), "a mapping of names to tensors", shown(top), RESAVE)
    storages: dict[str, Storage] = {}
    return {name: _place(path, name, value, root, members, storages) for name, value in top.items()}


def _place(
    path: Path,
    name: str,
    value: object,
    root: str,
    members: dict[str, Member],
    storages: dict[str, Storage],
) -> Extent:
    """One tensor's place, after checking that every element lies in its storage's member."""
    where = f"{path}: tensor {shown(name)}"
    if not isinstance(value, Tensor):
        raise refusal(where, "a tensor (a flat mapping of names to tensors)", shown(value), RESAVE)
    storage = value.storage
    if storages.setdefault(storage.key, storage) != storage:
        raise refusal(where, f"one dtype and size for storage {shown(storage.key)}", "two")
    member = members.get(f"{root}data/{storage.key}")
    item = ITEM_BYTES[storage.dtype]
    if member is None or member.size != storage.numel * item:
        found = "no such member" if member is None else f"{member.size} bytes"
        raise refusal(
            where, f"storage {shown(storage.key)} of {storage.numel} x {item} bytes", found
        )
    shape = checked_sizes(value.size, where, "a shape")
    strides = checked_sizes(value.stride, where, "strides")
    (offset,) = checked_sizes([value.offset], where, "a storage offset")
    if len(shape) != len(strides):
        raise refusal(where, f"{len(shape)} strides for shape {list(shape)}", f"{len(strides)}")
    row_major = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    info = TensorInfo(storage.dtype, shape)
    extent = Extent(info, member.start + offset * item, None if strides == row_major else strides)
    # The second bound is for elements that share a place (stride 0): few bytes must not claim many.
    if offset + extent.span() > storage.numel or count(shape, where) > storage.numel:
        raise refusal(
            where,
            f"elements within a storage of {storage.numel}",
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
    try:
        # Closing the archive leaves `file` open, since zipfile did not open it.
        with zipfile.ZipFile(file) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
            directory = archive.start_dir
    except (
        zipfile.BadZipFile,
        ValueError,
        NotImplementedError,
        EOFError,
        OSError,
        struct.error,
    ) as error:
        # OSError too: a damaged directory sends zipfile to offsets that no file has.
        raise refusal(str(path), "a zip file as torch.save writes", str(error)) from error
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


def _walk(pickled: bytes, where: str) -> object:
    """What the pickle describes, in dicts, tuples, numbers, strings, Name, Storage and Tensor."""
    machine = _Machine(pickled, where)
    try:
        while (opcode := machine.take(1)) != b".":
            machine.step(opcode)
        return machine.stack.pop()
    except CheckpointError:
        raise
    except (ValueError, IndexError, KeyError) as error:
        # The pickle ends early, or wants what is not on the stack or in the memo, or is not UTF-8.
        found = f"at byte {machine.position}: {type(error).__name__} {error}"[:100]
        raise refusal(where, "a pickle as torch.save writes", found) from error


class _Machine:
    """The stack and memo of a pickle, and those opcodes of protocol 2 that torch.save uses."""

    def __init__(self, pickled: bytes, where: str) -> None:
        self.pickled = pickled
        self.position = 0
        self.where = where
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: bytes) -> None:
        if opcode in CONSTANTS:
            self.stack.append(CONSTANTS[opcode])
        elif opcode in NUMBERS:
            self.stack.append(self.number(NUMBERS[opcode]))
        elif opcode in PUTS:
            self.memo[self.number(PUTS[opcode])] = self.stack[-1]
        elif opcode in GETS:
            self.stack.append(self.memo[self.number(GETS[opcode])])
        elif opcode in ACTIONS:
            ACTIONS[opcode](self)
        else:
            raise self.refuse("only opcodes that describe tensors", f"opcode {opcode!r}")

    def refuse(self, expected: str, found: str) -> CheckpointError:
        remedy = "It may be hostile, or hold more than weights. Nothing in it was run. " + RESAVE
        return refusal(self.where, expected, found, remedy)

    def take(self, size: int) -> bytes:
        """The pickle's next `size` bytes."""
        end = self.position + size
        if end > len(self.pickled):
            raise IndexError("the pickle ends here")
        start, self.position = self.position, end
        return self.pickled[start:end]

    def number(self, form: struct.Struct) -> Any:
        return form.unpack(self.take(form.size))[0]

    def line(self) -> str:
        end = self.pickled.index(b"\n", self.position)
        return self.take(end + 1 - self.position)[:-1].decode()

    def pop(self, number: int) -> tuple[Any, ...]:
        """The last `number` values, oldest first."""
        if not 0 <= number <= len(self.stack):
            raise IndexError("not so many on the stack")
        values = self.stack[len(self.stack) - number :]
        del self.stack[len(self.stack) - number :]
        return tuple(values)

    def pop_mark(self) -> tuple[Any, ...]:
        return self.pop(len(self.stack) - self.marks.pop())

    def proto(self) -> None:
        self.take(1)

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def empty_dict(self) -> None:
        self.stack.append({})

    def string(self) -> None:
        self.stack.append(self.take(self.number(UINT32)).decode())

    def long(self) -> None:
        self.stack.append(int.from_bytes(self.take(self.number(UINT8)), "little", signed=True))

    def name(self) -> None:
        name = f"{self.line()} {self.line()}"
        if name not in KNOWN_NAMES:
            raise self.refuse("only names that describe tensors", f"the name {shown(name)}")
        self.stack.append(Name(name))

    def tuple_(self) -> None:
        self.stack.append(self.pop_mark())

    def set_items(self, items: tuple[Any, ...]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise self.refuse("pairs for a mapping", f"{len(items)} values for {shown(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only strings are compared and hashed: deep tuples could exhaust the C stack.
            if type(key) is not str:
                raise self.refuse("names of tensors as keys", shown(key))
            if key in target:
                raise self.refuse("each name once", f"{shown(key)} twice")
            target[key] = value

    def build(self) -> None:
        target, _ = self.pop(2)
        if not isinstance(target, dict):
            raise self.refuse("attributes on a mapping alone", f"some on {shown(target)}")
        self.stack.append(target)  # Drops `_metadata`, the one attribute that a state_dict has.

    def persistent(self) -> None:
        (label,) = self.pop(1)
        if not isinstance(label, tuple) or len(label) != 5 or label[0] != "storage":
            raise self.refuse("a storage of five fields", shown(label))
        _, kind, key, _, numel = label
        if not isinstance(kind, Name) or kind.name not in STORAGES or type(key) is not str:
            raise self.refuse(
                "a typed storage", shown(kind.name if isinstance(kind, Name) else kind)
            )
        (numel,) = checked_sizes([numel], self.where, "a storage size")
        self.stack.append(Storage(STORAGES[kind.name], key, numel))

    def reduce(self) -> None:
        target, arguments = self.pop(2)
        name = target.name if isinstance(target, Name) else shown(target)
        arguments = arguments if isinstance(arguments, tuple) else (None,)
        if name == ORDERED_DICT and not arguments:
            self.stack.append({})
        elif (
            name == REBUILD_TENSOR
            and len(arguments) in (6, 7)
            and isinstance(arguments[0], Storage)
        ):
            self.stack.append(Tensor(*arguments[:4]))
        elif name == REBUILD_PARAMETER and len(arguments) == 3 and isinstance(arguments[0], Tensor):
            self.stack.append(arguments[0])
        else:
            raise self.refuse("a tensor to rebuild", f"{name} of {len(arguments)} other arguments")


UINT8, UINT32 = struct.Struct("<B"), struct.Struct("<I")
CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False, b")": ()}
NUMBERS = {
    b"K": UINT8,
    b"M": struct.Struct("<H"),
    b"J": struct.Struct("<i"),
    b"G": struct.Struct(">d"),
}
PUTS = {b"q": UINT8, b"r": UINT32}
GETS = {b"h": UINT8, b"j": UINT32}
ACTIONS: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": _Machine.proto,
    b"(": _Machine.mark,
    b"}": _Machine.empty_dict,
    b"X": _Machine.string,
    b"\x8a": _Machine.long,
    b"c": _Machine.name,
    b"t": _Machine.tuple_,
    b"\x85": lambda machine: machine.stack.append(machine.pop(1)),
    b"\x86": lambda machine: machine.stack.append(machine.pop(2)),
    b"\x87": lambda machine: machine.stack.append(machine.pop(3)),
    b"s": lambda machine: machine.set_items(machine.pop(2)),
    b"u": lambda machine: machine.set_items(machine.pop_mark()),
    b"b": _Machine.build,
    b"Q": _Machine.persistent,
    b"R": _Machine.reduce,
}
