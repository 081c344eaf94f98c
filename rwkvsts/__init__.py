"""RWKV sentence embeddings: pooled hidden states of any set of layers in one pass.

>>> import rwkvsts
>>> m = rwkvsts.load("demo")
>>> m.encode(["A first sentence.", "And a second."], layers=[1, 3, 5]).shape
(2, 3, 192)
"""

from . import command  # noqa: F401  # before all that takes a while to import

# isort: split
from importlib.metadata import PackageNotFoundError, version

import numpy  # noqa: F401  # before the C part, which would be blamed for what is wrong with it

try:
    from . import _core  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"rwkvsts was found in {__path__[0]} without a C part that loads here: run Python "
        "outside the source tree, or build in it with pip install -e ."
    ) from error

from .embedder import Embedder
from .embedding_rwkv import EmbeddingRWKV
from .errors import CheckpointError, DataError, DeviceError, HubError
from .model import RWKV, RWKV6, RWKV7, Config, State

__all__ = ["RWKV", "RWKV6", "RWKV7", "CheckpointError", "Config", "DataError", "DeviceError"]
__all__ += ["Embedder", "EmbeddingRWKV", "HubError", "State", "load"]

load = RWKV.from_pretrained

try:
    __version__ = version("rwkvsts")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "unknown"
