"""Opening the models of a study: an RWKV, a causal language model, or a trained sentence embedder.

A folder or repository with modules.json is one of sentence-transformers; a `.gguf` file, and
whatever else has a config.json that names another architecture than RWKV, goes to `transformers`;
all else is taken for RWKV, whose loader says what is wrong with it. Promises that a model is opened
no deeper than its readings ask for, and is asked for nothing that its kind has not.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ..embedder import Embedder
from ..errors import DataError, HubError
from ..files.hub import REPO_ID, fetch
from ..model import RWKV
from ..opening import highest
from .settings import JOINING, OWN, STATE, Reading, StudyConfig, endings, readings

Kind = Literal["rwkv", "softmax", "trained"]
PINNED = re.compile(rf"(?P<repo>{REPO_ID.pattern})@(?P<revision>\S+)")


def pinned(source: str) -> tuple[str, str | None]:
    """A source, and the revision that it names behind an @; what exists on this disk is a path.

    >>> pinned("RWKV/v6-Finch-1B6-HF@main"), pinned("demo")
    (('RWKV/v6-Finch-1B6-HF', 'main'), ('demo', None))
    """
    found = PINNED.fullmatch(source)
    if found is None or Path(source).exists():
        return source, None
    return found["repo"], found["revision"]


def readings_of(config: StudyConfig, source: str) -> list[Reading]:
    """The readings of one model: those asked for, as far as its kind has them."""
    kind = kind_of(config, source)
    found = (_for_kind(kind, reading) for reading in readings(config))
    listed = list(dict.fromkeys(reading for reading in found if reading is not None))
    if not listed:
        raise DataError(
            f"{source}: nothing of what is asked has a meaning for this {kind} model: a state "
            "needs RWKV and layers by number, endings a language model"
        )
    return listed


def _for_kind(kind: Kind, reading: Reading) -> Reading | None:
    """The reading as far as a kind of model can do it; None where it cannot."""
    if kind == "rwkv":
        return reading
    own = replace(reading, tokenizer=None, lead=False)
    if kind == "softmax":
        return None if reading.pooling == STATE else own
    posts = tuple(post for post in reading.posts if post not in ("filter", *JOINING))
    if endings(reading.prompt) or not posts:
        return None
    return replace(own, pooling=OWN, skip_first=False, layers=("final",), posts=posts)


def open_model(config: StudyConfig, source: str, group: list[Reading]) -> Embedder:
    """The model for readings of one tokenizer, no deeper than their highest layer."""
    source, revision = pinned(source)
    how: dict[str, Any] = {
        "revision": revision or config.revision,
        "device": config.device,
        "cache_dir": _path(config.cache_dir),
        "local_files_only": config.local_files_only,
    }
    if group[0].pooling == OWN:
        from ..trained import Trained

        return Trained.from_pretrained(source, **how)
    if group[0].tokenizer is None:
        from ..softmax import CausalLM

        return CausalLM.from_pretrained(source, dtype=config.dtype, **how)
    layers = [reading.layers for reading in group]
    asked = [layer for listed in layers if listed != "all" for layer in listed]
    return RWKV.from_pretrained(
        source,
        dtype=config.dtype,
        tokenizer=group[0].tokenizer,
        file=config.file,
        vocabulary=config.vocabulary,
        max_layer=None if "all" in layers else highest(asked),
        **how,
    )


def kind_of(config: StudyConfig, source: str) -> Kind:
    """What the source is, from its name and its small files alone."""
    if Path(source).suffix == ".gguf":
        return "softmax"
    content = _content(config, source, "config.json")
    named = content.get("model_type") if isinstance(content, dict) else None
    if isinstance(named, str) and "rwkv" in named:
        return "rwkv"
    if _content(config, source, "modules.json") is not None:
        return "trained"
    return "softmax" if isinstance(named, str) else "rwkv"


def _content(config: StudyConfig, source: str, name: str) -> Any:
    """A small JSON file of a folder or repository; None where there is none that can be read."""
    path = Path(source).expanduser()
    if path.is_file() or source == "demo":
        return None
    try:
        place = path / name if path.is_dir() else _fetch(config, source, name)
        return json.loads(place.read_text("utf-8"))
    except (OSError, ValueError, HubError):
        return None  # what else is wrong shows when the model is opened


def _fetch(config: StudyConfig, source: str, name: str) -> Path:
    repo, revision = pinned(source)
    return fetch(
        repo,
        name,
        revision=revision or config.revision,
        cache_dir=_path(config.cache_dir),
        local_files_only=config.local_files_only,
    )


def _path(place: str | Path | None) -> str | None:
    return None if place is None else str(place)
