"""Texts to token ids and back: RWKV's World vocabulary, the paper's GPT-2, or bytes.

Assumes a vocabulary file in RWKV World's format. Promises that it is read as data, literal_eval at
most; that what is not as expected is refused with file and line; and that any bytes round-trip.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import _core
from .errors import CheckpointError
from .files.hub import Source
from .files.layout import read_text

Text = str | bytes
Encoded = tuple[NDArray[np.int32], NDArray[np.int64]]  # ids [T], start [S+1]

KINDS = ("world", "gpt2", "bytes")
GPT2 = ("openai-community/gpt2", "tokenizer.json")
MAX_VOCABULARY_BYTES = 64 * 2**20  # World's has 1.1 MB
MOST_ID = 2**24 - 1  # as the core
# Literals without an escape or an inner quote are their own text: most of the file, read quickly.
PLAIN = re.compile(r"'[^'\\\0]*'|\"[^\"\\\0]*\"")


class Tokenizer(Protocol):
    """What a model needs of a tokenizer; `name` says which it is."""

    name: str

    def encode(self, text: Text) -> list[int]: ...
    def encode_many(self, texts: Sequence[Text]) -> Encoded: ...
    def decode(self, ids: Sequence[int]) -> bytes: ...


def load(
    kind: str | None,
    source: Source,
    n_vocab: int,
    fetch: Callable[[str, str], Path],
) -> Tokenizer | None:
    """The tokenizer of a model.

    Parameters
    ----------
    kind : "world", "gpt2", "bytes" or None
    source : where the weights were found, and the World vocabulary if there is one
    n_vocab : rows of the model's embedding, every id must be below; 0 where the weights do not
        tell, which the core refuses with a better message
    fetch : repository and file name to a local path; "gpt2" is not beside the weights
    """
    match kind:
        case None:
            return None
        case "world":
            return World(_found(source), n_vocab)
        case "bytes":
            return Bytes(n_vocab)
        case "gpt2":
            return GPT2Tokenizer(fetch(*GPT2), n_vocab)
    raise ValueError(f"tokenizer={kind!r}: expected {', '.join(map(repr, KINDS))} or None")


def read_vocabulary(path: Path) -> dict[int, bytes]:
    """Ids and their bytes, from lines `<id> <Python literal> <number of bytes>`.

    Raises CheckpointError, naming the line, for anything else.
    """
    entries: dict[int, bytes] = {}
    text = read_text(path, MAX_VOCABULARY_BYTES).replace("\r\n", "\n")
    # Not splitlines, which would cut at more than a line's end.
    for number, line in enumerate(text.rstrip("\n").split("\n"), 1):
        try:
            if line.count(" ") < 2:
                raise ValueError("there are fewer than three parts")
            id_text, rest = line.split(" ", 1)
            literal, length = rest.rsplit(" ", 1)
            token, value = int(id_text), _literal(literal)
            if len(value) != int(length):
                raise ValueError(f"the literal has {len(value)} bytes, not {length[:20]}")
            if not 1 <= token <= MOST_ID:
                raise ValueError(f"the id is not in 1 .. {MOST_ID}")
            if token in entries:
                raise ValueError(f"id {token} is there twice")
        except ValueError as error:
            raise CheckpointError(
                f"{path}, line {number}: expected '<id> <literal> <bytes>', found "
                f"{line[:60]!r}: {str(error)[:200]}. Take rwkv_vocab_v20230424.txt as published."
            ) from error
        entries[token] = value
    return entries


def _literal(text: str) -> bytes:
    if PLAIN.fullmatch(text):
        return text[1:-1].encode()
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"no Python literal ({type(error).__name__})") from error
    if isinstance(value, str):
        return value.encode()
    if not isinstance(value, bytes):
        raise ValueError(f"a literal of type {type(value).__name__}")
    return value


def _found(source: Source) -> Path:
    if source.vocabulary is not None:
        return source.vocabulary
    if source.vocabularies:
        raise CheckpointError(
            f"{source.name}: {len(source.vocabularies)} files may be the vocabulary, "
            f"{', '.join(source.vocabularies[:5])}: name one with vocabulary= (--vocabulary)"
        )
    raise CheckpointError(
        f"{source.name}: there is no vocabulary beside the weights: name the file "
        "rwkv_vocab_v20230424.txt with vocabulary= (--vocabulary), put it there, or load with "
        "tokenizer=None and use encode_ids"
    )


def _as_bytes(text: Text) -> bytes:
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str):
        raise TypeError(f"a text is {type(text).__name__}: expected str or bytes")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        shown = text[max(error.start - 20, 0) : error.end]
        raise ValueError(f"text {shown!r} holds half a surrogate pair: no UTF-8") from error


def _check_rows(name: str, largest: int, n_vocab: int) -> None:
    if 0 < n_vocab <= largest:
        raise CheckpointError(
            f"{name} has ids up to {largest}, the model embeds 0 .. {n_vocab - 1}: they do not "
            "belong together. Load with the model's own vocabulary, or tokenizer=None."
        )


class World:
    """RWKV World: greedy longest match over bytes, in C."""

    name = "world"

    def __init__(self, path: Path, n_vocab: int) -> None:
        self._made_of = Path(path).absolute(), n_vocab
        entries = read_vocabulary(path)
        _check_rows(str(path), max(entries, default=0), n_vocab)
        ids = np.fromiter(entries, np.int32, len(entries))
        offsets = np.zeros(len(entries) + 1, np.int64)
        np.cumsum([len(value) for value in entries.values()], out=offsets[1:])
        try:
            self._core = _core.Tokenizer(ids, b"".join(entries.values()), offsets)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle, for another process, reads the file again."""
        return World, self._made_of

    def encode(self, text: Text) -> list[int]:
        return self._core.encode(_as_bytes(text))

    def encode_many(self, texts: Sequence[Text]) -> Encoded:
        return self._core.encode_many([_as_bytes(text) for text in texts])

    def decode(self, ids: Sequence[int]) -> bytes:
        return self._core.decode(ids)


class Bytes:
    """An id is a byte."""

    name = "bytes"

    def __init__(self, n_vocab: int) -> None:
        _check_rows("tokenizer='bytes'", 255, n_vocab)

    def encode(self, text: Text) -> list[int]:
        return list(_as_bytes(text))

    def encode_many(self, texts: Sequence[Text]) -> Encoded:
        found = [_as_bytes(text) for text in texts]
        return np.frombuffer(b"".join(found), np.uint8).astype(np.int32), _starts(found)

    def decode(self, ids: Sequence[int]) -> bytes:
        return bytes(ids)


class GPT2Tokenizer:
    """GPT-2's byte pairs, as the paper fed them to RWKV; no special token is added."""

    name = "gpt2"

    def __init__(self, path: Path, n_vocab: int) -> None:
        from tokenizers import Tokenizer as FromFile

        try:
            self._bpe: Any = FromFile.from_file(str(path))
        except BaseException as error:  # the library raises plain Exception, and panics outside it
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise CheckpointError(
                f"{path}: no tokenizer.json of `tokenizers`: {str(error)[:200]}"
            ) from error
        _check_rows("the GPT-2 tokenizer", self._bpe.get_vocab_size() - 1, n_vocab)

    def encode(self, text: Text) -> list[int]:
        ids: list[int] = self._bpe.encode(_as_bytes(text).decode(), add_special_tokens=False).ids
        return ids

    def encode_many(self, texts: Sequence[Text]) -> Encoded:
        decoded = [_as_bytes(text).decode() for text in texts]
        found = self._bpe.encode_batch(decoded, add_special_tokens=False)
        return _pack([encoding.ids for encoding in found])

    def decode(self, ids: Sequence[int]) -> bytes:
        text: str = self._bpe.decode(list(ids), skip_special_tokens=False)
        return text.encode()


def _pack(lists: Sequence[Sequence[int]]) -> Encoded:
    return np.array([i for ids in lists for i in ids], np.int32), _starts(lists)


def _starts(lists: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    start = np.zeros(len(lists) + 1, np.int64)
    np.cumsum([len(ids) for ids in lists], out=start[1:])
    return start
