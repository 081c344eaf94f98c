"""MTEB 2: an encoder that `mteb.evaluate` runs, and the meta data that keep its results apart.

>>> import mteb
>>> from rwkvsts.integrations.mteb import Embedder
>>> task = mteb.get_task("STSBenchmark")
>>> mteb.evaluate(Embedder("demo", layer=7), task)  # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..embedder import Layer
from ..model import RWKV
from . import Source, absent, opened

try:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
except ImportError as error:
    absent(error, "mteb")


class Embedder(AbsEncoder):  # type: ignore[misc]
    """One layer of one model, pooled one way.

    Parameters
    ----------
    model : of `rwkvsts.load`, or a source
    layer, pooling, max_length : as in `encode`
    prompts : by MTEB's task name, task type or "query" and "document"; each may hold "{text}".
        MTEB's own instructions are for models that were trained on instructions, and not used
    """

    def __init__(
        self,
        model: RWKV | Source = "demo",
        layer: Layer | None = None,
        pooling: str = "mean",
        max_length: int | None = None,
        prompts: dict[str, str] | None = None,
    ) -> None:
        self.model = opened(model, layer)
        self.layer = self.model.default_layer if layer is None else layer
        self.pooling, self.max_length = pooling, max_length
        self.model_prompts = self.validate_task_to_prompt_name(prompts)
        self.mteb_model_meta = _meta(self)

    def encode(
        self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **_: Any
    ) -> NDArray[np.float32]:
        """float32 [S, C] of MTEB's batches of texts."""
        name = self.get_prompt_name(task_metadata, prompt_type)
        return self.model.encode(
            [text for batch in inputs for text in batch["text"]],
            layers=self.layer,
            pooling=self.pooling,
            prompt=(self.model_prompts or {}).get(name) if name else None,
            max_length=self.max_length,
        )


def _meta(embedder: Embedder) -> Any:
    """What MTEB writes beside a result; it keeps results apart by name and experiment_kwargs."""
    model, config = embedder.model, embedder.model.config
    experiment: dict[str, Any] = {
        "layer": embedder.layer,
        "pooling": embedder.pooling,
        "dtype": model.dtype,
        "tokenizer": getattr(model.tokenizer, "name", None),
    }
    if embedder.max_length is not None:
        experiment["max_length"] = embedder.max_length
    if embedder.model_prompts:
        # By digest: MTEB makes a folder's name of it, and a prompt may be long.
        text = repr(sorted(embedder.model_prompts.items()))
        experiment["prompts"] = hashlib.sha256(text.encode()).hexdigest()[:12]
    return ModelMeta(
        loader=None,
        name=_name(model.source),
        revision=model.revision or f"rwkvsts-{__version__}",
        release_date=None,
        languages=None,
        n_parameters=None,
        n_embedding_parameters=config.n_vocab * config.n_embd,
        memory_usage_mb=round(model.memory()["weights"] / 2**20, 1),
        max_tokens=float("inf") if embedder.max_length is None else embedder.max_length,
        embed_dim=model.width,
        license=None,
        open_weights=True,
        public_training_code=None,
        public_training_data=None,
        framework=[],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=bool(embedder.model_prompts),
        training_datasets=None,
        experiment_kwargs=experiment,
    )


def _name(source: str) -> str:
    """ "organization/name", as MTEB wants it; a path gives its last part."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not os.path.exists(source):
        return source
    return "rwkvsts/" + re.sub(r"[^\w.-]+", "-", os.path.basename(source.rstrip("/")))
