"""The C core; see csrc/python/."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Result = TypeVar("Result")

def cpu_features() -> dict[str, bool]: ...
def in_default_floats(function: Callable[[], Result]) -> Result: ...

class Tokenizer:
    def __new__(
        cls, ids: NDArray[np.int32], blob: bytes, offsets: NDArray[np.int64]
    ) -> Tokenizer: ...
    def encode(self, text: bytes) -> list[int]: ...
    def encode_many(
        self, texts: Sequence[bytes]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]: ...
    def decode(self, ids: Sequence[int]) -> bytes: ...

State = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]

class Model:
    architecture: str
    config: dict[str, int]
    ranks: tuple[int, int, int, int]
    device: str
    def __new__(
        cls,
        tensors: Sequence[tuple[str, tuple[int, ...]]],
        blocks: int = 0,
        dtype: str = "float32",
        threads: int = 1,
        isa: str | None = None,
        cuda: bool = False,
        library: str | None = None,
        budget: int = 0,
        ordinal: int = 0,
    ) -> Model: ...
    def wants(self, name: str) -> bool: ...
    def put(self, name: str, array: NDArray[Any], dtype: str) -> None: ...
    def seal(self) -> None: ...
    def memory(self) -> dict[str, int]: ...
    def run(
        self,
        ids: NDArray[np.int32],
        start: NDArray[np.int64],
        layers: NDArray[np.int32],
        pooling: int,
        out: NDArray[np.float32] | None,
        first: State | None,
        last: bool,
        rows: int,
        progress: Callable[[int, int], object] | None,
        skip: NDArray[np.int32] | None = None,
        origin: NDArray[np.int64] | None = None,
        more: bool = False,
    ) -> tuple[Any, ...]: ...  # a State where last; else how many were run, and whether all finite
