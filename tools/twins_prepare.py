"""Packs what twins_train.py reads: the training and held-out text as ids, and the pairs to score.

    python tools/twins_prepare.py CORPORA DATA OUT

Assumes the corpora of corpus.py and a folder DATA with mrpc/, stsb/ and sick/. Promises
`text.npz.xz` (`tokens` and `repeats` as in prepare_demo.py, `held_out`, `held_out_bytes`) and
`pairs.npz`: for each set of SETS the ids of all sentences, first and second of a pair in turn, and
`lengths`. All ids are rwkvsts' own, by the bundled vocabulary; id 0 stands before each document and
nowhere else. No training document holds a sentence to be scored, word for word.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
from corpus import REPEATS, Document, load
from prepare_demo import save_prepared

from rwkvsts.data import datasets
from rwkvsts.tokenizer import World

VOCABULARY = 8192  # with id 0
# Data set and split of all pairs that are scored, development sets first.
SETS = (
    ("mrpc", "train"),
    ("stsb", "validation"),
    ("sick-2014", "validation"),
    ("mrpc", "validation"),
    ("mrpc", "test"),
    ("stsb", "test"),
    ("sick-2014", "test"),
    ("demo", "all"),
)


def stream(texts: list[str], tokenizer: World) -> np.ndarray:
    """Ids of all texts, uint16, id 0 before each."""
    ids, start = tokenizer.encode_many(texts)
    return np.insert(ids, start[:-1], 0).astype(np.uint16)


def words(text: str) -> str:
    """Lower-case words alone, to compare sentences across punctuation and spacing."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def holds_one(document: Document, sentences: set[str]) -> bool:
    """Whether one of the sentences (as `words` leaves them) is a line or sentence of a document."""
    parts = re.split(r"[.!?]\s|\n", document.text)
    return not sentences.isdisjoint(words(part) for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = World(datasets.asset("demo/rwkv_vocab_demo.txt"), VOCABULARY)

    pairs, sentences = {}, set()
    for name, split in SETS:
        loaded = datasets.load(name, split, data=options.data)
        both = [s for pair in zip(loaded.sentence1, loaded.sentence2, strict=True) for s in pair]
        ids, start = tokenizer.encode_many(both)
        pairs[f"{name}/{split}"] = ids.astype(np.uint16)
        pairs[f"{name}/{split}/lengths"] = np.diff(start).astype(np.uint16)
        sentences |= {words(sentence) for sentence in both}
    np.savez_compressed(options.out / "pairs.npz", **pairs)

    documents = load(options.corpora)
    training = [d for d in documents if not d.held_out and not holds_one(d, sentences)]
    held_out = [d.text for d in documents if d.held_out]
    arrays = {
        "tokens": stream([d.text for d in training], tokenizer),
        "repeats": np.array([REPEATS[d.source] for d in training], np.uint8),
        "held_out": stream(held_out, tokenizer),
        "held_out_bytes": np.int64(sum(len(text.encode()) for text in held_out)),
    }
    save_prepared(options.out / "text.npz.xz", arrays)
    read = sum(len(d.text.encode()) * REPEATS[d.source] for d in training)
    print(f"{len(training)} documents, {len(arrays['tokens'])} tokens, {read} bytes an epoch")
    print(f"held out: {len(arrays['held_out'])} tokens, {arrays['held_out_bytes']} bytes")
    left_out = sum(not d.held_out for d in documents) - len(training)
    print(f"{left_out} documents are left out because they hold a sentence to be scored")


if __name__ == "__main__":
    main()
