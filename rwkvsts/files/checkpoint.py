"""Weights as named tensors, whatever file they come from: safetensors, `.pth`, `pytorch_model.bin`.

Assumes files that do not change while they are open. Promises BlinkDL's names whichever names the
file uses, one tensor in memory at a time, and that nothing from a file is ever executed: what is
not exactly as expected is refused with one `CheckpointError`. Which tensors RWKV-6 needs, and of
what shape, is the core's business, not this room's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import BinaryIO

import numpy as np

from ..errors import CheckpointError
from . import safetensorsfile, torchfile
from .hub import Source, shard_names
from .layout import Extent, TensorInfo, read_exactly, read_tensor, refusal, shown
from .names import Naming, Part, refuse_variants

__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint"]

# First bytes of files that are often taken for weights, and what to do about them.
STRANGERS = {
    b"version https://git-lfs": "a Git LFS pointer: run `git lfs pull` in its folder",
    b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9": "torch's format from before version 1.6: load and "
    "save it again with a newer torch",
    b"GGUF": "a GGUF file: give the .pth or the Hugging Face weights",
    b"fmgg": "a rwkv.cpp file: give the .pth or the Hugging Face weights",
}


@dataclass(frozen=True)
class Stored:
    """A tensor of a file, under the file's own name."""

    file: BinaryIO
    path: Path
    name: str
    extent: Extent


@dataclass(frozen=True)
class Located:
    """One of BlinkDL's tensors: where it is stored, and which part of that it is."""

    stored: Stored
    part: Part


class Checkpoint:
    """Open weight files; a context manager that closes them.

    tensors : mapping of BlinkDL names to TensorInfo(dtype, shape), in the order of the files
    source : what was opened
    """

    def __init__(self, source: Source, located: Mapping[str, Located], files: ExitStack) -> None:
        self.source = source
        self._located = located
        self._files = files
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
        CheckpointError : no such tensor, a dtype other than these three, a file that became shorter
        """
        tensor = self._located.get(name)
        if tensor is None:
            raise refusal(str(self.source.files[0]), f"a tensor {shown(name)}", "none of this name")
        stored = tensor.stored
        array = read_tensor(stored.file, stored.path, stored.name, stored.extent)
        return np.ascontiguousarray(tensor.part.take(array))

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

    Raises CheckpointError for a damaged, hostile or inconsistent file, or one of a model that is
    known not to run here; OSError if it is unreadable.
    """
    with ExitStack() as files:
        stored = []
        for path in source.files:
            file = files.enter_context(path.open("rb", buffering=0))
            index = _read_index(file, path)
            stored += [Stored(file, path, name, extent) for name, extent in index.items()]
        located = _locate(stored)
        if source.index is not None:
            _check_index(source.index, stored)
        if not located:
            raise refusal(str(source.files[0]), "tensors", "none")
        refuse_variants(source.name, located)
        return Checkpoint(source, located, files.pop_all())


def _locate(stored: Sequence[Stored]) -> dict[str, Located]:
    """BlinkDL's names of all tensors, each once."""
    naming = Naming({tensor.name: tensor.extent.info.shape for tensor in stored})
    located: dict[str, Located] = {}
    for tensor in stored:
        where = f"{tensor.path}: tensor {shown(tensor.name)}"
        for part in naming.parts(where, tensor.name, tensor.extent.info.shape):
            if part.name in located:
                other = located[part.name].stored
                raise refusal(
                    where,
                    f"one tensor for {shown(part.name)}",
                    f"another, {shown(other.name)}, in {other.path.name}",
                    "Keep one of the two.",
                )
            located[part.name] = Located(tensor, part)
    return located


def _check_index(index: Path, stored: Sequence[Stored]) -> None:
    """The shards must hold exactly the tensors that their index names, where it says."""
    promised = shard_names(index)
    present = {tensor.name: tensor.path.name for tensor in stored}
    for name in [*promised, *present]:
        expected, found = promised.get(name), present.get(name)
        if expected != found:
            raise refusal(
                f"{index}: tensor {shown(name)}",
                f"it in {expected}" if expected else "no such tensor in the shards",
                f"it in {found}" if found else "it in none of the shards",
                "Index and shards are not of one model: download them again.",
            )


def _read_index(file: BinaryIO, path: Path) -> dict[str, Extent]:
    """Names and places of one file's tensors; the content tells the format, not the file's name."""
    start = bytearray(min(32, os.fstat(file.fileno()).st_size))
    read_exactly(file, path, 0, memoryview(start))
    if start.startswith(b"PK"):
        return torchfile.read_index(file, path)
    for magic, what in STRANGERS.items():
        if start.startswith(magic):
            raise CheckpointError(f"{path} is {what}.")
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        return safetensorsfile.read_index(file, path)
    found = f"a file that starts with {bytes(start[:8])!r}" if start else "an empty file"
    raise refusal(str(path), "a safetensors file or a torch zip (.pth, .bin)", found)
