"""What a corpus job is told, and the identity that makes two jobs the same job.

Promises that two jobs with equal identities write the same bytes; and that the identity tells no
path of the machine it ran on.
"""

from __future__ import annotations

import hashlib
import os
import reprlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import __version__
from ..embedder import Layer, check_flag, check_range
from .blocks import ON_EMPTY, OnEmpty, Survey

if TYPE_CHECKING:
    from .projection import Projection

# Read by the model before a job begins: equal bits of these mean equal bits of every text.
PROBE = (
    "The quick brown fox jumps over the lazy dog.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. 1234567890 " * 8,
)
BLOCK_BYTES, BLOCK_ROWS = 64 << 20, 4096
SHARD_BYTES, SHARD_ROWS = 256 << 20, 16384


@dataclass(frozen=True)
class Options:
    """What decides the output of a job, beside its inputs and its model.

    layers, pooling, prompt, max_length, normalize : as in `encode`
    dtype : of the output, "float32" or "float16"
    on_empty : what becomes of a row without a text: "error"; "skip", it is left out; "null", it
        stands with a null in place of its embedding (NaN in a .npy file)
    format : of a folder's shards: "parquet", or "npy" with the other columns in Parquet beside it
    shard_rows : rows of the input in a shard; None: as many as make a file of handy size
    projection : to fewer numbers, of these layers; what normalize scales is its result
    """

    layers: tuple[Layer, ...]
    pooling: str = "mean"
    prompt: str | None = None
    max_length: int | None = None
    normalize: bool = False
    dtype: Literal["float32", "float16"] = "float32"
    on_empty: OnEmpty = "error"
    format: Literal["parquet", "npy"] = "parquet"
    shard_rows: int | None = None
    projection: Projection | None = None

    def __post_init__(self) -> None:
        """Refuse what would end a job when its folder is begun, or write nothing at all."""
        if isinstance(self.layers, str) or not isinstance(self.layers, Sequence):
            raise TypeError(f"layers={reprlib.repr(self.layers)}: expected layers in a tuple")
        for name, value, known in (
            ("dtype", self.dtype, ("float32", "float16")),
            ("on_empty", self.on_empty, ON_EMPTY),
            ("format", self.format, ("parquet", "npy")),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}")
        check_flag("normalize", self.normalize)
        check_range("max_length", self.max_length, 1, sys.maxsize)
        check_range("shard_rows", self.shard_rows, 1, sys.maxsize)
        if twice := [x for at, x in enumerate(self.layers) if x in self.layers[:at]]:
            raise ValueError(f"layers names {twice[0]} twice: name each layer once")

    def width(self, model: Any) -> int:
        """Numbers of an embedding that is written."""
        width: int = model.width if self.projection is None else self.projection.width
        return width

    def rows_of_block_and_shard(self, model: Any) -> tuple[int, int]:
        """By what they take in memory and on the disk."""
        number = len(self.layers) * np.dtype(self.dtype).itemsize
        shard_rows = min(SHARD_ROWS, SHARD_BYTES // (number * self.width(model)))
        shard = self.shard_rows or max(shard_rows, 1)
        return max(min(BLOCK_ROWS, BLOCK_BYTES // (number * model.width), shard), 1), shard

    def embedding(self) -> dict[str, Any]:
        """What decides an embedding beside its model and its text, for a manifest."""
        return {
            "layers": list(self.layers),
            "pooling": self.pooling,
            "prompt": self.prompt,
            "max_length": self.max_length,
            "normalize": self.normalize,
            "projection": None if self.projection is None else self.projection.identity(),
        }


def identity(model: Any, found: Survey, options: Options) -> dict[str, Any]:
    """What is embedded with what: equal for two runs exactly if they write the same bytes."""
    _, shard_rows = options.rows_of_block_and_shard(model)
    source = str(model.source)
    return {
        "rwkvsts": __version__,
        "model": {
            "source": os.path.basename(source) if os.path.isabs(source) else source,
            "revision": model.revision,
            "tokenizer": model.tokenizer.name,
            "device": str(model.device).split(",")[0],  # not how many threads: no bit depends on it
            "dtype": model.dtype,
            "width": model.width,
            "n_layer": model.config.n_layer,
            "fingerprint": fingerprint(model, options),
        },
        "embedding": options.embedding(),
        "output": {
            "format": options.format,
            "dtype": options.dtype,
            "width": options.width(model),
            "shard_rows": shard_rows,
            "on_empty": options.on_empty,
            "column": found.columns.text,
            "id_column": found.columns.id,
            "keep": list(found.columns.keep),
        },
        "inputs": [
            {"name": os.path.basename(s.name), "bytes": s.bytes, "rows": rows, "sha256": digest}
            for s, rows, digest in zip(found.sources, found.rows, found.digests, strict=True)
        ],
    }


def fingerprint(model: Any, options: Options) -> str:
    """SHA-256 of the embeddings of fixed texts.

    It differs where any weight, the tokenizer, the dtype, the device or its instructions would
    change a bit of a result, which the name of a file or a repository does not tell.
    """
    rows = model.encode(
        list(PROBE),
        layers=list(options.layers),
        pooling=options.pooling,
        prompt=options.prompt,
        show_progress=False,
    )
    return hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()


def differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two identities, in words."""
    before, after = dict(_flat(was)), dict(_flat(now))
    names = list(dict.fromkeys([*before, *after]))
    return [
        f"{name} was {before.get(name)!r} and is {after.get(name)!r}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested dicts and lists of dicts, each with its dotted name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for place, inner in enumerate(value, 1):
            yield from _flat(inner, f"{name}[{place}]")
    else:
        yield name, value
