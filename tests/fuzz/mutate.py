"""Damage of every kind to the bytes of a file, by dice that can be thrown again.

Assumes a seed file that is read without complaint. Promises that the same dice give the same file.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

Mutator = Callable[[bytearray, random.Random, Sequence[bytes]], None]

INTERESTING = [
    *(0, 1, 2, 3, 4, 7, 8, 16, 32, 63, 64, 65, 100, 127, 128, 255, 256, 1000, 1024, 4096, 65535),
    *(2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**48, 2**53, 2**63 - 1, 2**63, 2**64 - 1),
]
WORDS = [
    *(b"0", b"-1", b"1e309", b"nan", b"inf", b"null", b"true", b"[]", b"{}", b'""', b"'", b'"'),
    *(b"\0", b"\t", b" ", b"\n", b"\r\n", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\u0000"),
    *(b"F32", b"BF16", b"F64", b"I64", b"F8_E4M3", b"shape", b"dtype", b"data_offsets"),
    *(b"blocks.", b"blocks.0.", b"emb.weight", b".att.", b"time_state", b"lora_A", b"_orig_mod."),
    *(b"cos\nsystem\n", b"R", b"b", b"s", b"u", b"(", b"t", b"Q", b".", b"\x94", b"h\0", b"0"),
    *(b"PK\3\4", b"PK\1\2", b"PK\5\6", b"\x1f\x8b", b"[" * 1000, b"9" * 400, b"../", b"a" * 300),
]


def mutated(seed: bytes, dice: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """The seed after one to eight changes; `others` are seeds to take pieces from."""
    data = bytearray(seed)
    for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
        dice.choice(MUTATORS)(data, dice, others)
    return bytes(data)


def _place(data: bytearray, dice: random.Random) -> int:
    """Where to change something: the ends of a file hold what describes the rest."""
    size = len(data)
    near = min(size, 2048)
    where = dice.random()
    if where < 0.4:
        return dice.randrange(near + 1)
    if where < 0.6:
        return size - dice.randrange(near + 1)
    return dice.randrange(size + 1)


def _piece(data: bytes | bytearray, dice: random.Random, most: int = 64) -> tuple[int, int]:
    start = _place(bytearray(data), dice)
    return start, min(len(data), start + dice.choice((1, 2, 4, 8, dice.randrange(1, most + 1))))


def flip_bit(data: bytearray, dice: random.Random, _: Sequence[bytes]) -> None:
    if data:
        data[min(_place(data, dice), len(data) - 1)] ^= 1 << dice.randrange(8)


def set_bytes(data: bytearray, dice: random.Random, _: Sequence[bytes]) -> None:
    start, end = _piece(data, dice)
    data[start:end] = bytes(dice.choice((0, 255, dice.randrange(256))) for _ in range(end - start))


def set_number(data: bytearray, dice: random.Random, _: Sequence[bytes]) -> None:
    """An integer of 1 to 8 bytes, of either order."""
    start, size = _place(data, dice), dice.choice((1, 2, 4, 8))
    number = (dice.choice(INTERESTING) * dice.choice((1, -1))) % 256**size
    data[start : start + size] = number.to_bytes(size, dice.choice(("little", "big")))


def set_digits(data: bytearray, dice: random.Random, _: Sequence[bytes]) -> None:
    """A number that is written out."""
    numbers = list(re.finditer(rb"\d+", data[:20_000]))
    if numbers:
        found = dice.choice(numbers)
        data[found.start() : found.end()] = str(dice.choice(INTERESTING)).encode()


def insert_word(data: bytearray, dice: random.Random, _: Sequence[bytes]) -> None:
    start = _place(data, dice)
    data[start:start] = dice.choice(WORDS)


def replace_word(data: bytearray, dice: random.Random, _: Sequence[bytes]) -> None:
    start, end = _piece(data, dice)
    data[start:end] = dice.choice(WORDS)


def remove(data: bytearray, dice: random.Random, _: Sequence[bytes]) -> None:
    start, end = _piece(data, dice, dice.choice((8, 64, 4096)))
    del data[start:end]


def repeat(data: bytearray, dice: random.Random, _: Sequence[bytes]) -> None:
    start, end = _piece(data, dice, dice.choice((8, 64, 4096)))
    data[start:start] = data[start:end] * dice.choice((1, 1, 2, 100))


def swap(data: bytearray, dice: random.Random, _: Sequence[bytes]) -> None:
    a, b, c = sorted(_place(data, dice) for _ in range(3))
    data[a:c] = data[b:c] + data[a:b]


def truncate(data: bytearray, dice: random.Random, _: Sequence[bytes]) -> None:
    del data[_place(data, dice) :]


def clear_to_the_end(data: bytearray, dice: random.Random, _: Sequence[bytes]) -> None:
    """Zeros from some byte on: a download that broke off into a file of the full size."""
    start = _place(data, dice)
    data[start:] = bytes(len(data) - start)


def append(data: bytearray, dice: random.Random, _: Sequence[bytes]) -> None:
    data += dice.choice(WORDS) * dice.choice((1, 3, 50))


def splice(data: bytearray, dice: random.Random, others: Sequence[bytes]) -> None:
    """A piece of another seed."""
    if others:
        other = dice.choice(list(others))
        start, end = _piece(other, dice, 4096)
        at = _place(data, dice)
        data[at : at + dice.choice((0, end - start))] = other[start:end]


MUTATORS: list[Mutator] = [
    *(flip_bit, set_bytes, set_number, set_digits, insert_word, replace_word, remove, repeat),
    *(swap, truncate, clear_to_the_end, append, splice),
]
