"""What is thrown at the package, damaged files, odd batches, abusive calls; and what may follow.

A target makes its seeds, needs nothing from outside, and checks one case of its dice at a time.
Promises that whatever is neither a right result nor one of the package's own errors, short enough
to read, is raised as it came.
"""

from __future__ import annotations

import gzip
import json
import random
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from makecheckpoint import bf16, hf_names, write_safetensors, write_sharded, write_torch
from mutate import INTERESTING, mutated
from tinymodel import load, random_ids, random_weights

import rwkvsts
from rwkvsts import CheckpointError, DataError, _core, corpus
from rwkvsts.data import readers
from rwkvsts.study import baselines
from rwkvsts.tokenizer import GPT2Tokenizer, World

LONGEST_MESSAGE = 2000


class Finding(Exception):
    """Something came out that should not."""


@dataclass(frozen=True)
class Target:
    """check(dice, folder) : one case, in an empty folder; raises if it finds something"""

    check: Callable[[random.Random, Path], None]


def refuses(kinds: type[Exception] | tuple[type[Exception], ...], action: Callable[[], Any]) -> Any:
    """The result, or None where it was refused in one of the package's own errors."""
    try:
        return action()
    except kinds as error:
        if len(str(error)) > LONGEST_MESSAGE:
            raise Finding(f"a message of {len(str(error))} characters") from error
        return None


# ---- damaged files ------------------------------------------------------------------------------


@cache
def written(write: str, form: str) -> bytes:
    """A small model's file."""
    arrays = random_weights(1, L=1, V=300)
    if form == "bf16":
        arrays = {name: bf16(array) for name, array in arrays.items()}
    arrays = hf_names(arrays) if form == "hf" else arrays
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x")
        (write_safetensors if write == "safetensors" else write_torch)(path, arrays)
        return path.read_bytes()


def opened(path: Path, **options: Any) -> None:
    """Open a model and run it: rows of the right shape; what is not finite is said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        m = rwkvsts.load(
            path,
            **{"device": "cpu", "tokenizer": None, "threads": 1, "dtype": "float32", **options},
        )
        rows = m.encode_ids([[1, 2, 3], [0]], layers=list(m.layers))
    if rows.shape != (2, len(m.layers), m.width):
        raise Finding(f"rows of shape {rows.shape}")
    if not np.isfinite(rows).all() and not any("NaN or infinity" in str(w.message) for w in said):
        raise Finding("rows that are not finite, and not a word")


def weights(write: str, name: str) -> Target:
    def check(dice: random.Random, folder: Path) -> None:
        seeds = [written(write, form) for form in ("plain", "bf16", "hf")]
        path = folder / name
        path.write_bytes(mutated(dice.choice(seeds), dice, seeds))
        refuses(CheckpointError, lambda: opened(path))

    return Target(check)


def check_index(dice: random.Random, folder: Path) -> None:
    index = write_sharded(folder, random_weights(1, L=1), ".safetensors")
    index.write_bytes(mutated(index.read_bytes(), dice, [b'{"weight_map": {"head.weight": "x"}}']))
    refuses(CheckpointError, lambda: opened(folder))


def vocabulary() -> bytes:
    lines = [f"{i + 1} {(chr(i) if i < 128 else bytes([i]))!r} 1" for i in range(256)]
    lines += [f"{257 + i} {'ab' * i + 'c'!r} {2 * i + 1}" for i in range(1, 20)]
    return "\n".join(lines).encode() + b"\n"


def check_vocabulary(dice: random.Random, folder: Path) -> None:
    path = folder / "v.txt"
    path.write_bytes(mutated(vocabulary(), dice))
    world = refuses(CheckpointError, lambda: World(path, 0))
    text = dice.randbytes(dice.randrange(200))
    if world is not None and world.decode(world.encode(text)) != text:
        raise Finding("a text that does not come back")


BPE = {
    "version": "1.0",
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
}


def check_tokenizer_json(dice: random.Random, folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_bytes(mutated(json.dumps(BPE).encode(), dice))
    refuses(CheckpointError, lambda: GPT2Tokenizer(path, 0))


def data_file(seed: bytes, name: str, read: Callable[[Path], Any]) -> Target:
    def check(dice: random.Random, folder: Path) -> None:
        path = folder / name
        path.write_bytes(mutated(seed, dice, [gzip.compress(seed), seed]))
        refuses(DataError, lambda: read(path))

    return Target(check)


VECTORS = b"3 4\nthe 0.1 -2 3e-05 4\ncat 1 2 3 4\n. . 5 6 7 8\n"
TABLE = "\ufeffscore\tsentence1\tsentence2\n1\ta b\tc \u2028 d\n0\t\u00fc\t'\n".encode()
LINES = b'{"text": "one", "score": 1}\n{"text": "two \\u00fc", "score": 0.5}\n'


@cache
def parquet() -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    table = pyarrow.table({"text": ["one", "two"] * 20, "score": [1.0, 0.5] * 20})
    pyarrow.parquet.write_table(table, sink, compression="none")
    return bytes(sink.getvalue())


def surveyed(path: Path) -> Any:
    """What `embed` does with a file before anything is computed."""
    sources = corpus.find([str(path)], None)
    return corpus.survey(sources, corpus.Columns("text", None, ()), "skip")


def check_parquet(dice: random.Random, folder: Path) -> None:
    path = folder / "x.parquet"
    path.write_bytes(mutated(parquet(), dice))
    refuses(DataError, lambda: list(readers.read_parquet(path, ("text",))))
    refuses(DataError, lambda: surveyed(path))


# ---- batches and calls --------------------------------------------------------------------------


@cache
def model(threads: int, isa: str | None, dtype: str) -> rwkvsts.RWKV:
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"threads": threads, "instruction_set": isa, "dtype": dtype}
        return load(Path(folder), random_weights(7, L=3, C=128), **options)


def isas() -> list[str]:
    there = _core.cpu_features()
    return ["portable", *(n for n in ("avx2", "avx512", "avx512bf16", "amx") if there.get(n))]


def check_batching(dice: random.Random, folder: Path) -> None:
    """The same text, the same bits, whatever its company, the pass and the threads."""
    isa, dtype = dice.choice(isas()), dice.choice(("float32", "bfloat16"))
    layers = dice.choice(([0], [2, "final"], [1, 0, 1]))
    pooling = dice.choice(("mean", "last", "weighted", "max"))
    how: dict[str, Any] = {"layers": layers, "pooling": pooling}
    ids = random_ids(
        dice.randrange(2**30), [dice.randint(1, 70) for _ in range(dice.randint(1, 9))]
    )
    alone = model(1, isa, dtype)
    expected = [alone.encode_ids([one], **how).tobytes() for one in ids]
    for _ in range(4):
        order = dice.sample(range(len(ids)), len(ids))
        m = model(dice.choice((1, 2, 3)), isa, dtype)
        rows = m.encode_ids([ids[i] for i in order], batch_tokens=dice.randint(1, 300), **how)
        if [row.tobytes() for row in rows] != [expected[i] for i in order]:
            raise Finding(f"other bits: {isa} {dtype} {how} {[len(i) for i in ids]}")


def odd(dice: random.Random) -> Any:
    """A value that no argument expects, or one that it might."""
    size = dice.choice((0, 1, 3, 64))
    dtype = dice.choice((np.int32, np.int64, np.float32, np.float64, np.uint16, object, "U1"))
    array, scalar = (
        np.zeros(dice.choice(((size,), (size, 1), (1, 1, 64), (3, 64))), dtype),
        np.zeros((), dtype),
    )
    return dice.choice(
        [
            *(
                None,
                True,
                -1,
                2**70,
                0.5,
                float("nan"),
                "",
                "a",
                "a\0b",
                "\ud800",
                b"",
                b"ab",
                [],
                {},
            ),
            *((), (1,), (1, 2, 3), [[1]], [["a"]], object(), int, len, array, array[::-1], array.T),
            *((array, array, array), [array], scalar, memoryview(b"abc"), dice.choice(INTERESTING)),
            *(np.float32(1), np.int64(2), range(3), set(), lambda *_: 1 / 0, iter([1])),
        ]
    )


EXPECTED = (TypeError, ValueError, OverflowError, MemoryError, ZeroDivisionError, BufferError)


def check_calls(dice: random.Random, folder: Path) -> None:
    """Any arguments to the core and to the public methods: an exception, never a crash."""
    m = model(2, None, "float32")
    start = np.array([0, 2, 3])
    good: dict[str, list[Any]] = {
        "run": [np.array([1, 2, 3], np.int32), start, np.array([0], np.int32), 0]
        + [np.zeros((2, 1, 128), np.float32), None, False, 0, None],
        "Tokenizer": [np.arange(1, 257, dtype=np.int32), bytes(range(256)), np.arange(257)],
        "Model": [[("emb.weight", (4, 4))], 0, "float32", 1, None],
        "encode_ids": [[[1, 2], [3]], 0, "mean", None, None, False, None, None],
        "state": [[1, 2]],
        "wants": ["emb.weight"],
    }
    name = dice.choice(list(good))
    arguments = good[name]
    for _ in range(dice.choice((1, 1, 2, 4))):
        arguments[dice.randrange(len(arguments))] = odd(dice)
    owner = {"Tokenizer": _core, "Model": _core, "run": m._core, "wants": m._core}.get(name, m)
    refuses(EXPECTED, lambda: getattr(owner, name)(*arguments))
    tokenizer = _core.Tokenizer(
        *[np.arange(1, 257, dtype=np.int32), bytes(range(256)), np.arange(257)]
    )
    refuses(EXPECTED, lambda: getattr(tokenizer, dice.choice(("encode", "decode")))(odd(dice)))
    if m.encode_ids([[1, 2]], layers=0).tobytes() != well().tobytes():
        raise Finding(f"the model is another after {name}{arguments}")


@cache
def well() -> np.ndarray:
    return model(1, None, "float32").encode_ids([[1, 2]], layers=0)


TARGETS = {
    "safetensors": weights("safetensors", "model.safetensors"),
    "torch": weights("torch", "model.pth"),
    "index": Target(check_index),
    "vocabulary": Target(check_vocabulary),
    "tokenizer.json": Target(check_tokenizer_json),
    "vectors": data_file(VECTORS, "v.txt", lambda p: baselines.load_vectors(p, ["the cat ."])),
    "tsv": data_file(TABLE, "x.tsv", lambda p: list(readers.read_tsv(p))),
    "jsonl": data_file(LINES, "x.jsonl", lambda p: list(readers.read_jsonl(p))),
    "parquet": Target(check_parquet),
    "embed jsonl": data_file(LINES, "x.jsonl", surveyed),
    "embed csv": data_file(b'text,score\n"one, 1",2\ntwo,3\n', "x.csv", surveyed),
    "embed text": data_file(b"one\ntwo\n", "x.txt", surveyed),
    "batching": Target(check_batching),
    "calls": Target(check_calls),
}
