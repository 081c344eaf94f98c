"""RWKV models: texts become pooled hidden states of any layers in one pass.

Assumes a model that opening.py has opened. Promises that a text's embedding depends on that text
alone, whatever else is in the call; that bad input is refused with one clear exception; and that
one model may be used by several threads at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from operator import length_hint
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from . import _core, batch
from .embedder import (
    MOST_ROWS,
    FloatArray,
    Ids,
    Layer,
    Layers,
    Request,
    as_list,
    check_range,
    listed_items,
    middle_layer,
)
from .errors import CheckpointError
from .opening import MaxLayer, Opened, Options, open_model, read_head
from .progress import Show
from .running import Config, Running
from .states import State, vectors

__all__ = ["RWKV", "RWKV6", "RWKV7", "Config", "State"]

Model = TypeVar("Model", bound="RWKV")


class RWKV(Running):
    """A loaded RWKV model, an `Embedder`; make one with `rwkvsts.load` or `from_pretrained`.

    A model pickles and deep-copies as what it was opened from, and is opened again from there, on
    the device that was asked for: no weights travel. The files must be where they were.

    config : sizes of the checkpoint
    n_blocks : blocks loaded; layers 0 .. n_blocks-1 can be asked for
    tokenizer : of texts; None if the model was loaded without one
    device, dtype : what it runs on, and the type of its weights and products
    source, revision : what was given to `from_pretrained`; the commit, if it was a repository
    """

    architecture: ClassVar[str] = "RWKV"

    def __init__(self, opened: Opened, options: Options | None = None) -> None:
        super().__init__(opened)
        self._options = options
        self.device, self.dtype = opened.core.device, opened.dtype
        self.source = "" if options is None else os.fspath(options.source)
        self.revision = opened.revision

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.source}: {self.n_blocks} of {self.config.n_layer} "
            f"blocks, {self.config.n_embd} wide, {self.dtype}, {self.device}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        if self._options is None:
            raise TypeError(
                f"this {type(self).__name__} cannot be pickled or copied: it was not opened from a "
                "source, so there is nothing to open again. Make it with from_pretrained."
            )
        options = self._options
        if options.vocabulary is not None and Path(os.path.expanduser(options.vocabulary)).exists():
            vocabulary = Path(os.path.expanduser(options.vocabulary)).absolute()
            options = replace(options, vocabulary=vocabulary)
        path = Path(os.path.expanduser(options.source))
        if self.revision is not None:
            options = replace(options, revision=self.revision)
        elif options.source != "demo" and path.exists():
            options = replace(options, source=path.absolute())  # from another folder, the same file
        return _reopen, (options,)

    @classmethod
    def from_pretrained(
        cls: type[Model],
        source: str | os.PathLike[str],
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        tokenizer: str | None = "world",
        max_layer: MaxLayer = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | None = None,
        *,
        file: str | None = None,
        vocabulary: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        instruction_set: str | None = None,
        device_memory: int = 0,
    ) -> Model:
        """Load a checkpoint; the class that comes back is that of its architecture.

        Parameters
        ----------
        source : "demo" (the bundled model), a weight file, a folder, or a repository "org/name"
        revision, cache_dir, local_files_only, token : of the hub, as in huggingface_hub
        device : "cpu"; "cuda", or "cuda:1" for another than the first; "auto": CUDA where it can be
            used
        dtype : "float32", "bfloat16", "float16" (CUDA only), or "auto": bfloat16 where the hardware
            multiplies it
        tokenizer : "world"; "gpt2", the paper's; "bytes", an id is a byte; None, for encode_ids
        max_layer : the highest layer that will be asked for; blocks above it are not loaded.
            "default": the one that `encode` takes where none is named
        file : the weight file in a folder or repository of several
        vocabulary : file of tokenizer="world", on this disk or in the folder or repository;
            default: the one beside the weights
        threads : of the CPU; default: one a core that this process may use, hyperthreads not
            counted, no more than a container's CPU quota
        instruction_set : of the CPU: "portable", "avx2", "avx512", "avx512bf16", "amx"; default:
            the best there is
        device_memory : bytes of GPU memory to stay within; 0: what is free

        Raises
        ------
        CheckpointError : the files are damaged, incomplete, or not RWKV of this class
        HubError : the repository cannot be had
        DeviceError : the device cannot be used

        Examples
        --------
        >>> import rwkvsts
        >>> m = rwkvsts.load("demo", device="cpu")
        >>> m.architecture, m.encode(["One text.", "Another."]).shape
        ('RWKV-6', (2, 192))
        """
        options = Options(
            source=source,
            revision=revision,
            device=device,
            dtype=dtype,
            tokenizer=tokenizer,
            max_layer=max_layer,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            threads=threads,
            instruction_set=instruction_set,
            device_memory=device_memory,
            file=file,
            vocabulary=vocabulary,
        )
        model = _open(options, token)
        if not isinstance(model, cls):
            raise CheckpointError(
                f"{model.source}: this is {model.architecture}, not {cls.architecture}: open it "
                "with rwkvsts.load, which takes either"
            )
        return model

    @property
    def name(self) -> str:
        """The last part of the source, for tables and plots."""
        return Path(self.source).name

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Every layer that can be asked for, lowest first."""
        blocks: tuple[Layer, ...] = tuple(range(self.n_blocks))
        return (*blocks, "final") if self.n_blocks == self.config.n_layer else blocks

    @property
    def default_layer(self) -> Layer:
        """The layer that is taken where none is named."""
        return middle_layer(self.config.n_layer)

    @property
    def width(self) -> int:
        """C, the length of an embedding."""
        return self.config.n_embd

    def memory(self) -> dict[str, int]:
        """Bytes on the device: "weights", "workspace" now, and the "peak" of both together."""
        return self._core.memory()

    def head(self) -> FloatArray:
        """The language-modelling head, float32 [V, C], read from the file; the model needs it not.

        Raises
        ------
        CheckpointError : the file has none, as that of the bundled model
        """
        if self._options is None:
            raise CheckpointError("this model was not opened from a source that has a head")
        return read_head(replace(self._options, revision=self.revision))

    def encode(
        self,
        texts: str | Iterable[str],
        layers: Layers | None = None,
        pooling: str | None = None,
        prompt: str | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        normalize: bool = False,
        show_progress: Show = None,
        out: FloatArray | None = None,
        *,
        state: State | None = None,
        skip_first: bool = False,
    ) -> FloatArray:
        """Embed texts: the residual stream after the layers asked for, pooled over each text.

        Parameters
        ----------
        texts : one text or many; none may be empty
        layers : i is the stream after block i, counted from 0: `hidden_states[i]` of the official
            Hugging Face code, at true scale; "final" is after ln_out. Default: the one layer
            half-way up, n_layer // 2, because the last layers of a language model turn from what a
            text says to what comes next; `model.layers` names them all
        pooling : "mean", the default, "last" token, "weighted" (token t counts t times, from 1),
            "max"
        prompt : put before each text, or around it where it holds "{text}". What comes before the
            text is run once for all, and is not pooled; what comes after it is. With "{text}" twice
            the text is read again (echo), and the last reading alone is pooled
        max_length : tokens after which a text is cut
        batch_tokens : tokens of a pass; changes memory and speed, never a bit of the result
        normalize : scale every row to length 1
        show_progress : default: on a terminal, where it takes long; a function is called with the
            texts and tokens that are done instead, many times a second
        out : C-contiguous float32 array of the result's shape to write into, perhaps a memmap
        state : of `state`, that every text starts from
        skip_first : leave the first token of the sequence out of the pooling. It has no past, which
            a mean over few tokens shows; with a state or a prompt's prefix the sequence began
            earlier, and this changes nothing

        Returns
        -------
        float32 [S, len(layers), C]; without the first axis for one str, the second for one layer

        Raises
        ------
        ValueError : an argument is wrong, or a text is empty or has no token left to pool
        MemoryError : the device has too little memory: fewer batch_tokens need less
        """
        request = Request.of(
            self, layers, pooling, prompt, max_length, batch_tokens, normalize, show_progress, out
        )
        request = replace(request, skip_first=skip_first, state=state)
        return self._embed(*as_list(texts), request)

    def encode_ids(
        self,
        ids: Iterable[Ids],
        layers: Layers | None = None,
        pooling: str | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        normalize: bool = False,
        show_progress: Show = None,
        out: FloatArray | None = None,
        *,
        state: State | None = None,
        skip_first: bool = False,
    ) -> FloatArray:
        """`encode` from token ids, a list for each sequence; for other tokenizers and for tests."""
        request = Request.of(
            self, layers, pooling, None, max_length, batch_tokens, normalize, show_progress, out
        )
        request = replace(request, skip_first=skip_first, state=state)
        prepare = batch.from_ids(self.config.n_vocab, max_length, skip_first and state is None)
        listed = listed_items("ids", ids)
        return self._encode(listed, (len(listed),), prepare, request)

    def reader(
        self,
        layers: Layers | None = None,
        pooling: str | None = None,
        prompt: str | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        normalize: bool = False,
    ) -> batch.Reader:
        """`encode` for texts that come some at a time, whose passes are as full as in one call.

        Arguments are those of `encode`.
        """
        request = Request.of(self, layers, pooling, prompt, max_length, batch_tokens, normalize)
        return self._reader(*self._reading(request))

    def state(self, prefix: str | Ids, state: State | None = None) -> State:
        """The state after a prefix, text or token ids, from which `encode` can start every text."""
        if isinstance(prefix, str):
            prefix = self._need_tokenizer().encode(prefix)
        if not length_hint(prefix, 1):
            raise ValueError("prefix is empty, and leaves no state: encode without state= instead")
        return self._after(prefix, state)

    def branch(
        self,
        texts: str | Iterable[str],
        suffixes: Iterable[str],
        layers: Layers | None = None,
        pooling: str = "last",
        prompt: str | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        normalize: bool = False,
        show_progress: Show = None,
        out: FloatArray | None = None,
        *,
        state: State | None = None,
    ) -> FloatArray:
        """Read each text once, then every suffix from the text's own state; pool the suffixes.

        For prompts that end in several ways, as MetaEOL's do: eight endings cost one reading of the
        text and eight of some ten tokens. Arguments are those of `encode`; the bits are those of
        reading text and suffix in one, on CUDA in bfloat16 those of a state continued.

        Parameters
        ----------
        suffixes : what follows each text and the rest of the prompt; tokenized each for itself

        Returns
        -------
        float32 [S, len(suffixes), len(layers), C]; without the first axis for one str, the third
        for one layer

        Examples
        --------
        >>> import rwkvsts
        >>> m = rwkvsts.load("demo", device="cpu")
        >>> endings = [" In one word:", " Its topic is"]
        >>> m.branch(["Rates rose.", "It rained."], endings, prompt='"{text}"').shape
        (2, 2, 192)
        """
        request = Request.of(
            self, layers, pooling, prompt, max_length, batch_tokens, normalize, show_progress, out
        )
        listed, axes = as_list(texts)
        prepare, request = self._reading(replace(request, state=state))
        if isinstance(suffixes, str):  # its letters would be taken
            raise TypeError("suffixes is str: expected a list of str, as [' In one word:']")
        endings = listed_items("suffixes", suffixes)
        if not endings:
            raise ValueError("suffixes is empty: name at least one")
        ends = batch.from_texts(self._need_tokenizer(), name="suffixes")(endings, 0)
        K = len(endings)
        result, rows = request.result((*axes, K), self.width)
        for first, states in self._states_of(listed, prepare, request):
            n = len(states.wkv)
            each = batch.Batch(np.tile(ends.ids, n), batch.repeated(ends.start, n))
            part = rows[first * K : (first + n) * K]
            own = np.repeat(np.arange(n), K)
            self._run(each, replace(request, state=states), part, origin=own)
            request.finish(part)
        return result

    def encode_states(
        self,
        texts: str | Iterable[str],
        layers: Layers | None = None,
        width: int | None = 1024,
        prompt: str | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        normalize: bool = False,
        show_progress: Show = None,
        out: FloatArray | None = None,
        *,
        state: State | None = None,
    ) -> FloatArray:
        """Embed each text by what the model remembers of it: the blocks' states after its end.

        Each head's matrix is scaled to length 1, see `rwkvsts.states.vectors`. Arguments are those
        of `encode`, except that a layer is a block, and "final" has no state.

        Parameters
        ----------
        width : numbers a vector, a projection; None for all H N N

        Returns
        -------
        float32 [S, len(layers), width]; no first axis for one str, no second for one layer
        """
        request = Request.of(
            self, layers, None, prompt, max_length, batch_tokens, normalize, show_progress, out
        )
        self._check_below(self.n_blocks, request, "state")
        check_range("width", width, 1, self.width * self.config.head_size)
        listed, axes = as_list(texts)
        prepare, request = self._reading(replace(request, state=state))
        result, rows = request.result(axes, width or self.width * self.config.head_size)
        for first, states in self._states_of(listed, prepare, request):
            part = rows[first : first + len(states.wkv)]
            part[:] = vectors(states.wkv[:, list(request.columns)], width)
            request.finish(part)
        return result

    def norms(
        self, texts: str | Iterable[str], layers: Layers | None = None, positions: int = 16
    ) -> FloatArray:
        """Lengths of the stream at the first tokens: float32 [S, len(layers), positions].

        NaN beyond a text's end. A softmax-attention model's first token stands out here.
        """
        check_range("positions", positions, 1, MOST_ROWS)
        listed, _ = as_list(texts)
        request = replace(Request.of(self, layers), pooling="last")
        self._check_below(self.n_blocks + ("final" in self.layers), request, "stream")
        read = batch.from_texts(self._need_tokenizer(), positions)(listed, 0)
        lengths = np.diff(read.start)
        beginnings = [
            read.ids[a : a + t + 1]
            for a, length in zip(read.start, lengths, strict=False)
            for t in range(length)
        ]
        streams = np.empty((len(beginnings), len(request.columns), self.width), np.float32)
        self._run(batch.Batch(*batch.join(beginnings)), request, streams)
        result = np.full((len(listed), len(request.columns), positions), np.nan, np.float32)
        there = np.arange(positions) < lengths[:, None]
        result.swapaxes(1, 2)[there] = _core.in_default_floats(
            lambda: np.linalg.norm(streams, axis=-1)
        )
        return result


class RWKV6(RWKV):
    """A loaded RWKV-6 "Finch" model; make one with `from_pretrained`."""

    architecture = "RWKV-6"


class RWKV7(RWKV):
    """A loaded RWKV-7 "Goose" model; make one with `from_pretrained`."""

    architecture = "RWKV-7"


# What the core finds a file to be, and the class of such a model.
ARCHITECTURES: dict[str, type[RWKV]] = {kind.architecture: kind for kind in (RWKV6, RWKV7)}


def _open(options: Options, token: str | None = None) -> RWKV:
    opened = open_model(options, token)
    if opened.heads:
        # Imported here: the class derives from one of this module.
        from .embedding_rwkv import EmbeddingRWKV

        return EmbeddingRWKV(opened, options)
    return ARCHITECTURES[opened.core.architecture](opened, options)


def _reopen(options: Options) -> RWKV:
    """What a pickle of a model names: it is opened again, with the credentials of this machine."""
    return _open(options)
