"""Trained sentence embedders of the library sentence-transformers, as marks beside the others.

Assumes that library, imported when a model is made: pip install sentence-transformers. Promises
that the model's own pooling is used, and that what it has not is refused.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np

from .embedder import MOST_ROWS, BaseEmbedder, FloatArray, Layer, Request, check_range, check_texts
from .errors import CheckpointError

BATCH = 32  # texts of a pass by default


class Trained(BaseEmbedder):
    """A model of sentence-transformers, an `Embedder`; make one with `from_pretrained`.

    model : a `sentence_transformers.SentenceTransformer`; it is not changed

    What `encode` does here:

    layers, pooling : "final" and "own", the model's own, are all there is
    prompt : put around each text, and read and pooled with it, as these models are trained
    max_length : tokens after which a text is cut, the model's special tokens among them; default
        and upper limit: the model's own; refused by a model that cuts no text
    batch_tokens : tokens of a pass, counted as if every text were of the greatest length
    skip_first : refused: these models pool by their own rule
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
        name, path = os.fspath(source), Path(os.path.expanduser(source))
        try:
            model = SentenceTransformer(
                str(path) if path.exists() else name,
                revision=revision,
                device=None if device == "auto" else device,
                cache_folder=None if cache_dir is None else os.fspath(cache_dir),
                local_files_only=local_files_only or path.exists(),
                token=token,
                model_kwargs={"use_safetensors": True},
            )
        except (OSError, ValueError) as error:
            first = (str(error).strip().splitlines() or [""])[0]
            raise CheckpointError(
                f"{name}: sentence-transformers cannot open it ({type(error).__name__}: {first})"
            ) from error
        inner = getattr(model[0], "auto_model", None)
        commit = None if inner is None else getattr(inner.config, "_commit_hash", None)
        return cls(model, name, commit or revision)

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

    def _embed(self, texts: list[Any], axes: tuple[int, ...], request: Request) -> FloatArray:
        if request.skip_first:
            raise ValueError("skip_first: a trained embedder pools by its own rule")
        check_texts(texts)
        result, rows = request.result(axes, self.width)
        if not texts:
            return result
        own = self._model.max_seq_length
        limit = int(own) if own is not None and np.isfinite(own) else MOST_ROWS
        check_range("max_length", request.max_length, 1, limit)
        longest = request.max_length or limit
        model, how = self._cut_at(longest) if longest < limit else (self._model, {})
        tokens = request.batch_tokens or BATCH * longest
        found = model.encode(
            [request.prompt.around(text) for text in texts],
            batch_size=max(1, tokens // longest),
            show_progress_bar=bool(request.show_progress),
            convert_to_numpy=True,
            **how,
        )
        rows[:] = np.asarray(found, np.float32)[:, None]
        request.finish(rows)
        return result

    def _cut_at(self, max_length: int) -> tuple[Any, dict[str, Any]]:
        """A model that cuts texts there, and how it is called; the owner's stays as it is."""
        first = self._model[0]
        if any(hasattr(part, "processing_kwargs") for part in first.modules()):
            how = {"text": {"max_length": max_length, "truncation": True}}
            return self._model, {"processing_kwargs": how}
        if "max_seq_length" not in vars(first):
            raise ValueError(
                f"max_length={max_length}: {type(first).__name__}, which reads the texts of this "
                "model, cuts none: leave max_length out"
            )
        # Word vectors have a length of their own: shallow copies share all weights.
        model, reads = copy.copy(self._model), copy.copy(first)
        reads.max_seq_length = max_length
        model._modules = {**model._modules, next(iter(model._modules)): reads}
        return model, {}
