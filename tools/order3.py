"""Bits per byte of an order-3 byte model on the held-out text: what the demo model must beat.

    python tools/order3.py CORPORA

Counts every run of 1 to 4 bytes of the training documents and predicts each held-out byte from the
three before it, interpolated down to order 0 and the uniform distribution after Witten and Bell:
p_n = (c(context, byte) + t(context) p_{n-1}) / (c(context) + t(context)), t the number of different
bytes seen after the context. Assumes 4 GB of memory. Promises the same split as the training.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from corpus import NOVELS, load

ORDER = 3
START = b"\0" * ORDER  # in front of each document, never scored


def grams(data: np.ndarray, order: int) -> np.ndarray:
    """For each byte, its `order` predecessors and itself as one number; uint32."""
    codes = np.zeros(len(data), np.uint32)
    for back in range(order, -1, -1):
        codes[back:] |= data[: len(data) - back].astype(np.uint32) << np.uint32(8 * back)
    return codes


def lookup(table: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """`values` at the places of `wanted` in the sorted `table`, 0 where it is absent."""
    place = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
    return np.where(table[place] == wanted, values[place], 0)


def bits_per_byte(train: bytes, held_out: bytes) -> float:
    """Bits per scored byte of `held_out`, both streams with START in front of each document."""
    seen = np.frombuffer(train, np.uint8)
    asked = np.frombuffer(held_out, np.uint8)
    probability = np.full(len(asked), 1 / 256)
    for order in range(ORDER + 1):
        table, counts = np.unique(grams(seen, order), return_counts=True)
        contexts, first = np.unique(table >> np.uint32(8), return_index=True)
        totals = np.add.reduceat(counts, first)
        kinds = np.diff(np.append(first, len(table)))
        wanted = grams(asked, order)
        before = wanted >> np.uint32(8)
        count = lookup(table, counts, wanted)
        total, kind = lookup(contexts, totals, before), lookup(contexts, kinds, before)
        mixed = (count + kind * probability) / np.maximum(total + kind, 1)
        probability = np.where(total > 0, mixed, probability)
    scored = asked != 0
    return float(-np.log2(probability[scored]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", type=Path)
    documents = load(parser.parse_args().corpora, NOVELS)
    train, held_out = (
        b"".join(START + d.text.encode() for d in documents if d.held_out == wanted)
        for wanted in (False, True)
    )
    print(f"order-{ORDER} byte model: {bits_per_byte(train, held_out):.4f} bits per byte")


if __name__ == "__main__":
    main()
