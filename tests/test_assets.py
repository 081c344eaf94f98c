"""The bundled model, vocabulary and word vectors are the ones the model card describes.

Assumes only the files. Promises checked: hashes and sizes, a complete vocabulary that gives every
byte string back, the tensors of a 12-block RWKV-6, GloVe's text format, and that the card's figures
are what the package computes, also away from the checkout.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rwkvsts import RWKV6
from rwkvsts.data import datasets
from rwkvsts.study import baselines, statistics

ASSETS = Path(__file__).resolve().parents[1] / "rwkvsts" / "assets"
DEMO = ASSETS / "demo"
WEIGHTS = DEMO / "model.safetensors"
CARD = (ASSETS / "MODEL_CARD.md").read_text(encoding="utf-8")
V, C, F, L, H, N, R, RD = 8192, 192, 672, 12, 3, 64, 32, 64

VECTOR = [C]
BLOCK_SHAPES = {
    **{f"ln{i}.{part}": VECTOR for i in (1, 2) for part in ("weight", "bias")},
    **{f"attention.ln_x.{part}": VECTOR for part in ("weight", "bias")},
    **{f"attention.time_maa_{mix}": [1, 1, C] for mix in "xwkvrg"},
    "attention.time_maa_w1": [C, 5 * R],
    "attention.time_maa_w2": [5, R, C],
    "attention.time_decay": [1, 1, C],
    "attention.time_decay_w1": [C, RD],
    "attention.time_decay_w2": [RD, C],
    "attention.time_faaaa": [H, N],
    **{
        f"attention.{name}.weight": [C, C]
        for name in ("receptance", "key", "value", "gate", "output")
    },
    "feed_forward.time_maa_k": [1, 1, C],
    "feed_forward.time_maa_r": [1, 1, C],
    "feed_forward.key.weight": [F, C],
    "feed_forward.receptance.weight": [C, C],
    "feed_forward.value.weight": [C, F],
}


@pytest.fixture(scope="module")
def model() -> RWKV6:
    return RWKV6.from_pretrained("demo", device="cpu")


def test_files_have_the_recorded_hashes() -> None:
    lines = (ASSETS / "SHA256SUMS").read_text().splitlines()
    recorded = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert set(recorded) == {
        "demo/config.json",
        "demo/model.safetensors",
        "demo/rwkv_vocab_demo.txt",
        "glove.demo.50d.txt.gz",
    }
    for name, digest in recorded.items():
        assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == digest, name


def test_assets_fit_the_wheel() -> None:
    sizes = {path: path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()}
    assert sizes[WEIGHTS] <= 18_000_000
    assert sizes[ASSETS / "glove.demo.50d.txt.gz"] <= 1_500_000
    assert sum(sizes.values()) <= 22_000_000


def test_vocabulary_is_complete_and_gives_every_byte_back(model: RWKV6) -> None:
    lines = (DEMO / "rwkv_vocab_demo.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert [int(line.split(" ", 1)[0]) for line in lines] == list(range(1, V))
    lengths = [int(line.rsplit(" ", 1)[1]) for line in lines]
    assert lengths == sorted(lengths)
    tokenizer = model.tokenizer
    assert [tokenizer.decode([i]) for i in range(1, 257)] == [bytes([i]) for i in range(256)]
    entries = {tokenizer.decode([i]) for i in range(1, V)}
    assert len(entries) == V - 1
    text = "Naïve café \u2013 3,141 €\n\tЖ 漢 \U0001f600 don't"
    assert tokenizer.decode(tokenizer.encode(text)) == text.encode()
    # Learned, not only bytes: common English words are one token.
    assert len(tokenizer.encode("The president said that they were in the house")) <= 10


def test_tensors_are_those_of_a_12_block_rwkv6_without_head() -> None:
    raw = WEIGHTS.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    expected = {
        f"rwkv.blocks.{n}.{name}": shape for n in range(L) for name, shape in BLOCK_SHAPES.items()
    }
    for name in ("rwkv.blocks.0.pre_ln", "rwkv.ln_out"):
        expected |= {f"{name}.weight": VECTOR, f"{name}.bias": VECTOR}
    expected["rwkv.embeddings.weight"] = [V, C]
    assert {name: entry["shape"] for name, entry in header.items()} == expected
    assert {entry["dtype"] for entry in header.values()} == {"BF16"}
    assert len(raw) - 8 - size == 2 * sum(math.prod(shape) for shape in expected.values())
    bits = np.frombuffer(raw, "<u2", offset=8 + size)
    assert ((bits & 0x7F80) != 0x7F80).all(), "NaN or infinity among the weights"


def test_word_vectors_are_in_gloves_format() -> None:
    with gzip.open(ASSETS / "glove.demo.50d.txt.gz", "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split(" ") for line in file]
    assert len(rows) == 10_000
    assert {len(row) for row in rows} == {51}
    words = [row[0] for row in rows]
    assert len(set(words)) == len(words)
    assert all(baselines.split_words(word) == [word] for word in words)
    vectors = np.array([row[1:] for row in rows], np.float64)
    assert np.isfinite(vectors).all()
    assert (np.linalg.norm(vectors, axis=1) > 0).all()


def figures(name: str) -> list[float]:
    """The numbers of the card's first table row that begins with `name`."""
    found = re.search(rf"^\| {re.escape(name)} \|(.*)\|$", CARD, re.MULTILINE)
    assert found, name
    return [float(cell) for cell in found[1].split("|")]


@pytest.mark.parametrize("layer", [1, 11])
def test_card_tells_what_the_package_computes(model: RWKV6, layer: int) -> None:
    pairs = datasets.load("demo")
    first, second = (model.encode(s, layers=layer) for s in (pairs.sentence1, pairs.sentence2))
    value = statistics.spearman(statistics.cosine(first, second), pairs.label, resamples=1).value
    # 5e-4 for the card's three digits; instruction sets differ in rounding, which swaps near ties.
    assert value == pytest.approx(figures(f"trained, layer {layer}")[0], abs=2e-3)


def test_card_tells_the_controls() -> None:
    pairs = datasets.load("demo")
    overlap = baselines.word_overlap(pairs.sentence1, pairs.sentence2)
    value = statistics.spearman(overlap, pairs.label, resamples=1).value
    assert value == pytest.approx(figures("word overlap")[0], abs=6e-4)
    texts = pairs.sentence1 + pairs.sentence2
    vectors = baselines.load_vectors(datasets.asset("glove.demo.50d.txt.gz"), texts)
    means = (vectors.average(s, baselines.split_words) for s in (pairs.sentence1, pairs.sentence2))
    value = statistics.spearman(statistics.cosine(*means), pairs.label, resamples=1).value
    assert value == pytest.approx(figures("GloVe, words split")[0], abs=6e-4)


def test_demo_loads_away_from_the_checkout(tmp_path: Path) -> None:
    program = (
        "from rwkvsts import RWKV6; from rwkvsts.data import datasets;"
        "m = RWKV6.from_pretrained('demo', device='cpu');"
        "print(m.encode('Rates rose.', layers=[3]).shape, len(datasets.load('demo')) > 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "(1, 192) True"
