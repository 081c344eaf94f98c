"""Triples (anchor, positive, third) for the sentence objective, from the corpora alone.

Positives: a WikiSplit sentence and its split form; two sentences of one TurkCorpus cluster (a
sentence and its simplifications by several hands); a sentence and its rewriting. Thirds, each with
a grade between 0 and 1 that says how much it has in common: the anchor or its positive with a
changed number, name, negation, direction, tense, or with foreign content words; or with details
left out, added or exchanged. See rewriting.py.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from pathlib import Path

from corpus import (
    BLOCK_LINES,
    NOVELS,
    block_is_held_out,
    detokenize,
    load,
    read_lines,
    wiki_triples,
)
from rewriting import (
    FUNCTION,
    core,
    is_name,
    other_meaning,
    partly_same,
    restyle,
    same_meaning,
    shared,
    words_of,
)

SHORTEST, LONGEST = 4, 45  # words
SAMPLE = {"novels": 35000, "cia": 15000, "sgd": 12000, "taskmaster": 1500, "ud": 15000}
ROUNDS = {"wikisplit": 3, "turkcorpus": 16, "sentence": 2}  # triples per item

CHANGED, CHANGED_GRADE = 0.5, 0.7  # share of thirds with one telling change, and their grade

Triple = tuple[str, str, str, float]


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


def reaches_held_out(at: int) -> bool:
    """Whether one of WikiSplit's lines `at` to `at` + 2 is held out."""
    return any(block_is_held_out(line // BLOCK_LINES) for line in (at, at + 2))


def paired(folder: Path, rng: random.Random) -> list[tuple[str, str]]:
    """(anchor, positive) pairs that people wrote: WikiSplit and TurkCorpus."""
    pairs = []
    for at, (whole, first, second) in wiki_triples(folder):
        if not reaches_held_out(at):
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
    for document in load(folder, NOVELS):
        if not document.held_out and document.source in SAMPLE:
            by_source[document.source].update(sentences_of(document.text))
    chosen = []
    for source, count in SAMPLE.items():
        pool = sorted(by_source[source])
        chosen += rng.sample(pool, min(count, len(pool)))
    for at, triple in wiki_triples(folder):
        if not reaches_held_out(at):
            chosen += [detokenize(rng.choice(triple[1:])), detokenize(triple[0])]
    return chosen * ROUNDS["sentence"]


def names_of(sentences: list[str]) -> list[str]:
    """Capitalised words inside sentences, each as often as it occurs up to twenty times."""
    counts: Counter[str] = Counter()
    for sentence in sentences:
        words = words_of(sentence)
        counts.update(words[i] for i in range(len(words)) if is_name(words, i))
    return [name for name, n in sorted(counts.items()) if n > 2 for _ in range(min(n, 20))]


def known_words(sentences: list[str]) -> set[str]:
    """Lower-case words that the sentences hold five times or more."""
    counts = Counter(word for sentence in sentences for word in words_of(sentence))
    return {word for word, n in counts.items() if n >= 5 and word.isalpha() and word.islower()}


def triples(folder: Path, seed: int) -> list[Triple]:
    """All triples, shuffled; the same for the same seed."""
    rng = random.Random(seed)
    pairs, sentences = paired(folder, rng), single(folder, rng)
    names, known = names_of(sentences), known_words(sentences)
    made: list[Triple] = []
    for anchor, positive in pairs + [(sentence, sentence) for sentence in sentences]:
        written = anchor != positive  # by people
        base, other = rng.choice((anchor, positive)), rng.choice(sentences)
        if rng.random() < CHANGED:
            third, grade = other_meaning(base, other, rng, names), CHANGED_GRADE
        else:
            third = partly_same(base, other, rng)
            grade = shared(base, third)
        if not written and rng.random() < 0.5:
            # An edit leaves traces of its own: as often as not it is the anchor that was edited.
            anchor, positive, third = third, third, anchor
        if rng.random() < (0.3 if written else 0.4):
            anchor = same_meaning(anchor, rng, known)
        if not written or rng.random() < 0.3:
            positive = same_meaning(positive, rng, known)
        if not written or rng.random() < 0.3:
            third = same_meaning(third, rng, known)
        made.append((anchor, restyle(positive, rng), restyle(third, rng), grade))
    made = [t for t in made if all(len(core(s)) > 3 for s in t[:3]) and len(set(t[:3])) == 3]
    rng.shuffle(made)
    return made
