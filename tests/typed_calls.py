"""Calls as people write them, for `mypy` alone: what runs must be what the types allow."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import rwkvsts
from rwkvsts.softmax import CausalLM


def lines() -> Iterator[str]:
    yield "A text."


def ids(m: rwkvsts.RWKV | CausalLM) -> None:
    m.encode_ids([[1, 2], [3]])
    m.encode_ids([np.array([1, 2], np.int32), np.array([3], np.uint16)])
    m.encode_ids(np.array([[1, 2], [3, 4]]))
    m.encode_ids(np.array([i, 2]) for i in range(3))


def texts(m: rwkvsts.RWKV | CausalLM) -> None:
    m.encode("A text.")
    m.encode(["A text.", "Another."], layers=[1, 3])
    m.encode(np.array(["A text.", "Another."]))
    m.encode(lines())


def prefixes(m: rwkvsts.RWKV) -> None:
    m.encode("A text.", state=m.state("Before. "))
    m.encode("A text.", state=m.state(np.array([0], np.int32)))
    m.branch(lines(), ("Its topic:", "Its place:"))


def protocol(m: rwkvsts.RWKV, other: CausalLM) -> list[rwkvsts.Embedder]:
    return [m, other]
