"""Labelled sentence pairs: the catalogue of data sets, their layouts, the readers of files.

`readers` yields rows, `pairs` checks them, `catalogue` and `layouts` know the public data sets,
`datasets` loads those and `own` a file of one's own.
"""

from .catalogue import DATA_SETS
from .datasets import asset, load
from .own import load_file
from .pairs import Pairs

__all__ = ["DATA_SETS", "Pairs", "asset", "load", "load_file"]
