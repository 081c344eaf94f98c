"""What is done to embeddings after a model made them: objects with `fit` and `transform`.

Assumes rows [n, C], or [n, L, C] for L layers, each of which is then treated for itself. Fit on
train sentences, never on those that are scored: a statistic of the test set is a peek at it.
`EmbedFilter` and the two that join layers are fitted on nothing. Promises float64 inside, and the
dtype of what came in outside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Rows = NDArray[np.floating[Any]]
Array = NDArray[np.float64]
Step = TypeVar("Step", bound="PostProcess")


class PostProcess(ABC):
    """A step after the embedding; those that learn override `fit`, all of them give `_apply`."""

    def fit(self: Step, X: ArrayLike, y: object = None) -> Step:
        """Learn from rows [n, C] or [n, L, C]; returns itself. Labels are not looked at."""
        _rows(X)
        return self

    def transform(self, X: ArrayLike) -> Rows:
        """The rows, changed; of the dtype that came in."""
        rows, dtype = _rows(X)
        return self._apply(rows).astype(dtype)

    def fit_transform(self, X: ArrayLike, y: object = None) -> Rows:
        """`fit` and then `transform` of the same rows."""
        return self.fit(X, y).transform(X)

    @abstractmethod
    def _apply(self, X: Array) -> Array:
        """The change itself, of rows in float64."""


class Standardise(PostProcess):
    """Each column to mean 0 and standard deviation 1; a column without spread to 0.

    Examples
    --------
    >>> Standardise().fit([[0.0, 2.0], [2.0, 2.0]]).transform([[3.0, 5.0]])
    array([[2., 3.]])
    """

    def fit(self, X: ArrayLike, y: object = None) -> Standardise:
        """Learn each column's mean and population standard deviation."""
        rows, _ = _rows(X)
        self.mean_: Array = rows.mean(axis=0)
        spread = rows.std(axis=0)
        # What rounding leaves of a constant column is no spread.
        constant = spread <= 1e-12 * np.maximum(1, np.abs(self.mean_))
        self.scale_: Array = np.where(constant, 1, spread)
        return self

    def _apply(self, X: Array) -> Array:
        return (X - _learned(self, "mean_", X)) / self.scale_


class AllButTheTop(PostProcess):
    """Remove the mean and the directions of greatest variance (Mu and Viswanath, ICLR 2018).

    components : directions to remove; default: C // 100, at least 1, as that paper has it
    """

    def __init__(self, components: int | None = None) -> None:
        self.components = components

    def fit(self, X: ArrayLike, y: object = None) -> AllButTheTop:
        """Learn the mean and the directions."""
        rows, _ = _rows(X)
        count = max(1, rows.shape[-1] // 100) if self.components is None else self.components
        self.mean_: Array = rows.mean(axis=0)
        directions, _ = _principal(rows - self.mean_)
        if not 0 <= count <= directions.shape[-2]:
            raise ValueError(
                f"components={count}: expected 0 .. {directions.shape[-2]}, what {len(rows)} rows "
                f"of width {rows.shape[-1]} have"
            )
        self.directions_: Array = directions[..., :count, :]  # [..., components, C]
        return self

    def _apply(self, X: Array) -> Array:
        centred = X - _learned(self, "mean_", X)
        along = np.einsum("...kc,n...c->n...k", self.directions_, centred)
        return np.asarray(centred - np.einsum("...kc,n...k->n...c", self.directions_, along))


class Whitening(PostProcess):
    """Rotate to the principal directions and scale each to variance 1 (Su et al., 2021).

    width : directions to keep, those of greatest variance; default: all that the rows span
    """

    def __init__(self, width: int | None = None) -> None:
        self.width = width

    def fit(self, X: ArrayLike, y: object = None) -> Whitening:
        """Learn the mean, the directions and their standard deviations (of a sample, n - 1)."""
        rows, _ = _rows(X)
        self.mean_: Array = rows.mean(axis=0)
        directions, length = _principal(rows - self.mean_)
        spread = length / np.sqrt(len(rows) - 1)  # [..., k]
        spanned = int((spread > 1e-7 * spread.max(axis=-1, keepdims=True)).sum(axis=-1).min())
        width = spanned if self.width is None else self.width
        if not 1 <= width <= spanned:
            raise ValueError(
                f"width={width}: expected 1 .. {spanned}, the directions that {len(rows)} rows of "
                f"width {rows.shape[-1]} span"
            )
        self.matrix_: Array = directions[..., :width, :] / spread[..., :width, None]
        return self

    def _apply(self, X: Array) -> Array:
        centred = X - _learned(self, "mean_", X)
        return np.asarray(np.einsum("...kc,n...c->n...k", self.matrix_, centred))


class EmbedFilter(PostProcess):
    """Project out what the language-modelling head favours, without any data (arXiv 2606.07502).

    The right singular vectors of the head with the largest and the smallest singular values write
    frequent, empty tokens; the `keep` in the middle are kept, as coordinates. That paper applies it
    after the last norm, where the head reads: the layer "final".

    head : [V, C], the weight of the head; `head()` of a model
    keep : directions kept, as many dropped at either end; default: C // 2

    Examples
    --------
    >>> head = np.diag([4.0, 3.0, 2.0, 1.0])
    >>> abs(EmbedFilter(head).transform([[1.0, 2.0, 3.0, 4.0]]))
    array([[2., 3.]])
    """

    def __init__(self, head: ArrayLike, keep: int | None = None) -> None:
        self.head = head
        self.keep = keep
        weight = np.asarray(head, np.float64)
        if weight.ndim != 2 or not np.isfinite(weight).all():
            raise ValueError(f"head has shape {weight.shape}: expected finite numbers [V, C]")
        C = weight.shape[1]
        count = C // 2 if keep is None else keep
        if not 1 <= count <= C:
            raise ValueError(f"keep={count}: expected 1 .. {C}, the width of the head")
        # Of a matrix far higher than wide, the right singular vectors are those of its square.
        _, vectors = np.linalg.eigh(weight.T @ weight)  # ascending
        first = (C - count) // 2
        self.directions_: Array = vectors[:, ::-1][:, first : first + count].T  # [keep, C]

    def _apply(self, X: Array) -> Array:
        if X.shape[-1] != self.directions_.shape[1]:
            raise ValueError(
                f"rows of width {X.shape[-1]}: the head's is {len(self.directions_.T)}"
            )
        return np.asarray(X @ self.directions_.T)


class AverageLayers(PostProcess):
    """One row a text from [n, L, C]: the mean of its layers, each scaled to length 1 first.

    Unscaled, the layers of greatest length would be all that counts.
    """

    def _apply(self, X: Array) -> Array:
        return np.asarray(_unit_layers(X).mean(axis=1))


class ConcatenateLayers(PostProcess):
    """One row a text from [n, L, C], [n, L C]: its layers side by side, each of length 1."""

    def _apply(self, X: Array) -> Array:
        return _unit_layers(X).reshape(len(X), -1)


def _rows(X: ArrayLike) -> tuple[Array, Any]:
    """Rows as float64, and the dtype that they came in: float64 for integers."""
    given = np.asarray(X)
    if given.ndim not in (2, 3) or not given.size:
        raise ValueError(f"rows of shape {given.shape}: expected [n, C] or [n, L, C], not empty")
    dtype = given.dtype if given.dtype.kind == "f" else np.dtype(np.float64)
    rows = given.astype(np.float64)
    if not np.isfinite(rows).all():
        raise ValueError(f"row {np.argwhere(~np.isfinite(rows))[0][0]} is not finite")
    return rows, dtype


def _learned(step: PostProcess, name: str, X: Array) -> Array:
    """What `fit` left, which must be of the rows' shape."""
    learned: Array | None = getattr(step, name, None)
    if learned is None:
        raise ValueError(f"{type(step).__name__} is not fitted: call fit on train sentences first")
    if learned.shape != X.shape[1:]:
        raise ValueError(f"rows of shape {X.shape[1:]}: fitted on {learned.shape}")
    return learned


def _principal(centred: Array) -> tuple[Array, Array]:
    """Directions [..., k, C] and lengths [..., k] of centred rows [n, ..., C], longest first."""
    if len(centred) < 2:
        raise ValueError("a single row has no directions: fit on two or more")
    _, length, directions = np.linalg.svd(np.moveaxis(centred, 0, -2), full_matrices=False)
    return directions, length


def _unit_layers(X: Array) -> Array:
    if X.ndim != 3:
        raise ValueError(f"rows of shape {X.shape}: expected several layers, [n, L, C]")
    length = np.linalg.norm(X, axis=-1, keepdims=True)
    return np.asarray(np.divide(X, length, out=np.zeros_like(X), where=length > 0))
