"""What a pickle of torch describes, without unpickling it.

The opcodes are walked by a small machine that knows strings, numbers, containers and the names
below, and has no way to import or call anything. Where unpickling would call a function, the
machine knows what the result would be (a tensor, a mapping) or puts a `Plain` in its place.

Assumes nothing about the bytes. Promises that a name which is on no list ends the walk, as does an
opcode that torch.save does not write.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from .layout import QUANTISED, checked_sizes, refusal, shown

RESAVE = "Save a plain state_dict again: torch.save(model.state_dict(), path)."

MAPPINGS = {"collections OrderedDict", "collections defaultdict"}
REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
REBUILD_TENSOR_OF_DTYPE = "torch._utils _rebuild_tensor_v3"
REBUILD_PARAMETER = "torch._utils _rebuild_parameter"
REBUILD_PARAMETER_WITH_STATE = "torch._utils _rebuild_parameter_with_state"
REBUILD_WITH_STATE = "torch._tensor _rebuild_from_type_v2"
CALLS = {
    *MAPPINGS,
    REBUILD_TENSOR,
    REBUILD_TENSOR_OF_DTYPE,
    REBUILD_PARAMETER,
    REBUILD_PARAMETER_WITH_STATE,
    REBUILD_WITH_STATE,
}
# Storages by torch's name, as safetensors names their dtypes.
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
    "torch ComplexFloatStorage": "C64",
    "torch ComplexDoubleStorage": "C128",
    "torch.storage UntypedStorage": "U8",  # the tensor's own field tells the dtype
}
TORCH_DTYPES = {
    "torch uint16": "U16",
    "torch uint32": "U32",
    "torch uint64": "U64",
    "torch float8_e4m3fn": "F8_E4M3",
    "torch float8_e5m2": "F8_E5M2",
    "torch float8_e8m0fnu": "F8_E8M0",
    "torch float8_e4m3fnuz": "F8_E4M3FNUZ",
    "torch float8_e5m2fnuz": "F8_E5M2FNUZ",
}
# Tensors that hold no plain numbers, and what to do instead.
UNREADABLE = {
    "torch._utils _rebuild_qtensor": QUANTISED,
    "torch._utils _rebuild_sparse_tensor": "Save it dense: tensor.to_dense().",
    "torch._utils _rebuild_sparse_csr_tensor": "Save it dense: tensor.to_dense().",
    "torch._utils _rebuild_nested_tensor": "Save plain tensors.",
    "torch._utils _rebuild_meta_tensor_no_storage": "It is empty: load the weights first.",
    "torch.distributed.tensor DTensor": "Save whole tensors: tensor.full_tensor().",
    "torch.distributed._tensor.api DTensor": "Save whole tensors: tensor.full_tensor().",
}
# What training leaves beside the weights: values, of which none is needed and none is built.
PLAIN = re.compile(
    r"numpy\.(_core|core)\.multiarray (scalar|_reconstruct)|numpy (dtype|ndarray)"
    r"|(builtins|__builtin__) (set|frozenset|bytearray|complex|dict|list|int|float|str)"
    r"|torch (Size|device|Tensor|bool|(b?float|q?u?int|complex|bits)\w+)"
    r"|torch\.nn\.parameter Parameter|torch\.serialization _get_layout|_codecs encode"
    r"|collections (Counter|deque)|argparse Namespace|types SimpleNamespace"
    r"|datetime (datetime|timedelta)|pathlib(\._local)? PosixPath"
)


@dataclass(frozen=True)
class Name:
    """A global that the pickle names. Only a label: nothing stands behind it."""

    name: str


@dataclass(frozen=True, eq=False)
class Plain:
    """A value that is not needed and was not built."""

    what: str


@dataclass(frozen=True)
class Storage:
    """A run of elements in the zip's member `data/KEY`."""

    dtype: str
    key: str
    numel: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset, size and strides as the pickle has them, in elements."""

    storage: Storage
    dtype: str
    offset: object
    size: object
    stride: object


def walk(pickled: bytes, where: str) -> object:
    """What the pickle describes, in containers, numbers, strings, Name, Plain, Storage, Tensor.

    where : of the pickle, for the CheckpointError of one that describes something else
    """
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
    """The stack and memo of a pickle, and those opcodes of protocols 2 to 5 that describe data."""

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
        elif opcode in STRINGS:
            self.stack.append(self.take(self.number(STRINGS[opcode])).decode())
        elif opcode in BYTES:
            self.take(self.number(BYTES[opcode]))
            self.stack.append(Plain("bytes"))
        elif opcode in LONGS:
            raw = self.take(self.number(LONGS[opcode]))
            self.stack.append(int.from_bytes(raw, "little", signed=True))
        elif opcode in PUTS:
            self.memo[self.number(PUTS[opcode])] = self.stack[-1]
        elif opcode in GETS:
            self.stack.append(self.memo[self.number(GETS[opcode])])
        elif opcode in ACTIONS:
            ACTIONS[opcode](self)
        else:
            raise self.refuse("opcodes that describe data", f"opcode {opcode!r}")

    def refuse(self, expected: str, found: str) -> CheckpointError:
        return refusal(self.where, expected, found, f"Nothing in it was run. {RESAVE}")

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

    def memoize(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def frozen_set(self) -> None:
        self.pop_mark()
        self.stack.append(Plain("a set"))

    def global_(self, module: object, name: object) -> None:
        both = f"{module} {name}" if isinstance(module, str) and isinstance(name, str) else ""
        if both not in CALLS and both not in STORAGES and not PLAIN.fullmatch(both):
            hostile = "It is an object of a program, as a whole model or its settings, or the file "
            hostile += "may be hostile. "
            known = both.startswith(("torch", "numpy"))
            raise refusal(
                self.where,
                "names of tensors and plain values alone",
                f"the name {shown(both)}, which unpickling would import and may call",
                f"{'' if known else hostile}Nothing in it was run. {UNREADABLE.get(both, RESAVE)}",
            )
        self.stack.append(Name(both))

    def set_items(self, items: tuple[Any, ...]) -> None:
        target = self.stack[-1]
        if len(items) % 2:
            raise self.refuse("pairs for a mapping", f"{len(items)} values for {shown(target)}")
        if isinstance(target, Plain):
            return
        if not isinstance(target, dict):
            raise self.refuse("pairs for a mapping", f"some for {shown(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only strings and integers are hashed: deep tuples could exhaust the C stack.
            if type(key) not in (str, int):
                key = Plain("a key")
            if key in target:
                raise self.refuse("each name once", f"{shown(key)} twice")
            target[key] = value

    def append(self, items: tuple[Any, ...]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Plain):
            raise self.refuse("items for a list", f"some for {shown(target)}")

    def build(self) -> None:
        """Attributes of a mapping (`_metadata`), a tensor or a plain value: dropped."""
        target, _ = self.pop(2)
        if not isinstance(target, dict | Tensor | Plain):
            raise self.refuse("attributes on a mapping or a tensor", f"some on {shown(target)}")
        self.stack.append(target)

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
        self.stack.append(self.called(target, arguments))

    def called(self, target: object, arguments: object) -> object:
        """What the call would give."""
        name = target.name if isinstance(target, Name) else shown(target)
        given = arguments if isinstance(arguments, tuple) else (None,)
        first = given[0] if given else None
        if name in MAPPINGS and (not given or (len(given) == 1 and isinstance(first, Name))):
            return {}
        if name == REBUILD_TENSOR and len(given) in (6, 7) and isinstance(first, Storage):
            return Tensor(first, first.dtype, *given[1:4])
        if name == REBUILD_TENSOR_OF_DTYPE and len(given) in (7, 8) and isinstance(first, Storage):
            dtype = given[6].name if isinstance(given[6], Name) else shown(given[6])
            return Tensor(first, TORCH_DTYPES.get(dtype, dtype), *given[1:4])
        if name == REBUILD_PARAMETER and len(given) == 3 and isinstance(first, Tensor):
            return first
        with_state = name in (REBUILD_PARAMETER_WITH_STATE, REBUILD_WITH_STATE) and len(given) == 4
        if with_state and isinstance(first, Tensor):
            return first
        if with_state and isinstance(first, Name) and first.name != REBUILD_WITH_STATE:
            return self.called(first, given[2])
        if PLAIN.fullmatch(name):
            return Plain(name)
        raise self.refuse("a tensor to rebuild", f"{name} of {len(given)} other arguments")


UINT8, UINT32, UINT64 = struct.Struct("<B"), struct.Struct("<I"), struct.Struct("<Q")
CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False, b")": ()}
NUMBERS = {
    b"K": UINT8,
    b"M": struct.Struct("<H"),
    b"J": struct.Struct("<i"),
    b"G": struct.Struct(">d"),
}
STRINGS = {b"X": UINT32, b"\x8c": UINT8, b"\x8d": UINT64}
BYTES = {b"U": UINT8, b"T": UINT32, b"C": UINT8, b"B": UINT32, b"\x8e": UINT64, b"\x96": UINT64}
LONGS = {b"\x8a": UINT8, b"\x8b": UINT32}
PUTS = {b"q": UINT8, b"r": UINT32}
GETS = {b"h": UINT8, b"j": UINT32}
ACTIONS: dict[bytes, Callable[[_Machine], object]] = {
    b"\x80": lambda machine: machine.take(1),  # protocol
    b"\x95": lambda machine: machine.take(8),  # frame
    b"\x94": _Machine.memoize,
    b"(": lambda machine: machine.marks.append(len(machine.stack)),
    b"}": lambda machine: machine.stack.append({}),
    b"]": lambda machine: machine.stack.append([]),
    b"\x8f": lambda machine: machine.stack.append(Plain("a set")),
    b"\x91": _Machine.frozen_set,
    b"0": lambda machine: machine.pop(1),
    b"c": lambda machine: machine.global_(machine.line(), machine.line()),
    b"\x93": lambda machine: machine.global_(*machine.pop(2)),
    b"t": lambda machine: machine.stack.append(machine.pop_mark()),
    b"\x85": lambda machine: machine.stack.append(machine.pop(1)),
    b"\x86": lambda machine: machine.stack.append(machine.pop(2)),
    b"\x87": lambda machine: machine.stack.append(machine.pop(3)),
    b"s": lambda machine: machine.set_items(machine.pop(2)),
    b"u": lambda machine: machine.set_items(machine.pop_mark()),
    b"a": lambda machine: machine.append(machine.pop(1)),
    b"e": lambda machine: machine.append(machine.pop_mark()),
    b"\x90": lambda machine: machine.append(machine.pop_mark()),
    b"b": _Machine.build,
    b"Q": _Machine.persistent,
    b"R": _Machine.reduce,
    b"\x81": _Machine.reduce,  # object.__new__ of a plain class
}
