"""The plugs into what people already use, a file a library; each is imported by its own name.

Every one of them calls a model's `encode`, so that a text's vector is the same bits through all of
them. The libraries are extras: importing a plug without its library says which one to install.
"""

from __future__ import annotations

import os
from typing import Any, NoReturn

from ..embedder import Layer
from ..model import RWKV
from ..opening import highest

Source = str | os.PathLike[str]


def opened(model: RWKV | Source, layer: Layer | None = None, **options: Any) -> RWKV:
    """A model as it is; a source opened, with no more blocks than the layer needs.

    layer : that will be asked for; default: the model's own. Those with names need all blocks
    options : of `rwkvsts.load`
    """
    if not isinstance(model, (str, os.PathLike)):
        return model
    options.setdefault("max_layer", highest(None if layer is None else [layer]))
    return RWKV.from_pretrained(model, **options)


def absent(error: ImportError, extra: str) -> NoReturn:
    """Say which extra brings the library that is not there."""
    raise ImportError(
        f"{error}; install it with: pip install 'rwkvsts[{extra}]'", name=error.name
    ) from error
