"""RWKV6: a checkpoint becomes a model, texts become pooled hidden states.

Assumes weights and vocabulary read by checkpoint.py and tokenizer.py. Promises that a text's
embedding depends on that text alone, whatever else is in the call; that bad input is refused with
one clear exception; and that one model may be used by several threads at a time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _core, batch
from .device import choose, cuda_library, threads_here
from .errors import CheckpointError
from .files.checkpoint import Checkpoint, open_checkpoint
from .files.hub import fetch, resolve
from .progress import bar
from .tokenizer import Tokenizer, load

Layer = int | Literal["final"]
Layers = Layer | Sequence[Layer]
FloatArray = NDArray[np.float32]

PAPER_LAYERS: tuple[Layer, ...] = (1, 3, 5, 7, 9, 11)
POOLING = ("mean", "last", "weighted", "max")  # in the order of enum pooling in csrc/backend.h
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
DEMO = Path(__file__).parent / "assets" / "demo"
PLACE = "{text}"
MOST_BLOCKS, MOST_THREADS, MOST_ROWS = 4096, 1024, 2**24  # what the core takes


@dataclass(frozen=True)
class Config:
    """Sizes of a checkpoint, read off its tensors."""

    n_layer: int
    n_embd: int
    n_head: int
    head_size: int
    n_ffn: int
    n_vocab: int


class State(NamedTuple):
    """The past of one sequence, float32; C embedding, H heads, N head size, L blocks loaded."""

    att_x: FloatArray  # [L, C]
    ffn_x: FloatArray  # [L, C]
    wkv: FloatArray  # [L, H, N, N], (key, value)

    def __repr__(self) -> str:  # a tuple's own would be pages of numbers
        return f"<State {', '.join(f'{n} {np.shape(a)}' for n, a in self._asdict().items())}>"


class RWKV6:
    """A loaded RWKV-6 model; make one with `from_pretrained`.

    config : sizes of the checkpoint
    n_blocks : blocks loaded; layers 0 .. n_blocks-1 can be asked for
    tokenizer : of texts; None if the model was loaded without one
    device, dtype : what it runs on, and the type of its weights and products
    source, revision : what was given to `from_pretrained`; the commit, if it was a repository
    """

    def __init__(
        self,
        core: _core.Model,
        tokenizer: Tokenizer | None,
        source: str,
        revision: str | None,
        dtype: str,
        n_blocks: int,
    ) -> None:
        self._core = core
        self.tokenizer = tokenizer
        self.config = Config(**core.config)
        self.n_blocks = n_blocks
        self.device, self.dtype = core.device, dtype
        self.source, self.revision = source, revision

    def __repr__(self) -> str:
        return (
            f"<RWKV6 {self.source}: {self.n_blocks} of {self.config.n_layer} blocks, "
            f"{self.config.n_embd} wide, {self.dtype}, {self.device}>"
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        tokenizer: str | None = "world",
        max_layer: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | None = None,
        *,
        threads: int | None = None,
        instruction_set: str | None = None,
        device_memory: int = 0,
    ) -> RWKV6:
        """Load a checkpoint.

        Parameters
        ----------
        source : "demo" (the bundled model), a weight file, a folder, or a repository "org/name"
        revision, cache_dir, local_files_only, token : of the hub, as in huggingface_hub
        device : "cpu", "cuda", or "auto": CUDA where it can be used
        dtype : "float32", "bfloat16", "float16" (CUDA only), or "auto": bfloat16 where the hardware
            multiplies it
        tokenizer : "world"; "gpt2", the paper's; "bytes", an id is a byte; None, for encode_ids
        max_layer : the highest layer that will be asked for; blocks above it are not loaded
        threads : of the CPU; default: the processors that this process may use
        instruction_set : of the CPU: "portable", "avx2", "avx512", "avx512bf16", "amx"; default:
            the best there is
        device_memory : bytes of GPU memory to stay within; 0: what is free

        Raises
        ------
        CheckpointError : the files are damaged, incomplete, or not RWKV-6
        HubError : the repository cannot be had
        DeviceError : the device cannot be used
        """
        device, dtype = choose(device, dtype, instruction_set)
        _check_range("max_layer", max_layer, 0, MOST_BLOCKS - 1)
        _check_range("threads", threads, 1, MOST_THREADS)
        _check_range("device_memory", device_memory, 0, sys.maxsize)
        hub: dict[str, Any] = {
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "token": token,
        }
        name = os.fspath(source)
        found = resolve(DEMO if name == "demo" else source, revision=revision, **hub)
        with open_checkpoint(found) as checkpoint:
            shape = getattr(checkpoint.tensors.get("emb.weight"), "shape", ())
            n_vocab = shape[0] if shape else 0  # the core says what is wrong with it
            vocabulary = load(tokenizer, found.vocabulary, n_vocab, partial(fetch, **hub))
            try:
                core = _core.Model(
                    [(tensor, info.shape) for tensor, info in checkpoint.tensors.items()],
                    blocks=0 if max_layer is None else max_layer + 1,
                    dtype=dtype,
                    threads=threads or threads_here(),
                    isa=instruction_set,
                    cuda=device == "cuda",
                    library=cuda_library() if device == "cuda" else None,
                    budget=device_memory,
                )
                _fill(core, checkpoint)
            except CheckpointError:
                raise  # it names its file
            except ValueError as error:
                raise CheckpointError(f"{name}: {error}") from error
        blocks = core.config["n_layer"] if max_layer is None else max_layer + 1
        return cls(core, vocabulary, name, found.revision, dtype, blocks)

    def memory(self) -> dict[str, int]:
        """Bytes on the device: "weights", "workspace" now, and the "peak" of both together."""
        return self._core.memory()

    def encode(
        self,
        texts: str | Sequence[str],
        layers: Layers = PAPER_LAYERS,
        pooling: str = "mean",
        prompt: str | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        normalize: bool = False,
        show_progress: bool | None = None,
        out: FloatArray | None = None,
        *,
        state: State | None = None,
    ) -> FloatArray:
        """Embed texts: the residual stream after the layers asked for, pooled over each text.

        Parameters
        ----------
        texts : one text or many; none may be empty
        layers : i is the stream after block i, counted from 0: `hidden_states[i]` of the official
            Hugging Face code, at true scale; "final" is after ln_out
        pooling : "mean", "last" token, "weighted" (token t counts t times, from 1), "max"
        prompt : put before each text, or around it where it holds "{text}". What comes before the
            text is run once for all, and is not pooled; what comes after it is
        max_length : tokens after which a text is cut
        batch_tokens : tokens of a pass; changes memory and speed, never a bit of the result
        normalize : scale every row to length 1
        show_progress : default: on a terminal, where it takes long
        out : C-contiguous float32 array of the result's shape to write into, perhaps a memmap
        state : of `state`, that every text starts from

        Returns
        -------
        float32 [S, len(layers), C]; without the first axis for one str, the second for one layer

        Raises
        ------
        ValueError : an argument is wrong, or a text is empty
        MemoryError : the device has too little memory: fewer batch_tokens need less
        """
        tokenizer = self._need_tokenizer()
        before, _, after = (prompt or "").partition(PLACE)
        if before:
            state = self.state(before, state)
        request = _Request(layers, pooling, batch_tokens, normalize, show_progress, out, state)
        prepare = batch.from_texts(tokenizer, max_length, after)
        if isinstance(texts, str):
            return self._encode([texts], (), prepare, request)
        listed = list(texts)
        return self._encode(listed, (len(listed),), prepare, request)

    def encode_ids(
        self,
        ids: Sequence[Sequence[int]],
        layers: Layers = PAPER_LAYERS,
        pooling: str = "mean",
        max_length: int | None = None,
        batch_tokens: int | None = None,
        normalize: bool = False,
        show_progress: bool | None = None,
        out: FloatArray | None = None,
        *,
        state: State | None = None,
    ) -> FloatArray:
        """`encode` from token ids, a list for each sequence; for other tokenizers and for tests."""
        request = _Request(layers, pooling, batch_tokens, normalize, show_progress, out, state)
        listed = list(ids)
        prepare = batch.from_ids(self.config.n_vocab, max_length)
        return self._encode(listed, (len(listed),), prepare, request)

    def state(self, prefix: str | Sequence[int], state: State | None = None) -> State:
        """The state after a prefix, text or token ids, from which `encode` can start every text."""
        if isinstance(prefix, str):
            prefix = self._need_tokenizer().encode(prefix)
        ids, start = batch.from_ids(self.config.n_vocab)([prefix], 0)
        none = np.empty(0, np.int32)
        last = self._core.run(ids, start, none, 0, None, state, True, 0, None)
        assert last is not None  # it was asked for
        return State(*(array[0] for array in last))

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError("the model was loaded with tokenizer=None: use encode_ids")
        return self.tokenizer

    def _columns(self, layers: Layers) -> NDArray[np.int32]:
        """Layers as the core counts them, "final" being n_blocks."""
        if not _is_one(layers) and not isinstance(layers, Iterable):
            raise TypeError(f"layers={layers!r}: expected a layer or a list of layers")
        listed: list[Any] = [layers] if _is_one(layers) else list(layers)  # type: ignore[arg-type]
        if not listed:
            raise ValueError("layers is empty: name at least one")
        whole = self.n_blocks == self.config.n_layer
        known: dict[Any, int] = {i: i for i in range(self.n_blocks)}
        if whole:
            known["final"] = self.n_blocks
        for layer in listed:
            if isinstance(layer, bool) or layer not in known:
                raise ValueError(
                    f"layer {layer!r}: this model holds layers 0 .. {self.n_blocks - 1}"
                    + (' and "final"' if whole else "")
                )
        return np.array([known[layer] for layer in listed], np.int32)

    def _encode(
        self, items: list[Any], axes: tuple[int, ...], prepare: batch.Prepare, request: _Request
    ) -> FloatArray:
        """axes : (S,), or () where the caller gave one str and wants no first axis."""
        columns = self._columns(request.layers)
        if not items:
            raise ValueError("there is nothing to encode: the list is empty")
        S, C = len(items), self.config.n_embd
        each = () if _is_one(request.layers) else (len(columns),)
        result = request.result((*axes, *each, C))
        rows = result.reshape(S, len(columns), C)
        settings = columns, POOLING.index(request.pooling)
        limit = request.batch_tokens or 0
        with batch.Bar(S, request.show_progress) as bar:
            for first, (ids, start) in batch.ahead(items, prepare):
                part = rows[first : first + len(start) - 1]
                bar.expect(first, len(ids))
                self._core.run(ids, start, *settings, part, request.state, False, limit, bar.update)
                bar.update(len(part))
                if request.normalize:
                    length = np.linalg.norm(part, axis=-1, keepdims=True)
                    np.divide(part, length, out=part, where=length > 0)
        return result


@dataclass(frozen=True)
class _Request:
    """What encode and encode_ids have in common, checked."""

    layers: Layers
    pooling: str
    batch_tokens: int | None
    normalize: bool
    show_progress: bool | None
    out: FloatArray | None
    state: State | None

    def __post_init__(self) -> None:
        if self.pooling not in POOLING:
            raise ValueError(f"pooling={self.pooling!r}: expected one of {', '.join(POOLING)}")
        _check_range("batch_tokens", self.batch_tokens, 1, MOST_ROWS)

    def result(self, shape: tuple[int, ...]) -> FloatArray:
        """The caller's array if it gave one that fits, else a new one."""
        if self.out is None:
            return np.empty(shape, np.float32)
        out = self.out
        if not isinstance(out, np.ndarray):
            raise TypeError(f"out is {type(out).__name__}: expected a NumPy array")
        if (
            out.dtype != np.float32
            or out.shape != shape
            or not out.flags.c_contiguous & out.flags.writeable
        ):
            raise ValueError(
                f"out is {out.dtype} of shape {out.shape}: expected writable C-contiguous float32 "
                f"of shape {shape}"
            )
        return out


def _is_one(layers: Layers) -> bool:
    """Whether one layer is named, not several: the result has no axis for it then."""
    return isinstance(layers, (int, str, np.integer))


def _check_range(name: str, value: int | None, least: int, most: int) -> None:
    if value is not None and not least <= value <= most:
        raise ValueError(f"{name}={value}: expected {least} .. {most}")


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
