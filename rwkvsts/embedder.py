"""What a study or an adapter needs of a model: `Embedder`, and how each of them reads a call.

RWKV, softmax-attention models of Hugging Face, trained sentence embedders and word vectors all fit
the protocol, so that nothing above it needs to know which of them it has. They derive from
`BaseEmbedder`, which checks what a call asks. Promises that the same wrong argument is refused with
the same words by all.
"""

from __future__ import annotations

import io
import operator
import re
import reprlib
import sys
from collections.abc import ItemsView, Iterable, KeysView, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from . import _core
from .progress import Show

if TYPE_CHECKING:
    from .states import State

Layer = int | Literal["final", "retr", "sts", "cls"]
NAMED_LAYERS: tuple[Layer, ...] = ("final", "retr", "sts", "cls")  # the last three of EmbeddingRWKV
Layers = Layer | Sequence[Layer]
FloatArray = NDArray[np.float32]
Ids = Sequence[int] | NDArray[np.integer[Any]]  # of one sequence

POOLING = ("mean", "last", "weighted", "max")  # in the order of enum pooling in csrc/backend.h
MOST_ROWS = 2**24  # tokens of a pass that the core takes
PLACE = "{text}"
# What other libraries write in its place, or nothing, and slips of the pen; other braces may stand.
OTHER_PLACE = re.compile(
    r"\{\{\s*text\s*\}\}|\{(?!text\})\s*(?:(?i:text)\W[^{}]*|\w*\s*)\}|\{text\b(?!\})"
    r"|%s(?!\w)|%\(\w+\)s"
)


@runtime_checkable
class Embedder(Protocol):
    """A model that turns texts into vectors.

    name : short, for tables and plots; models of one name are not told apart there
    architecture : what it is, in words: "RWKV-6", "llama", "word vectors"
    source, revision : what it was opened from; the commit, if that was a repository
    device, dtype : what it runs on, and the type of its weights and products
    layers : every layer that can be asked for, lowest first: i is the residual stream after block
        i, counted from 0 and not normed; "final" is after the last norm, or all that the model has
    poolings : every pooling that can be asked for, the default first
    width : C, the length of a vector
    """

    @property
    def name(self) -> str: ...
    @property
    def architecture(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def layers(self) -> tuple[Layer, ...]: ...
    @property
    def poolings(self) -> tuple[str, ...]: ...
    @property
    def width(self) -> int: ...

    def encode(
        self,
        texts: str | Sequence[str],
        layers: Layers | None = None,
        pooling: str = ...,
        prompt: str | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        normalize: bool = False,
        show_progress: bool | None = None,
        out: FloatArray | None = None,
        *,
        skip_first: bool = False,
    ) -> FloatArray:
        """float32 [S, len(layers), C]; no first axis for one str, no second for one layer."""
        ...

    def memory(self) -> dict[str, int]:
        """Bytes: "weights", "workspace" now, and the "peak" of both together."""
        ...


def middle_layer(n_layer: int) -> int:
    """The layer that `encode` takes when none is named: the one half-way up.

    A language model's last layers turn towards the next token. Over 32 embedding tasks and several
    architectures the layers around the middle did best (Skean et al., "Layer by Layer", ICML 2025).
    """
    return n_layer // 2


@dataclass(frozen=True)
class Prompt:
    """A prompt in pieces, as its texts are read: before, text, between, text, ..., after.

    between : one piece less than the readings of the text; empty for a single reading
    """

    before: str = ""
    between: tuple[str, ...] = ()
    after: str = ""

    @classmethod
    def of(cls, prompt: str | None) -> Prompt:
        """Cut a prompt at each "{text}"; one without it is put before the text.

        Raises TypeError for what is no str, ValueError for another word in braces, which would
        stand in every text as it is.
        """
        if prompt is not None and not isinstance(prompt, str):
            raise TypeError(f"prompt is {type(prompt).__name__}: expected str or None")
        if other := OTHER_PLACE.search(prompt or ""):
            raise ValueError(f"prompt holds {other[0]}: the place of the text is written {PLACE}")
        if half := re.search("[\ud800-\udfff]", prompt or ""):
            raise ValueError(
                f"prompt holds half a surrogate pair at character {half.start()}, "
                f"{reprlib.repr(prompt)}: it is no text"
            )
        pieces = (prompt or "").split(PLACE)
        if len(pieces) == 1:
            return cls(before=pieces[0])
        return cls(pieces[0], tuple(pieces[1:-1]), pieces[-1])

    def around(self, text: str) -> str:
        """The text within its prompt, for models that read both as one."""
        return self.before + "".join(text + piece for piece in (*self.between, self.after))


class BaseEmbedder:
    """What embedders have in common: `encode`, with its arguments checked.

    A kind of embedder derives from it, adds what else an `Embedder` has, and writes `_embed`.
    """

    poolings: tuple[str, ...] = POOLING

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Every layer that can be asked for, lowest first."""
        raise NotImplementedError

    @property
    def default_layer(self) -> Layer:
        """The layer that is taken where none is named."""
        return "final"

    @property
    def width(self) -> int:
        """C, the length of an embedding."""
        raise NotImplementedError

    # A class with one more parameter writes this signature anew: **options would hide it from help,
    # editors and mypy. What all of them have is checked once, in Request.
    def encode(
        self,
        texts: str | Iterable[str],
        layers: Layers | None = None,
        pooling: str | None = None,
        prompt: str | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        normalize: bool = False,
        show_progress: bool | None = None,
        out: FloatArray | None = None,
        *,
        skip_first: bool = False,
    ) -> FloatArray:
        """Embed texts. What a model reads otherwise, or refuses, its class tells.

        Parameters
        ----------
        texts : one text or many
        layers : one or several of `model.layers`; default: `model.default_layer`
        pooling : one of `model.poolings`; default: the first of them
        prompt : put before each text, or around it where it holds "{text}"
        max_length : tokens after which a text is cut
        batch_tokens : tokens of a pass; changes memory, speed and rounding
        normalize : scale every row to length 1
        show_progress : default: on a terminal, where it takes long
        out : C-contiguous float32 array of the result's shape to write into
        skip_first : leave the first token of the sequence out of the pooling

        Returns
        -------
        float32 [S, len(layers), C]; without the first axis for one str, the second for one layer

        Raises
        ------
        ValueError : an argument is wrong, or a text has nothing to pool
        TypeError : an argument or a text is of another type
        """
        request = Request.of(
            self, layers, pooling, prompt, max_length, batch_tokens, normalize, show_progress, out
        )
        return self._embed(*as_list(texts), replace(request, skip_first=skip_first))

    def _embed(self, texts: list[Any], axes: tuple[int, ...], request: Request) -> FloatArray:
        """The embeddings of texts that nobody has looked at yet.

        axes : (S,), or () where the caller gave one str and wants no first axis
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Request:
    """What a call asks of an embedder besides its texts, checked.

    columns : places of the layers asked for among the model's
    one_layer : a single layer was named, so the result has no axis for layers
    state : that every sequence starts from, for RWKV
    """

    columns: tuple[int, ...]
    one_layer: bool
    pooling: str
    prompt: Prompt
    max_length: int | None
    batch_tokens: int | None
    normalize: bool
    show_progress: Show
    out: FloatArray | None
    skip_first: bool = False
    state: State | None = None

    def __post_init__(self) -> None:
        check_range("max_length", self.max_length, 1, sys.maxsize)
        check_range("batch_tokens", self.batch_tokens, 1, MOST_ROWS)
        check_flag("normalize", self.normalize)
        check_flag("skip_first", self.skip_first)
        if self.show_progress is not None and not callable(self.show_progress):
            check_flag("show_progress", self.show_progress)

    @classmethod
    def of(
        cls,
        model: BaseEmbedder,
        layers: Layers | None,
        pooling: str | None = None,
        prompt: str | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        normalize: bool = False,
        show_progress: Show = None,
        out: FloatArray | None = None,
    ) -> Request:
        """The arguments of `encode`, in its order, but for those that tell where a sequence begins.

        Raises ValueError for what the model has not, TypeError for what is of another type.
        """
        if pooling is None:
            pooling = model.poolings[0]
        if pooling not in model.poolings:
            expected = f"expected one of {', '.join(model.poolings)}"
            raise ValueError(f"pooling={reprlib.repr(pooling)}: {expected}")
        columns, one = _columns(model, layers)
        pieces = Prompt.of(prompt)
        return cls(
            columns, one, pooling, pieces, max_length, batch_tokens, normalize, show_progress, out
        )

    def result(self, texts: tuple[int, ...], width: int) -> tuple[FloatArray, FloatArray]:
        """The array to return, the caller's if it gave one that fits; and its rows to fill.

        texts : (S,), or () where the caller gave one str
        rows : float32 [S, len(columns), C], a view of the result
        """
        shape = (*texts, *(() if self.one_layer else (len(self.columns),)), width)
        result = np.empty(shape, np.float32) if self.out is None else _fitting(self.out, shape)
        return result, result.reshape(-1, len(self.columns), width)

    def finish(self, rows: FloatArray) -> None:
        """Scale rows [..., C] to length 1 where that was asked; a zero row stays zero."""
        if self.normalize:
            to_unit_length(rows)


def _columns(model: BaseEmbedder, layers: Layers | None) -> tuple[tuple[int, ...], bool]:
    """Places of the layers asked for, and whether a single one was named."""
    place = {layer: i for i, layer in enumerate(model.layers)}
    if layers is None:
        layers = model.default_layer
        if layers not in place:
            raise ValueError(
                f"the default layer is {layers}, and max_layer={model.layers[-1]} left it out: "
                "name the layers"
            )
    one = isinstance(layers, (int, str, np.integer)) or getattr(layers, "ndim", None) == 0
    if not one and (
        not isinstance(layers, Iterable) or isinstance(layers, Set | Mapping | bytes | bytearray)
    ):
        raise TypeError(f"layers={reprlib.repr(layers)}: expected a layer or a list of layers")
    listed: list[Any] = [layers] if one else list(layers)  # type: ignore[arg-type]
    if not listed:
        raise ValueError("layers is empty: name at least one")
    return tuple(_column(model, place, layer) for layer in listed), one


def _column(model: BaseEmbedder, place: dict[Layer, int], layer: Any) -> int:
    """The place of one layer; a number may be NumPy's or torch's, but no 1.0 and no True."""
    known: Any = layer if isinstance(layer, str) else None
    if known is None and not isinstance(layer, bool):
        with suppress(TypeError):
            known = operator.index(layer)
    if known not in place:
        held = in_words(model.layers)
        raise ValueError(f"layer {reprlib.repr(layer)}: this model holds {held}")
    return place[known]


def to_unit_length(rows: FloatArray) -> None:
    """Scale rows [..., C] to length 1 in place; a zero row stays zero."""
    _core.in_default_floats(lambda: _scale(rows))


def _scale(rows: FloatArray) -> None:
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    np.divide(rows, length, out=rows, where=length > 0)


def as_list(texts: str | Iterable[str]) -> tuple[list[str], tuple[int, ...]]:
    """Texts as a list, and the first axes of the result: none for one str."""
    if isinstance(texts, str):
        return [texts], ()
    listed = listed_items("texts", texts)
    return listed, (len(listed),)


def listed_items(name: str, items: Any) -> list[Any]:
    """The items of a list, a column, an array or a generator.

    Raises TypeError for a container that gives something else than its items, or in any order.
    """
    kind = type(items).__name__
    remedy = None
    if isinstance(items, (bytes, bytearray)):
        remedy = "decode it to str" if name == "texts" else "give a list of ids for each sequence"
    elif isinstance(items, Mapping):
        remedy = "its keys would be taken; give list(mapping.values())"
    elif isinstance(items, Set) and not isinstance(items, KeysView | ItemsView):
        remedy = "it has no order; give sorted(...) or a list"
    elif hasattr(items, "columns"):  # a table of pandas, polars or pyarrow
        remedy = "its column names would be taken; give one column"
    elif hasattr(items, "column_names"):  # of the library datasets
        remedy = "its rows are no texts; give one column"
    elif isinstance(items, io.IOBase):
        remedy = "its lines would be taken with their ends; give file.read().splitlines()"
    elif not _can_be_listed(items):
        remedy = (
            "expected a str or a list of str" if name == "texts" else "expected a list of lists"
        )
    if remedy is not None:
        raise TypeError(f"{name} is {kind}: {remedy}")
    column = getattr(items, "to_pylist", None)  # of pyarrow, whose items are no Python objects
    if column is not None:
        return list(column())
    # By its length where it has no iterator, as a torch Dataset: its items may never end.
    by_place = hasattr(items, "__len__") and not isinstance(items, Iterable)
    return [items[i] for i in range(len(items))] if by_place else list(items)


def _can_be_listed(items: Any) -> bool:
    """Whether something has items: an iterator, or a length and items by their places."""
    if isinstance(items, np.ndarray):
        return items.ndim > 0
    if isinstance(items, Iterable):
        try:
            iter(items)
        except TypeError:  # as of a scalar that only looks like an array
            return False
        return True
    has_places = hasattr(items, "__len__") and hasattr(items, "__getitem__")
    return has_places and not isinstance(items, type)


def check_texts(texts: Sequence[Any], name: str = "texts", first: int = 0) -> None:
    """TypeError for an item that is no text; `first` is the place of the first among all."""
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{first + i}] is {type(text).__name__}: expected str")


def check_range(name: str, value: int | None, least: int, most: int) -> None:
    """ValueError for a value outside, TypeError for no whole number; None is inside."""
    if value is None:
        return
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={reprlib.repr(value)}: expected a whole number") from None
    if isinstance(value, bool) or not least <= number <= most:
        raise ValueError(f"{name}={value}: expected {least} .. {most}")


def check_flag(name: str, value: object) -> None:
    """TypeError for what is neither True nor False: "no" would count as True."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}={reprlib.repr(value)}: expected True or False")


def in_words(layers: tuple[Layer, ...]) -> str:
    """Layers for a message: `layers 0 .. 11 and "final"`."""
    numbers = [layer for layer in layers if isinstance(layer, int)]
    words = [f"layers {numbers[0]} .. {numbers[-1]}"] if numbers else []
    return " and ".join(words + [f'"{layer}"' for layer in layers if isinstance(layer, str)])


def _fitting(out: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out is {type(out).__name__}: expected a NumPy array")
    sound = out.flags.c_contiguous and out.flags.writeable
    if out.dtype != np.float32 or out.shape != shape or not sound:
        raise ValueError(
            f"out is {out.dtype} of shape {out.shape}: expected writable C-contiguous float32 "
            f"of shape {shape}"
        )
    return out
