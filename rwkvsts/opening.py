"""From a source to a model on its device: files found, tensors read one at a time, core sealed.

Assumes an RWKV of any architecture that the core knows. Promises that no more than one tensor is in
memory beside the model itself, and that blocks above the highest layer are not read.
"""

from __future__ import annotations

import os
import re
import reprlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from . import _core
from .device import Choice, choose, cuda_library, threads_here
from .embedder import FloatArray, Layer, check_flag, check_range, middle_layer
from .errors import CheckpointError
from .files.checkpoint import Checkpoint, open_checkpoint
from .files.hub import Source, fetch, resolve
from .files.layout import DAMAGED
from .progress import bar
from .tokenizer import Tokenizer, load

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
DEMO = Path(__file__).parent / "assets" / "demo"
SHARD_OF = re.compile(r"-\d{5}-of-(\d{5})\.\w+$")  # how Hugging Face names shards
MOST_BLOCKS, MOST_THREADS = 4096, 1024  # what the core takes
BLOCK = re.compile(r"blocks\.(\d{1,4})\.")
MaxLayer = int | Literal["default"] | None


@dataclass(frozen=True)
class Options:
    """How a model was asked for, so that it can be opened again; see `RWKV6.from_pretrained`."""

    source: str | os.PathLike[str]
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    tokenizer: str | None = "world"
    max_layer: MaxLayer = None
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    threads: int | None = None
    instruction_set: str | None = None
    device_memory: int = 0
    file: str | None = None
    vocabulary: str | os.PathLike[str] | None = None


@dataclass(frozen=True)
class Opened:
    """A sealed model and what was found out on the way.

    revision : the commit, where the source is a repository
    heads : what stands on the model in a trained embedder, by the file's names
    """

    core: _core.Model
    tokenizer: Tokenizer | None
    dtype: str
    blocks: int
    revision: str | None
    heads: dict[str, FloatArray] = field(default_factory=dict)


def open_model(options: Options, token: str | None = None) -> Opened:
    """Open what the options name.

    Raises what `RWKV6.from_pretrained` says.
    """
    _check_types(options, token)
    choice = choose(options.device, options.dtype, options.instruction_set)
    if options.max_layer != "default":
        check_range("max_layer", options.max_layer, 0, MOST_BLOCKS - 1)
    check_range("threads", options.threads, 1, MOST_THREADS)
    check_range("device_memory", options.device_memory, 0, sys.maxsize)
    hub = _hub(options, token)
    found = _find(options, hub)
    with _of_the_cache(found), open_checkpoint(found) as checkpoint:
        shape = getattr(checkpoint.tensors.get("emb.weight"), "shape", ())
        n_vocab = shape[0] if shape else 0  # the core says what is wrong with it
        vocabulary = load(options.tokenizer, found, n_vocab, partial(fetch, **hub))
        asked = _blocks(options.max_layer, checkpoint)
        try:
            core = _core.Model(
                [(tensor, info.shape) for tensor, info in checkpoint.tensors.items()],
                blocks=asked,
                **_core_options(options, choice),
            )
            _fill(core, checkpoint)
            heads = _heads(checkpoint)
        except CheckpointError:
            raise  # it names its file
        except ValueError as error:
            where = os.fspath(options.source)
            raise CheckpointError(f"{where}: {error}{_of(checkpoint, found)}") from error
    blocks = asked or core.config["n_layer"]
    return Opened(core, vocabulary, choice.dtype, blocks, found.revision, heads)


def _check_types(options: Options, token: str | None) -> None:
    """TypeError for a text or a path that is neither; else a local source would ignore some."""
    texts = {name: getattr(options, name) for name in ("revision", "instruction_set", "file")}
    paths = {name: getattr(options, name) for name in ("cache_dir", "vocabulary")}
    for name, value in {**texts, **paths, "token": token}.items():
        path = isinstance(value, os.PathLike) and name in paths
        if not (value is None or isinstance(value, str) or path):
            shown = "..." if name == "token" else reprlib.repr(value)
            expected = "a path" if name in paths else "a str"
            raise TypeError(f"{name}={shown}: expected {expected} or None")
    check_flag("local_files_only", options.local_files_only)


def highest(layers: Sequence[Layer] | None) -> MaxLayer:
    """The max_layer that these layers need; None stands for the model's default layer."""
    if layers is None:
        return "default"
    numbers = [layer for layer in layers if isinstance(layer, int)]
    return max(numbers) if len(numbers) == len(layers) else None


def read_head(options: Options) -> FloatArray:
    """The language-modelling head of what the options name, float32 [V, C]; no model needs it.

    Raises CheckpointError where the file has none.
    """
    with open_checkpoint(_find(options, _hub(options, None))) as checkpoint:
        if "head.weight" not in checkpoint.tensors:
            raise CheckpointError(
                f"{os.fspath(options.source)}: expected a tensor head.weight, the "
                "language-modelling head, found none: this checkpoint was saved without it"
            )
        return _float32(checkpoint.read("head.weight"))


def _hub(options: Options, token: str | None) -> dict[str, Any]:
    return {
        "cache_dir": options.cache_dir,
        "local_files_only": options.local_files_only,
        "token": token,
    }


def _find(options: Options, hub: dict[str, Any]) -> Source:
    """The files that the options name."""
    if not isinstance(options.source, (str, os.PathLike)):
        raise TypeError(
            f"source is {reprlib.repr(options.source)}: expected a path, a hub repository "
            "'org/name', or 'demo'"
        )
    return resolve(
        DEMO if os.fspath(options.source) == "demo" else options.source,
        file=options.file,
        vocabulary=options.vocabulary,
        revision=options.revision,
        **hub,
    )


@contextmanager
def _of_the_cache(found: Source) -> Iterator[None]:
    """Add to what is said of a damaged download that it would be taken from the cache again."""
    try:
        yield
    except CheckpointError as error:
        if found.revision is None or not str(error).endswith(DAMAGED):
            raise
        raise CheckpointError(f"{error} It lies in a cache: delete it there first.") from error


def _of(checkpoint: Checkpoint, found: Source) -> str:
    """What to add to a refusal of tensors: one shard alone, or other names than the message's."""
    name = found.files[0].name
    shard = SHARD_OF.search(name) if len(found.files) == 1 else None
    if shard is not None and int(shard[1]) > 1:
        return (
            f". {name} is one of {int(shard[1])} shards: download all of them and the index, "
            "and give their folder"
        )
    if checkpoint.origin is None:
        return ""
    return (
        f". The file is in {checkpoint.origin}'s naming, of which not all was found: take the "
        "same model as BlinkDL or Hugging Face distribute it"
    )


def _core_options(options: Options, choice: Choice) -> dict[str, Any]:
    cuda = choice.ordinal is not None
    wanted: dict[str, Any] = {
        "dtype": choice.dtype,
        "threads": options.threads or threads_here(),
        "isa": options.instruction_set,
        "cuda": cuda,
        "library": cuda_library() if cuda else None,
        "budget": options.device_memory,
    }
    if choice.ordinal:
        wanted["ordinal"] = choice.ordinal
    return wanted


def _fill(core: _core.Model, checkpoint: Checkpoint) -> None:
    """Hand over the tensors that the model wants, one at a time."""
    names = [name for name in checkpoint.tensors if core.wants(name)]
    for name in bar(names, "loading", unit=" tensors", leave=False):
        array = checkpoint.read(name)
        if array.dtype != np.float32:
            array = array.view(np.uint16)
        core.put(name, array, DTYPES[checkpoint.tensors[name].dtype])
        del array  # before the next is read: one at a time
    core.seal()


def _blocks(max_layer: MaxLayer, checkpoint: Checkpoint) -> int:
    """How many blocks are to be loaded; 0: all of them."""
    if max_layer != "default":
        return 0 if max_layer is None else max_layer + 1
    if any(_of_a_head(name) for name in checkpoint.tensors):
        return 0  # the heads of a trained embedder stand on the last block
    numbers = [int(found[1]) for name in checkpoint.tensors if (found := BLOCK.match(name))]
    return middle_layer(max(numbers) + 1) + 1 if numbers else 0  # the core says what is wrong


def _of_a_head(name: str) -> bool:
    return name.startswith("head.") and "_head." in name


def _heads(checkpoint: Checkpoint) -> dict[str, FloatArray]:
    """The sentence heads of a trained embedder, in float32; no other model has such tensors."""
    heads = {}
    for name in checkpoint.tensors:
        if _of_a_head(name):
            heads[name] = _float32(checkpoint.read(name))
    return heads


def _float32(array: np.ndarray) -> FloatArray:
    if array.dtype == np.uint16:  # bfloat16: the upper half of a float32
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)
