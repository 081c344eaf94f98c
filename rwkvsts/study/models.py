"""Opening the models of a study: an RWKV, or a causal language model of Hugging Face.

A `.gguf` file, and a folder or repository whose config.json names another architecture, goes to
`transformers`; all else is taken for RWKV, whose loader says what is wrong with it. Promises that
a model is opened no deeper than its readings ask for.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from ..embedder import Embedder
from ..errors import HubError
from ..files.hub import fetch
from ..model import RWKV
from ..opening import highest
from .settings import Reading, StudyConfig, readings


def readings_of(config: StudyConfig, source: str) -> list[Reading]:
    """The readings of one model; a model with a tokenizer of its own has no choice of it."""
    asked = readings(config)
    if not is_softmax(config, source):
        return asked
    plain = (replace(reading, tokenizer=None, lead=False) for reading in asked)
    return list(dict.fromkeys(plain))


def open_model(config: StudyConfig, source: str, group: list[Reading]) -> Embedder:
    """The model for readings of one tokenizer, no deeper than their highest layer."""
    if group[0].tokenizer is None:
        from ..softmax import CausalLM

        return CausalLM.from_pretrained(
            source,
            revision=config.revision,
            device=config.device,
            dtype=config.dtype,
            cache_dir=_path(config.cache_dir),
            local_files_only=config.local_files_only,
        )
    asked = [layer for reading in group for layer in reading.layers]
    return RWKV.from_pretrained(
        source,
        revision=config.revision,
        device=config.device,
        dtype=config.dtype,
        tokenizer=group[0].tokenizer,
        file=config.file,
        vocabulary=config.vocabulary,
        max_layer=highest(asked),
        cache_dir=_path(config.cache_dir),
        local_files_only=config.local_files_only,
    )


def is_softmax(config: StudyConfig, source: str) -> bool:
    """Whether the source is a model for transformers, not an RWKV."""
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        return True
    place: Path | None = path / "config.json"
    if not path.is_dir():
        place = None if path.is_file() or source == "demo" else _fetch_config(config, source)
    try:
        content = json.loads(place.read_text("utf-8")) if place else {}
    except (OSError, ValueError):
        return False
    kind = content.get("model_type") if isinstance(content, dict) else None
    return isinstance(kind, str) and "rwkv" not in kind


def _fetch_config(config: StudyConfig, source: str) -> Path | None:
    try:
        return fetch(
            source,
            "config.json",
            revision=config.revision,
            cache_dir=_path(config.cache_dir),
            local_files_only=config.local_files_only,
        )
    except HubError:
        return None  # BlinkDL's repositories have none; what else is wrong shows in a moment


def _path(place: str | Path | None) -> str | None:
    return None if place is None else str(place)
