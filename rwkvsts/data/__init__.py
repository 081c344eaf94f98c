"""Labelled sentence pairs: the data sets and the readers of their files."""

from .datasets import DATA_SETS, Pairs, asset, load

__all__ = ["DATA_SETS", "Pairs", "asset", "load"]
