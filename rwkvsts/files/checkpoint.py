"""Weights as named tensors, whatever file they come from: safetensors, `.pth`, `pytorch_model.bin`.

Assumes files that do not change while they are open. Promises BlinkDL's names whichever names the
file uses, one tensor in memory at a time, and that nothing from a file is ever executed: what is
not exactly as expected is refused with one `CheckpointError`. Which tensors a model needs, and of
what shape, is the core's business, not this package's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import BinaryIO

import numpy as np

from ..errors import CheckpointError
from . import safetensorsfile, torchfile
from .hub import Source, shard_names
from .layout import (
    ITEM_BYTES,
    QUANTISED,
    Extent,
    TensorInfo,
    open_regular,
    read_exactly,
    read_tensor,
    refusal,
    refuse_strangers,
    shown,
    size_of,
)
from .names import Naming, Part, prefixes, unwrapped

__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint"]

# What a server sent in place of the file: a line of JSON or plain text.
TEXT = re.compile(rb"[\t\r\n\x20-\x7e]{8,}")
# What quantising leaves in place of a weight: bitsandbytes, GPTQ and AWQ, compressed-tensors, FP8,
# the rwkv package's int8.
OF_QUANTISED = re.compile(
    r".+\.(?:qweight|qzeros|g_idx|scales|SCB|W_q|(?:weight[._])?(?:nested_)?(?:absmax|quant_map)"
    r"|weight[._](?:quant_state\..+|packed|shape|zero_point|scale(?:_inv)?|format|[mr][xy]))"
)
# What tuning puts beside a weight, or the weight in, until both are merged.
OF_TUNING = re.compile(
    r"(?:.*\.)?(?:base_layer|lora|lora_\w+|bone|disha|miss|adapter\w*)(?:\..*)?", re.DOTALL
)


@dataclass(frozen=True)
class Stored:
    """A tensor of a file, under the file's own name."""

    file: BinaryIO
    path: Path
    name: str
    extent: Extent


@dataclass(frozen=True)
class Located:
    """One of BlinkDL's tensors: where it is stored, and which part of that it is.

    twin : another tensor that is stored under the same name, None as a rule
    """

    stored: Stored
    part: Part
    twin: Stored | None = None


class Checkpoint:
    """Open weight files; a context manager that closes them.

    tensors : mapping of BlinkDL names to TensorInfo(dtype, shape), in the order of the files
    source : what was opened
    origin : whose names the files use, where they are not BlinkDL's own or Hugging Face's
    """

    def __init__(
        self,
        source: Source,
        located: Mapping[str, Located],
        origin: str | None,
        files: ExitStack,
    ) -> None:
        self.source = source
        self.origin = origin
        self._located = located
        self._files = files
        self._promised = None if source.index is None else shard_names(source.index)
        infos = {
            name: TensorInfo(tensor.stored.extent.info.dtype, tensor.part.shape)
            for name, tensor in located.items()
        }
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(infos)

    def read(self, name: str) -> np.ndarray:
        """Read one tensor from disk.

        Parameters
        ----------
        name : BlinkDL name, a key of `tensors`

        Returns
        -------
        array of the tensor's shape, row-major, little-endian, owned by the caller: float32 for F32,
        float16 for F16, uint16 (the bits) for BF16

        Raises
        ------
        CheckpointError : no such tensor, or two; another shard's than the index says; a dtype other
            than these three; a weight that is zero throughout; a file that became shorter
        """
        tensor = self._located.get(name)
        if tensor is None:
            raise refusal(str(self.source.files[0]), f"a tensor {shown(name)}", "none of this name")
        stored = tensor.stored
        where = f"{stored.path}: tensor {shown(stored.name)}"
        if tensor.twin is not None:
            found = f"another, {shown(tensor.twin.name)}, in {tensor.twin.path.name}"
            raise refusal(where, f"one tensor for {shown(name)}", found, "Keep one of the two.")
        self._check_promised(stored)
        array = read_tensor(stored.file, stored.path, stored.name, stored.extent)
        if name.endswith(".weight") and _is_zero(array):
            raise refusal(
                where,
                "numbers that a training left",
                "zeros throughout",
                "It looks like a download that broke off: get the file again.",
            )
        return np.ascontiguousarray(tensor.part.take(array))

    def _check_promised(self, stored: Stored) -> None:
        """A shard must hold what its index says; of the tensors that are read, no others."""
        if self._promised is None:
            return
        expected = self._promised.get(stored.name)
        if expected != stored.path.name:
            raise refusal(
                f"{self.source.index}: tensor {shown(stored.name)}",
                f"it in {expected}" if expected else "no such tensor in the shards",
                f"it in {stored.path.name}",
                "Index and shards are not of one model: download them again.",
            )

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_checkpoint(source: Source) -> Checkpoint:
    """Open the weight files of a source and check all that they say about their tensors.

    Raises CheckpointError for a damaged, hostile or inconsistent file, OSError if it is unreadable.
    """
    with ExitStack() as files:
        stored = []
        for path in source.files:
            file = files.enter_context(open_regular(path))
            index = _read_index(file, path)
            _check_bytes(index, file, path)
            stored += [Stored(file, path, name, extent) for name, extent in index.items()]
        located, origin = _locate(stored)
        if not located:
            raise refusal(str(source.files[0]), "tensors", "none")
        _check_whole(source.name, located)
        return Checkpoint(source, located, origin, files.pop_all())


def _locate(stored: Sequence[Stored]) -> tuple[dict[str, Located], str | None]:
    """BlinkDL's names of all tensors, and whose names the files use.

    A tensor that is there twice matters only where it is read.
    """
    plain = _plain_names(stored)
    naming = Naming({plain[tensor.name]: tensor.extent.info.shape for tensor in stored})
    located: dict[str, Located] = {}
    for tensor in stored:
        where = f"{tensor.path}: tensor {shown(tensor.name)}"
        if "\0" in tensor.name:
            raise refusal(where, "a name without NUL", "one")
        for part in naming.parts(where, plain[tensor.name], tensor.extent.info.shape):
            first = located.get(part.name)
            located[part.name] = Located(tensor, part, None if first is None else first.stored)
    return located, naming.origin


def _plain_names(stored: Sequence[Stored]) -> dict[str, str]:
    """The tensors' names without what stands before all those of the model."""
    plain = {tensor.name: unwrapped(tensor.name) for tensor in stored}
    found = prefixes(plain.values())
    if len(found) > 1 and "" not in found:
        raise refusal(
            str(stored[0].path),
            "one model",
            f"{len(found)}, whose tensors' names begin with {', '.join(found[:5])}",
            "Save the one that is meant alone, without what its names begin with.",
        )
    prefix = found[0] if found else ""  # a name without any sorts first
    return {name: short.removeprefix(prefix) for name, short in plain.items()}


def _check_whole(where: str, names: Collection[str]) -> None:
    """Refuse quantised weights, and what tuning saves beside or apart from its model."""
    needed = [name for name in names if not name.startswith("head.")]
    if (name := next(filter(OF_QUANTISED.fullmatch, needed), None)) is not None:
        found = "what quantising leaves"
        raise refusal(f"{where}: tensor {shown(name)}", "plain weights alone", found, QUANTISED)
    tuned = next(filter(OF_TUNING.fullmatch, needed), None)
    if all(".time_state" in name for name in names):
        raise refusal(where, "a model", "the states of state tuning alone", "Give the plain model.")
    if tuned is not None and "emb.weight" not in names:
        remedy = "Merge them into the model that they were trained for, and give that."
        expected = "a model's own weights too"
        raise refusal(f"{where}: tensor {shown(tuned)}", expected, "LoRA weights alone", remedy)
    if tuned is not None:
        raise refusal(
            f"{where}: tensor {shown(tuned)}",
            "base weights alone",
            "LoRA weights or the like beside them, which would be ignored in silence",
            "Merge them into the base weights first, as by PEFT's merge_and_unload().",
        )


def _check_bytes(index: Mapping[str, Extent], file: BinaryIO, path: Path) -> None:
    """The tensors together may claim the file's bytes twice (a head tied to the embedding)."""
    claimed = sum(
        math.prod(extent.info.shape) * ITEM_BYTES.get(extent.info.dtype, 0)
        for extent in index.values()
    )
    if claimed > 2 * size_of(file):
        raise refusal(
            str(path),
            f"tensors within its {size_of(file)} bytes",
            f"{len(index)} that share storages and come to {claimed} bytes",
            "If it is meant so, save copies: {name: tensor.clone() ...}.",
        )


def _is_zero(array: np.ndarray) -> bool:
    """Whether every element is zero; numbers that are not stand at the beginning, as a rule."""
    flat = array.reshape(-1)
    if array.dtype == np.uint16:  # bfloat16: a sign is no number
        return not (flat[:1024] & 0x7FFF).any() and not (flat & 0x7FFF).any()
    return not flat[:1024].any() and not flat.any()


def _read_index(file: BinaryIO, path: Path) -> dict[str, Extent]:
    """Names and places of one file's tensors; the content tells the format, not the file's name."""
    start = bytearray(min(200, size_of(file)))
    read_exactly(file, path, 0, memoryview(start))
    if start.startswith(b"PK"):
        return torchfile.read_index(file, path)
    refuse_strangers(path, start, "weights")
    if TEXT.fullmatch(start):
        shown_text = shown(start.decode())
        raise CheckpointError(f"{path} is a text, not weights: {shown_text}. Download it again.")
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        return safetensorsfile.read_index(file, path)
    found = f"a file that starts with {bytes(start[:8])!r}" if start else "an empty file"
    raise refusal(str(path), "a safetensors file or a torch zip (.pth, .bin)", found)
