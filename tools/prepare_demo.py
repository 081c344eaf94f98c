"""Packs what the training script reads: token ids, held-out text, sentence triples.

    python tools/prepare_demo.py CORPORA VOCABULARY OUT [--seed 1] [--data DATA]

Assumes the vocabulary of learn_vocabulary.py, whose entries hold a space only in front and no other
white space beside anything else, so that text may be cut before each space. Promises one
`prepared.npz.xz` (read by `load_prepared`): `tokens`, uint16, the training documents in random
order, id 0 before each; `repeats`, how often each is to be read; `held_out`, like `tokens`, and
`held_out_bytes`, the size of its text; `triples`, the sentences of all triples one after another,
`lengths`, [n, 3], their tokens, and `grades`, [n], in hundredths. None of them holds a sentence of
an evaluation set. With --data, dev.npz holds the development pairs, by which training and layer are
chosen: MRPC train[1000:], STS-B train, SICK train, as ids, lengths and labels.
"""

from __future__ import annotations

import argparse
import ast
import io
import lzma
import re
from pathlib import Path

import numpy as np
from corpus import NOVELS, REPEATS, load
from learn_vocabulary import greedy
from sentence_pairs import triples

CHUNK = re.compile(r" ?[^\s]+|\s")
TRIPLE_TOKENS = 48
DEVELOPMENT = (("mrpc", "train[1000:]"), ("stsb", "train"), ("sick", "train"))


class Encoder:
    """Greedy longest match over a vocabulary file; `encode(text)` gives the ids."""

    def __init__(self, path: Path) -> None:
        self.ids: dict[bytes, int] = {}
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
            number, rest = line.split(" ", 1)
            entry = ast.literal_eval(rest.rsplit(" ", 1)[0])
            self.ids[entry if isinstance(entry, bytes) else entry.encode()] = int(number)
        self.longest = max(map(len, self.ids))
        self.known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        tokens: list[int] = []
        for chunk in CHUNK.findall(text):
            ids = self.known.get(chunk)
            if ids is None:
                parts = greedy(chunk.encode(), self.ids, self.longest)
                ids = self.known[chunk] = [self.ids[part] for part in parts]
            tokens += ids
        return tokens


def pack_documents(texts: list[str], encoder: Encoder) -> np.ndarray:
    """One uint16 stream, id 0 before each document."""
    stream: list[np.ndarray] = []
    for text in texts:
        stream.append(np.array([0, *encoder.encode(text)], np.uint16))
    return np.concatenate(stream)


def pack_triples(folder: Path, encoder: Encoder, seed: int) -> dict[str, np.ndarray]:
    """Ids uint16, flat; lengths [n, 3] uint8; grades [n] in hundredths.

    Sentences are cut at TRIPLE_TOKENS.
    """
    made = triples(folder, seed)
    sentences = [
        np.array(encoder.encode(text)[:TRIPLE_TOKENS], np.uint16)
        for triple in made
        for text in triple[:3]
    ]
    lengths = np.array([len(ids) for ids in sentences], np.uint8).reshape(-1, 3)
    grades = np.array([round(100 * triple[3]) for triple in made], np.uint8)
    return {"triples": np.concatenate(sentences), "lengths": lengths, "grades": grades}


def pack_development(data: Path, encoder: Encoder) -> dict[str, np.ndarray]:
    """The development pairs: for each set ids, one sentence after another, lengths, labels."""
    from rwkvsts.data import datasets

    arrays = {}
    for name, split in DEVELOPMENT:
        pairs = datasets.load(name, split, data=data)
        both = zip(pairs.sentence1, pairs.sentence2, strict=True)
        ids = [np.array(encoder.encode(s)[:255], np.uint16) for pair in both for s in pair]
        arrays[f"{name}_ids"] = np.concatenate(ids)
        arrays[f"{name}_lengths"] = np.array([len(row) for row in ids], np.uint8)
        arrays[f"{name}_labels"] = pairs.label.astype(np.float32)
    return arrays


def save_prepared(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write the arrays, packed with the filter that suits 16-bit numbers."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lp": 1, "lc": 3, "pb": 1}]
    path.write_bytes(lzma.compress(buffer.getvalue(), lzma.FORMAT_XZ, filters=filters))


def load_prepared(path: Path) -> dict[str, np.ndarray]:
    """The arrays that `save_prepared` wrote."""
    with np.load(io.BytesIO(lzma.decompress(path.read_bytes()))) as file:
        return dict(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", type=Path)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    encoder = Encoder(options.vocabulary)
    if options.data:
        np.savez_compressed(options.out / "dev.npz", **pack_development(options.data, encoder))
    documents = load(options.corpora, NOVELS)
    training = [d for d in documents if not d.held_out]
    order = np.random.default_rng(options.seed).permutation(len(training))
    held_out = [d.text for d in documents if d.held_out]
    arrays = {
        "tokens": pack_documents([training[i].text for i in order], encoder),
        "repeats": np.array([REPEATS[training[i].source] for i in order], np.uint8),
        "held_out": pack_documents(held_out, encoder),
        "held_out_bytes": np.int64(sum(len(text.encode()) for text in held_out)),
        **pack_triples(options.corpora, encoder, options.seed),
    }
    save_prepared(options.out / "prepared.npz.xz", arrays)
    for name, array in arrays.items():
        print(name, array.shape, array.dtype, array if array.ndim == 0 else "")


if __name__ == "__main__":
    main()
