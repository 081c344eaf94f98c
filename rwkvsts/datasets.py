"""The data sets by the name that older scripts import: they stand in `rwkvsts.data.datasets`."""

from .data.datasets import DATA_SETS, Pairs, asset, load
from .data.readers import read_parquet

__all__ = ["DATA_SETS", "Pairs", "asset", "load", "read_parquet"]
