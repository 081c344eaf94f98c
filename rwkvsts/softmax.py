"""Causal language models of Hugging Face as embedders: softmax attention beside RWKV.

Assumes `transformers` and PyTorch, the extra `softmax`, imported when a model is made. Promises
RWKV's layers, poolings, prompts and shapes; that only texts of one length run together, so that
nothing is padded; and that no code and no pickle of a repository is executed.

A text's embedding is the same alone and in a batch but for rounding: PyTorch sums in an order that
depends on the number of rows. In float32 that is some 1e-6 of a row's length a block.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .batch import Bar, check_left, from_ids, warn_of_rows
from .embedder import (
    BaseEmbedder,
    FloatArray,
    Ids,
    Layer,
    Layers,
    Prompt,
    Request,
    as_list,
    check_texts,
    listed_items,
    middle_layer,
)
from .errors import CheckpointError

BATCH_TOKENS = 4096  # tokens of a pass by default
EXTRA = "pip install 'rwkvsts[softmax]'"


class _Enough(Exception):
    """The highest layer asked for has been reached."""


class CausalLM(BaseEmbedder):
    """A causal language model of transformers, an `Embedder`; make one with `from_pretrained`.

    model : the module, a `transformers.PreTrainedModel` with a language-modelling head
    tokenizer : of texts; None for encode_ids alone

    What `encode` does here:

    layers : i is the stream after block i, counted from 0, before any norm of the next block:
        `hidden_states[i + 1]` of transformers, but for the last block, which that does not give;
        "final" is after the last norm. Default: the one half-way up
    pooling : "mean", the default, "last" token, "weighted" (token t counts t times, from 1), "max"
    prompt : what comes before the last place of the text is not pooled; what comes after it is.
        Prompt and text are tokenized each for itself
    skip_first : softmax attention rests on the first token, and its stream is so long that a mean
        drowns in it. A prompt's prefix is not pooled anyway, so that this changes nothing there
    """

    def __init__(
        self, model: Any, tokenizer: Any = None, source: str = "", revision: str | None = None
    ) -> None:
        self._model = model.eval()
        self._base = model.base_model
        self.tokenizer = tokenizer
        self.source, self.revision = source, revision
        self.architecture = str(model.config.model_type)
        self._blocks = _blocks_of(self._base, model.config.num_hidden_layers)

    def __repr__(self) -> str:
        return (
            f"<CausalLM {self.source}: {self.architecture}, {len(self._blocks)} blocks, "
            f"{self.width} wide, {self.dtype}, {self.device}>"
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | None = None,
    ) -> CausalLM:
        """Load a model and its tokenizer.

        Parameters
        ----------
        source : a .gguf file, a folder, or a repository "org/name"; weights as safetensors or GGUF
        revision, cache_dir, local_files_only, token : of the hub, as in huggingface_hub
        device : PyTorch's name of it, or "auto": CUDA where it can be used
        dtype : "float32", "bfloat16", "float16", or "auto": float32 on a CPU, else bfloat16

        Raises
        ------
        ImportError : the extra `softmax` is not installed
        CheckpointError : there is no such model, or transformers cannot read it

        Examples
        --------
        >>> from rwkvsts.softmax import CausalLM
        >>> m = CausalLM.from_pretrained("EleutherAI/pythia-160m")  # doctest: +SKIP
        >>> m.encode(["One text.", "Another."], skip_first=True).shape  # doctest: +SKIP
        (2, 768)
        """
        torch, transformers = _libraries()
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto":
            dtype = "float32" if device == "cpu" else "bfloat16"
        if dtype not in ("float32", "bfloat16", "float16"):
            expected = "expected 'auto', 'float32', 'bfloat16' or 'float16'"
            raise ValueError(f"dtype={dtype!r}: {expected}")
        name, path = os.fspath(source), Path(os.path.expanduser(source))
        place, how = _place(path, name)
        how |= {"revision": revision, "cache_dir": cache_dir, "token": token}
        how["local_files_only"] = local_files_only or path.exists()
        weights = {"dtype": getattr(torch, dtype), "use_safetensors": True}
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(place, **how)
            model = transformers.AutoModelForCausalLM.from_pretrained(place, **weights, **how)
        except (OSError, ValueError, KeyError) as error:
            first = (str(error).strip().splitlines() or [""])[0]
            raise CheckpointError(
                f"{name}: transformers cannot open it ({type(error).__name__}: {first}); give a "
                ".gguf file, or a folder or repository with config.json, model.safetensors and "
                "the tokenizer's files"
            ) from error
        commit = getattr(model.config, "_commit_hash", None)
        return cls(model.to(device), tokenizer, name, commit)

    # ---- what it is -----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The last part of the source, for tables and plots."""
        return Path(self.source).name.removesuffix(".gguf")

    @property
    def device(self) -> str:
        """PyTorch's name of the device."""
        return str(self._model.device)

    @property
    def dtype(self) -> str:
        """Of the weights and products; norms and pooling are float32 where the model does that."""
        return str(self._model.dtype).removeprefix("torch.")

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Every layer that can be asked for, lowest first."""
        return (*range(len(self._blocks)), "final")

    @property
    def default_layer(self) -> Layer:
        """The layer that is taken where none is named."""
        return middle_layer(len(self._blocks))

    @property
    def width(self) -> int:
        """C, the length of an embedding."""
        return int(self._model.config.hidden_size)

    def memory(self) -> dict[str, int]:
        """Bytes on the device: "weights", "workspace" now, and the "peak" of both together.

        On a CPU the weights alone: PyTorch does not count the rest there.
        """
        torch, _ = _libraries()
        weights = sum(p.numel() * p.element_size() for p in self._model.parameters())
        if self._model.device.type != "cuda":
            return {"weights": weights, "workspace": 0, "peak": weights}
        now = torch.cuda.memory_allocated(self._model.device)
        peak = torch.cuda.max_memory_allocated(self._model.device)
        return {"weights": weights, "workspace": max(0, now - weights), "peak": peak}

    def head(self) -> FloatArray:
        """The language-modelling head, float32 [V, C]; the embedding where they are tied."""
        weight = self._model.get_output_embeddings().weight
        return np.asarray(weight.detach().float().cpu().numpy(), np.float32)

    # ---- what it does ---------------------------------------------------------------------------

    def encode_ids(
        self,
        ids: Iterable[Ids],
        layers: Layers | None = None,
        pooling: str | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        normalize: bool = False,
        show_progress: bool | None = None,
        out: FloatArray | None = None,
        *,
        skip_first: bool = False,
    ) -> FloatArray:
        """`encode` from token ids, a list for each sequence, taken as they are."""
        request = Request.of(
            self, layers, pooling, None, max_length, batch_tokens, normalize, show_progress, out
        )
        listed = listed_items("ids", ids)
        vocabulary = int(self._model.get_input_embeddings().weight.shape[0])
        read = from_ids(vocabulary, max_length)(listed, 0)
        sequences = [read.ids[a:b].tolist() for a, b in pairwise(read.start)]
        request = replace(request, skip_first=skip_first)
        return self._encode("ids", sequences, [0] * len(listed), (len(listed),), request)

    def norms(
        self, texts: str | Iterable[str], layers: Layers | None = None, positions: int = 16
    ) -> FloatArray:
        """Lengths of the stream at the first tokens: float32 [S, len(layers), positions].

        NaN beyond a text's end. Where a model has an attention sink, the first position shows it.
        """
        listed, _ = as_list(texts)
        columns = Request.of(self, layers).columns
        result = np.full((len(listed), len(columns), positions), np.nan, np.float32)
        sequences, _ = self._read(listed, Prompt(), positions)
        lengths = np.minimum([len(ids) for ids in sequences], positions)
        for places in _batches(lengths, BATCH_TOKENS):
            ids = np.array([sequences[i][:positions] for i in places])
            for column, stream in self._streams(ids, set(columns)):
                length = stream.float().norm(dim=-1).cpu().numpy()  # [S, T]
                for i, asked in enumerate(columns):
                    if asked == column:
                        result[places, i, : ids.shape[1]] = length
        return result

    def _embed(self, texts: list[Any], axes: tuple[int, ...], request: Request) -> FloatArray:
        sequences, skips = self._read(texts, request.prompt, request.max_length)
        return self._encode("texts", sequences, skips, axes, request)

    def _read(
        self, texts: list[Any], prompt: Prompt, max_length: int | None
    ) -> tuple[list[list[int]], list[int]]:
        """Ids of each text in its prompt, and how many of them come before what is pooled."""
        if self.tokenizer is None:
            raise ValueError("the model was made without a tokenizer: use encode_ids")
        check_texts(texts)
        before = self._first_ids() + self._ids(prompt.before)
        between, after = [self._ids(piece) for piece in prompt.between], self._ids(prompt.after)
        sequences, skips = [], []
        for i, text in enumerate(texts):
            ids = self._ids(text)[:max_length]
            if not ids:
                raise ValueError(f"texts[{i}] is empty: it has no token to pool. Leave it out.")
            read = before + [id for piece in between for id in ids + piece]
            sequences.append(read + ids + after)
            # The tokenizer's own first token is read as part of the text, as RWKV reads a state.
            skips.append(len(read) if prompt.before or between else 0)
        return sequences, skips

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _first_ids(self) -> list[int]:
        """What the tokenizer puts before a text by itself, as a beginning-of-sequence token."""
        whole, bare = list(self.tokenizer("a")["input_ids"]), self._ids("a")
        return next(whole[:i] for i in range(len(whole)) if whole[i : i + len(bare)] == bare)

    def _encode(
        self,
        name: str,
        sequences: list[list[int]],
        skips: list[int],
        axes: tuple[int, ...],
        request: Request,
    ) -> FloatArray:
        """The embeddings of ids; `name` is what the caller calls them, `axes` as in `_embed`."""
        result, rows = request.result(axes, self.width)
        if not sequences:
            return result
        first = np.maximum(skips, 1) if request.skip_first else np.asarray(skips)
        lengths = np.array([len(ids) for ids in sequences])
        check_left(first, lengths, name, 0)
        with Bar(len(sequences), request.show_progress) as bar:
            bar.expect(0, int(lengths.sum()))
            done = 0
            for places in _batches(lengths, request.batch_tokens or BATCH_TOKENS):
                ids = np.array([sequences[i] for i in places])
                self._pass(ids, first[places], request, rows, places)
                done += len(places)
                bar.update(done)
        warn_of_rows(rows, 0, [self.layers[i] for i in request.columns])
        request.finish(rows)
        return result

    def _pass(self, ids: Any, first: Any, request: Request, rows: FloatArray, places: Any) -> None:
        """Fill the rows of some sequences of one length."""
        for column, stream in self._streams(ids, set(request.columns)):
            pooled = _pool(stream, first, request.pooling)
            for i, asked in enumerate(request.columns):
                if asked == column:
                    rows[places, i] = pooled

    def _streams(self, ids: Any, columns: set[int]) -> Iterator[tuple[int, Any]]:
        """The stream [S, T, C] at each column asked for, lowest first; nothing above them is run.

        ids : [S, T]
        """
        torch, _ = _libraries()
        found: dict[int, Any] = {}
        L = len(self._blocks)

        def keep(column: int) -> Callable[[Any, Any, Any], None]:
            def hook(module: Any, given: Any, output: Any) -> None:
                found[column] = output[0] if isinstance(output, tuple) else output
                if column == max(columns):
                    raise _Enough

            return hook

        hooks = [self._blocks[i].register_forward_hook(keep(i)) for i in sorted(columns - {L})]
        try:
            with torch.inference_mode():
                given = torch.as_tensor(ids, device=self._model.device)
                output = self._base(input_ids=given, use_cache=False)
                found[L] = output.last_hidden_state
        except _Enough:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        yield from ((column, found[column]) for column in sorted(columns))


def _libraries() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ImportError(
            f"models of Hugging Face need PyTorch and transformers ({error}): {EXTRA}"
        ) from error
    return torch, transformers


def _place(path: Path, name: str) -> tuple[str, dict[str, Any]]:
    """What transformers is to open, and with which options: a GGUF file is named by its folder."""
    if path.is_file() and path.suffix == ".gguf":
        return str(path.parent), {"gguf_file": path.name}
    return (str(path) if path.exists() else name), {}


def _blocks_of(base: Any, count: int) -> Any:
    """The list of blocks, found by its length: each architecture has another name for it."""
    lists = [child for child in base.children() if type(child).__name__ == "ModuleList"]
    fitting = [child for child in lists if len(child) == count]
    if len(fitting) != 1:
        raise CheckpointError(
            f"{type(base).__name__}: expected one list of {count} blocks, found "
            f"{[len(child) for child in lists]}: this architecture is not known here"
        )
    return fitting[0]


def _batches(lengths: Any, batch_tokens: int) -> Iterator[Any]:
    """Places of sequences that run together: of one length, at most batch_tokens in all."""
    order = np.argsort(lengths, kind="stable")
    for same in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
        step = max(1, batch_tokens // int(lengths[same[0]]))
        yield from (same[i : i + step] for i in range(0, len(same), step))


def _pool(stream: Any, first: Any, pooling: str) -> FloatArray:
    """Pool [S, T, C] over the tokens from `first` [S] on, in float32: float32 [S, C]."""
    torch, _ = _libraries()
    stream = stream.float()
    if pooling == "last":
        pooled = stream[:, -1]
    else:
        place = torch.arange(stream.shape[1], device=stream.device)
        place = place - torch.as_tensor(first, device=stream.device)[:, None]  # [S, T]
        if pooling == "max":
            pooled = stream.masked_fill((place < 0)[:, :, None], -torch.inf).amax(dim=1)
        else:
            weight = (place + 1).clamp(min=0).float()
            weight = weight if pooling == "weighted" else weight.clamp(max=1)
            pooled = torch.einsum("st,stc->sc", weight / weight.sum(1, keepdim=True), stream)
    return np.asarray(pooled.cpu().numpy(), np.float32)
