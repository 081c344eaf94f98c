"""sentence-transformers: a real `SentenceTransformer` whose bits are this package's.

>>> from rwkvsts.integrations.sentence_transformers import model
>>> st = model("demo", layer=7)
>>> st.encode(["A first sentence.", "And a second."]).shape
(2, 192)

A saved model names its weights, it does not copy them. Since sentence-transformers 6 a class from
outside that library loads only where the caller says so:
`SentenceTransformer(folder, trust_remote_code=True)`. `model` makes one without that question.

Prompts are this package's: run once, not pooled, and put around a text where they hold "{text}".
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..embedder import Layer
from . import Source, absent, opened

try:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import InputModule
except ImportError as error:
    absent(error, "sentence-transformers")


class Embedder(InputModule):  # type: ignore[misc]
    """The one module of such a model: texts in, "sentence_embedding" out.

    Parameters
    ----------
    source : what `rwkvsts.load` opens
    layer, pooling, max_length : as in `encode`
    options : of `rwkvsts.load`
    """

    config_file_name = "rwkvsts.json"
    config_keys: list[str] = ["source", "layer", "pooling", "max_length", "options"]  # noqa: RUF012
    save_in_root = True

    def __init__(
        self,
        source: Source,
        layer: Layer | None = None,
        pooling: str = "mean",
        max_length: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.source, self.layer, self.pooling = os.fspath(source), layer, pooling
        self.max_length, self.options = max_length, dict(options or {})
        self.model = opened(source, layer, **self.options)

    def preprocess(
        self, inputs: Sequence[str], prompt: str | None = None, **_: Any
    ) -> dict[str, Any]:
        """Hand the texts on: they are tokenised where they are embedded."""
        return {"texts": list(inputs), "prompt": prompt}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add "sentence_embedding", float32 [S, C], on the CPU."""
        rows = self.model.encode(
            features["texts"],
            layers=self.layer,
            pooling=self.pooling,
            prompt=features["prompt"],
            max_length=self.max_length,
            show_progress=False,
        )
        return {**features, "sentence_embedding": torch.from_numpy(rows)}

    def get_embedding_dimension(self) -> int:
        """C."""
        return self.model.width

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write what `load` needs, which is not the weights but their name."""
        self.save_config(output_path)


def model(
    source: Source,
    layer: Layer | None = None,
    pooling: str = "mean",
    max_length: int | None = None,
    prompts: dict[str, str] | None = None,
    default_prompt_name: str | None = None,
    **options: Any,
) -> SentenceTransformer:
    """A SentenceTransformer.

    Parameters
    ----------
    source : what `rwkvsts.load` opens
    layer, pooling, max_length : as in `encode`
    prompts, default_prompt_name : as in SentenceTransformer
    options : of `rwkvsts.load`
    """
    module = Embedder(source, layer, pooling, max_length, options)
    return SentenceTransformer(
        modules=[module], device="cpu", prompts=prompts, default_prompt_name=default_prompt_name
    )
