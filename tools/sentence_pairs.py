"""Triples (anchor, positive, hard negative) for the sentence objective, from the corpora alone.

Positives: a WikiSplit sentence and its split form; two sentences of one TurkCorpus cluster (a
sentence and its simplifications by several hands); a sentence and its rewriting; two overlapping
shares of one sentence's words. Negatives: the anchor or its positive with a changed number, name,
negation, direction, tense, or with foreign content words. See rewriting.py.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from pathlib import Path

from corpus import BLOCK_LINES, block_is_held_out, detokenize, load, read_lines, wiki_triples
from rewriting import (
    FUNCTION,
    core,
    halves,
    is_name,
    other_meaning,
    restyle,
    same_meaning,
    words_of,
)

SHORTEST, LONGEST = 4, 45  # words
SAMPLE = {"novels": 40000, "cia": 20000, "sgd": 12000, "taskmaster": 1500, "ud": 15000}
ROUNDS = {"wikisplit": 3, "turkcorpus": 10, "sentence": 2}  # triples per item

Triple = tuple[str, str, str]


def sentences_of(text: str) -> list[str]:
    """Sentences of a passage: cut after a stop and before a capital."""
    pieces = re.split(r'(?<=[.!?])["”]?\s+(?=["“]?[A-Z])|\n+', text)
    return [s.strip() for s in pieces if SHORTEST <= len(s.split()) <= LONGEST]


def turk_clusters(folder: Path) -> list[list[str]]:
    """TurkCorpus lines that say the same, found again by their rare words.

    A line joins the cluster of the earlier line with which it shares the largest part of its
    content words, if that is at least 45 % of their union.
    """
    lines = read_lines(folder / "turkcorpus_lines.txt.xz")
    bags = [{w for w in line.split() if w not in FUNCTION and len(w) > 1} for line in lines]
    frequency = Counter(word for bag in bags for word in bag)
    clusters: list[list[str]] = []
    leaders: list[set[str]] = []
    where: dict[str, list[int]] = defaultdict(list)
    for line, bag in zip(lines, bags, strict=True):
        rare = sorted(bag, key=lambda w: (frequency[w], w))[:6]
        candidates = {c for word in rare for c in where[word]}
        scored = [(len(bag & leaders[c]) / len(bag | leaders[c]), -c) for c in candidates]
        best, index = max(scored, default=(0.0, 0))
        if best >= 0.45:
            clusters[-index].append(line)
            continue
        for word in rare:
            where[word].append(len(clusters))
        leaders.append(bag)
        clusters.append([line])
    return [cluster for cluster in clusters if len(cluster) > 1]


def paired(folder: Path, rng: random.Random) -> list[tuple[str, str]]:
    """(anchor, positive) pairs that people wrote: WikiSplit and TurkCorpus."""
    pairs = []
    for index, (whole, first, second) in enumerate(wiki_triples(folder)):
        if not block_is_held_out(index * 3 // BLOCK_LINES):
            pair = (whole, f"{first} {second}")
            pairs += [pair] * ROUNDS["wikisplit"]
    for cluster in turk_clusters(folder):
        for _ in range(ROUNDS["turkcorpus"]):
            pairs.append(tuple(rng.sample(cluster, 2)))
    styled = []
    for anchor, positive in pairs:
        sides = [detokenize(s) if rng.random() < 0.6 else s for s in (anchor, positive)]
        rng.shuffle(sides)
        styled.append((sides[0], sides[1]))
    return styled


def single(folder: Path, rng: random.Random) -> list[str]:
    """Sentences of the training documents, sampled per source."""
    by_source: dict[str, set[str]] = defaultdict(set)
    for document in load(folder):
        if not document.held_out and document.source in SAMPLE:
            by_source[document.source].update(sentences_of(document.text))
    chosen = []
    for source, count in SAMPLE.items():
        pool = sorted(by_source[source])
        chosen += rng.sample(pool, min(count, len(pool)))
    for index, triple in enumerate(wiki_triples(folder)):
        if not block_is_held_out(index * 3 // BLOCK_LINES):
            chosen += [detokenize(rng.choice(triple[1:])), detokenize(triple[0])]
    return chosen * ROUNDS["sentence"]


def names_of(sentences: list[str]) -> list[str]:
    """Capitalised words inside sentences, each as often as it occurs up to twenty times."""
    counts: Counter[str] = Counter()
    for sentence in sentences:
        words = words_of(sentence)
        counts.update(words[i] for i in range(len(words)) if is_name(words, i))
    return [name for name, n in sorted(counts.items()) if n > 2 for _ in range(min(n, 20))]


def triples(folder: Path, seed: int) -> list[Triple]:
    """All triples, shuffled; the same for the same seed."""
    rng = random.Random(seed)
    pairs, sentences = paired(folder, rng), single(folder, rng)
    names = names_of(sentences)
    made: list[Triple] = []
    for anchor, positive in pairs:
        base = anchor if rng.random() < 0.5 else positive
        negative = other_meaning(base, rng.choice(sentences), rng, names)
        light = rng.random()
        if light < 0.3:
            positive = same_meaning(positive, rng)
        made.append((anchor, restyle(positive, rng), restyle(negative, rng)))
    for sentence in sentences:
        if rng.random() < 0.1:
            anchor, positive = halves(sentence, rng)
        else:
            anchor = sentence if rng.random() < 0.6 else same_meaning(sentence, rng)
            positive = same_meaning(sentence, rng)
        negative = restyle(other_meaning(sentence, rng.choice(sentences), rng, names), rng)
        made.append((anchor, positive, negative))
    made = [t for t in made if all(len(core(s)) > 3 for s in t) and t[1] != t[2]]
    rng.shuffle(made)
    return made
