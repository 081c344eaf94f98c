"""Trained sentence embedders of the library sentence-transformers, as marks beside the others.

Assumes that library, imported when a model is made: pip install sentence-transformers. Promises
that the model's own pooling is used, and that what it has not is refused.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .embedder import (
    BaseEmbedder,
    FloatArray,
    Layer,
    Layers,
    Request,
    as_list,
    check_range,
    check_texts,
)
from .errors import CheckpointError

BATCH = 32  # texts of a pass by default


class Trained(BaseEmbedder):
    """A model of sentence-transformers, an `Embedder`; make one with `from_pretrained`.

    model : a `sentence_transformers.SentenceTransformer`
    """

    layers: tuple[Layer, ...] = ("final",)
    poolings = ("own",)

    def __init__(self, model: Any, source: str = "", revision: str | None = None) -> None:
        self._model = model
        self.source, self.revision = source, revision

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        revision: str | None = None,
        device: str = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | None = None,
    ) -> Trained:
        """Load a folder or repository of sentence-transformers, from safetensors, without its code.

        Raises
        ------
        ImportError : sentence-transformers is not installed
        CheckpointError : there is no such model, or the library cannot read it
        """
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ImportError(
                f"trained embedders need sentence-transformers ({error}): "
                "pip install sentence-transformers"
            ) from error
        name = os.fspath(source)
        try:
            model = SentenceTransformer(
                name,
                revision=revision,
                device=None if device == "auto" else device,
                cache_folder=None if cache_dir is None else os.fspath(cache_dir),
                local_files_only=local_files_only or Path(name).exists(),
                token=token,
                model_kwargs={"use_safetensors": True},
            )
        except (OSError, ValueError) as error:
            first = (str(error).strip().splitlines() or [""])[0]
            raise CheckpointError(
                f"{name}: sentence-transformers cannot open it ({type(error).__name__}: {first})"
            ) from error
        return cls(model, name, revision)

    @property
    def name(self) -> str:
        """The last part of the source, for tables and plots."""
        return Path(self.source).name

    @property
    def architecture(self) -> str:
        """The kind of the transformer inside."""
        inner = getattr(self._model[0], "auto_model", None)
        return str(inner.config.model_type) if inner is not None else "sentence-transformers"

    @property
    def device(self) -> str:
        """PyTorch's name of the device."""
        return str(self._model.device)

    @property
    def dtype(self) -> str:
        """Of the weights."""
        return str(next(iter(self._model.parameters())).dtype).removeprefix("torch.")

    @property
    def width(self) -> int:
        """C, the length of an embedding."""
        return int(self._model.get_embedding_dimension())

    def memory(self) -> dict[str, int]:
        """Bytes of the weights; the library does not tell the rest."""
        weights = sum(p.numel() * p.element_size() for p in self._model.parameters())
        return {"weights": weights, "workspace": 0, "peak": weights}

    def encode(
        self,
        texts: str | Sequence[str],
        layers: Layers | None = None,
        pooling: str = "own",
        prompt: str | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        normalize: bool = False,
        show_progress: bool | None = None,
        out: FloatArray | None = None,
        *,
        skip_first: bool = False,
    ) -> FloatArray:
        """Embed texts: float32 [S, C].

        Parameters
        ----------
        texts : one text or many
        layers, pooling : "final" and "own", the model's own, are all there is
        prompt : put around each text, and read and pooled with it, as these models are trained
        max_length : tokens after which a text is cut, the model's special tokens among them;
            default and upper limit: the model's own
        batch_tokens : tokens of a pass, counted as if every text were of the greatest length
        normalize, show_progress, out : as for every model
        skip_first : refused: these models pool by their own rule
        """
        if skip_first:
            raise ValueError("skip_first: a trained embedder pools by its own rule")
        request = Request.of(
            self, layers, pooling, prompt, max_length, batch_tokens, normalize, show_progress, out
        )
        return self._embed(*as_list(texts), request)

    def _embed(self, texts: list[Any], axes: tuple[int, ...], request: Request) -> FloatArray:
        check_texts(texts)
        result, rows = request.result(axes, self.width)
        if not texts:
            return result
        own = int(self._model.max_seq_length)
        check_range("max_length", request.max_length, 1, own)
        longest = request.max_length or own
        self._model.max_seq_length = longest
        tokens = request.batch_tokens or BATCH * longest
        try:
            found = self._model.encode(
                [request.prompt.around(text) for text in texts],
                batch_size=max(1, tokens // longest),
                show_progress_bar=bool(request.show_progress),
                convert_to_numpy=True,
            )
        finally:
            self._model.max_seq_length = own
        rows[:] = np.asarray(found, np.float32)[:, None]
        request.finish(rows)
        return result
