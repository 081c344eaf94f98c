"""Learns the demo vocabulary: byte strings for greedy longest match, in the World file's format.

Entries never cross a word boundary: a piece is an optional space and a run of letters, of digits
(at most four) or of other marks, an apostrophe with its ending, or one white space character. From
every piece of the corpus come its substrings as candidates; then, until the size is met, the corpus
is cut greedily with what is left and the entries go that save the fewest tokens (uses times the
tokens their own bytes would otherwise cost). All 256 single bytes stay, so that any text encodes.

    python tools/learn_vocabulary.py CORPORA rwkvsts/assets/demo/rwkv_vocab_demo.txt
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path

from corpus import REPEATS, Document, load

PIECE = re.compile(r"'(?:ll|re|ve|s|t|d|m)| ?[^\W\d_]+| ?\d{1,4}| ?[^\w\s]{1,3}| ?_|\s")
LONGEST = 16  # bytes
SEEDS = 60000  # candidates of the first round
KEEP = 0.8  # share of the entries that one round leaves


def count_pieces(documents: list[Document]) -> Counter[bytes]:
    """How often each piece occurs in the training documents, weighted as in training."""
    pieces: Counter[bytes] = Counter()
    for document in documents:
        if not document.held_out:
            weight = REPEATS[document.source]
            for piece in PIECE.findall(document.text):
                pieces[piece.encode()] += weight
    return pieces


def greedy(text: bytes, vocabulary: set[bytes] | dict[bytes, int], longest: int) -> list[bytes]:
    """`text` cut greedily: at each position the longest entry that matches."""
    cut, begin = [], 0
    while begin < len(text):
        end = min(len(text), begin + longest)
        while end > begin + 1 and text[begin:end] not in vocabulary:
            end -= 1
        cut.append(text[begin:end])
        begin = end
    return cut


def seeds(pieces: Counter[bytes]) -> set[bytes]:
    """The substrings of all pieces with the most bytes to save: uses times (length - 1)."""
    scores: Counter[bytes] = Counter()
    for piece, count in pieces.items():
        for begin in range(len(piece)):
            for end in range(begin + 2, min(len(piece), begin + LONGEST) + 1):
                scores[piece[begin:end]] += count * (end - begin - 1)
    return {entry for entry, _ in scores.most_common(SEEDS)}


def prune(pieces: Counter[bytes], entries: set[bytes], keep: int) -> set[bytes]:
    """The `keep` entries that save the most tokens when all pieces are cut greedily."""
    uses: Counter[bytes] = Counter()
    for piece, count in pieces.items():
        for part in greedy(piece, entries, LONGEST):
            uses[part] += count
    gains = {}
    for entry in list(entries):
        entries.remove(entry)
        gains[entry] = uses[entry] * (len(greedy(entry, entries, LONGEST)) - 1)
        entries.add(entry)
    ranked = sorted(gains, key=lambda entry: (-gains[entry], entry))
    return set(ranked[:keep])


def learn(pieces: Counter[bytes], size: int) -> list[bytes]:
    """`size` entries: the 256 bytes and the best longer ones, by length and then by bytes."""
    common = Counter({piece: count for piece, count in pieces.items() if count >= 3})
    entries = seeds(common)
    while len(entries) > size - 256:
        entries = prune(common, entries, max(size - 256, int(KEEP * len(entries))))
    single = [bytes([value]) for value in range(256)]
    return single + sorted(entries, key=lambda entry: (len(entry), entry))


def literal(entry: bytes) -> str:
    """The Python literal of an entry: text where it is UTF-8, else bytes."""
    try:
        return repr(entry.decode())
    except UnicodeDecodeError:
        return repr(entry)


def write(path: Path, entries: list[bytes]) -> None:
    """Write `<id> <literal> <byte length>` lines, ids from 1."""
    lines = (f"{i} {literal(entry)} {len(entry)}\n" for i, entry in enumerate(entries, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=8191, help="entries, id 0 not counted")
    options = parser.parse_args()
    pieces = count_pieces(load(options.corpora))
    entries = learn(pieces, options.size)
    write(options.out, entries)
    known = set(entries)
    tokens = sum(n * len(greedy(piece, known, LONGEST)) for piece, n in pieces.items())
    total = sum(n * len(piece) for piece, n in pieces.items())
    print(f"{len(entries)} entries, {total / tokens:.3f} bytes a token over {total} bytes")


if __name__ == "__main__":
    main()
