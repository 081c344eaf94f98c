"""The baselines by the name that older scripts import: they stand in `rwkvsts.study.baselines`."""

from .study.baselines import WordVectors, load_vectors, space_words, split_words, word_overlap

__all__ = ["WordVectors", "load_vectors", "space_words", "split_words", "word_overlap"]
